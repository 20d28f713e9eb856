package lab

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"tendril.io/tendril/internal/lab"
)

// Exchanges are asked for by processes of the test binary, one in each place, each of which asks for all at once.

// exchangeVariable makes the test binary ask: the exchanges come by standard input, what became of them goes out by standard
// output. witnessVariable makes it answer, under the name and at the address that it holds.
const (
	exchangeVariable = "TENDRIL_TEST_EXCHANGE"
	witnessVariable  = "TENDRIL_TEST_WITNESS"
)

// witnessPort is where witnesses answer, TCP and UDP.
const witnessPort = 8080

// exchange is a question to an address, and what became of it.
type exchange struct {
	// Protocol is tcp, udp (from a socket without a peer), udp-connected, or sctp.
	Protocol string
	Target   netip.AddrPort
	Port     int           // of the asking socket; 0: any
	Patience time.Duration // how long it may take; 0: exchangePatience
	Long     int           // bytes of the question, of SCTP; 0: it is short

	Name   string         // who answered
	Sees   netip.AddrPort // whom he saw
	From   netip.AddrPort // where the answer came from, as the asking socket says
	Failed string         // the error, if there was no answer
}

// exchangePatience is how long an exchange may take unless it says otherwise; a datagram is sent again in each of exchangeAgain.
const (
	exchangePatience = 900 * time.Millisecond
	exchangeAgain    = 300 * time.Millisecond
)

// exchangesAtOnce bounds how many exchanges one place makes at a time: a slow machine would not come to each within its patience.
const exchangesAtOnce = 48

// runExchanges is the process that asks.
func runExchanges() int {
	var all []exchange
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var group errgroup.Group
	group.SetLimit(exchangesAtOnce)
	if len(all) > 0 && all[0].Protocol == "sctp" {
		set := lab.ComputeChecksums
		if all[0].Long > 0 {
			set = lab.LeaveChecksums // then packets are large, and cut by the last device
		}
		if err := checksums(set); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	for i := range all {
		group.Go(func() error {
			if err := all[i].make(); err != nil {
				all[i].Failed = err.Error()
			}
			return nil
		})
	}
	_ = group.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		return 1
	}
	return 0
}

// make asks and waits for the answer.
func (e *exchange) make() error {
	if e.Protocol == "sctp" {
		return e.makeSCTP()
	}
	end := time.Now().Add(cmp.Or(e.Patience, exchangePatience))
	if e.Protocol == "udp" {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: e.Port})
		if err != nil {
			return err
		}
		defer conn.Close()
		return e.datagrams(end, conn, func() error {
			_, err := conn.WriteToUDPAddrPort([]byte("who?\n"), e.Target)
			return err
		}, conn.ReadFromUDPAddrPort)
	}
	network, _, _ := strings.Cut(e.Protocol, "-")
	dialer := net.Dialer{Deadline: end, LocalAddr: &net.TCPAddr{Port: e.Port}}
	if network == "udp" {
		dialer.LocalAddr = &net.UDPAddr{Port: e.Port}
	}
	conn, err := dialer.Dial(network, e.Target.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	ask := func() error {
		_, err := conn.Write([]byte("who?\n"))
		return err
	}
	peer := addrPortOf(conn.RemoteAddr())
	if network == "udp" {
		return e.datagrams(end, conn, ask, func(buffer []byte) (int, netip.AddrPort, error) {
			n, err := conn.Read(buffer)
			return n, peer, err
		})
	}
	if err := errors.Join(conn.SetDeadline(end), ask()); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	return e.read(line, peer)
}

// datagrams asks again until there is an answer.
func (e *exchange) datagrams(end time.Time, conn net.Conn, ask func() error, read func([]byte) (int, netip.AddrPort, error)) error {
	buffer := make([]byte, 512)
	for {
		if err := ask(); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(exchangeAgain)); err != nil {
			return err
		}
		n, from, err := read(buffer)
		if err == nil {
			return e.read(string(buffer[:n]), from)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return err
		}
	}
}

// read takes an answer apart.
func (e *exchange) read(line string, from netip.AddrPort) error {
	name, sees, _ := strings.Cut(strings.TrimSpace(line), " sees ")
	at, err := netip.ParseAddrPort(sees)
	e.Name, e.Sees, e.From = name, at, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	return err
}

func addrPortOf(addr net.Addr) netip.AddrPort {
	at, _ := netip.ParseAddrPort(addr.String())
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// runWitness is the process that answers "NAME sees ADDRESS:PORT" until it is killed. who: NAME@ADDRESS:PORT, where it listens.
func runWitness(who string) int {
	name, address, _ := strings.Cut(who, "@")
	if sctpHere() {
		go func() {
			fmt.Fprintln(os.Stderr, "witness of SCTP:", witnessSCTP(name, address))
		}()
	}
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	answer := func(to net.Addr) []byte { return fmt.Appendf(nil, "%s sees %s\n", name, addrPortOf(to)) }
	go func() {
		buffer := make([]byte, 512)
		for {
			if _, from, err := packets.ReadFrom(buffer); err == nil {
				_, _ = packets.WriteTo(answer(from), from)
			}
		}
	}()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer conn.Close()
			if _, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
				_, _ = conn.Write(answer(conn.RemoteAddr()))
			}
		}()
	}
}

// exchanges makes all of them from one place.
func exchanges(ctx context.Context, place lab.Place, asked []exchange) (made []exchange, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	input, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), exchangeVariable+"=1")
	var out, problems strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(input)), &out, &problems
	if err := place.Prepare(cmd)(); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", place.Name, err, problems.String())
	}
	return made, json.Unmarshal([]byte(out.String()), &made)
}

// witness starts processes in a place that say whom they see, one at each address: an answer comes from there.
func (c *cluster) witness(t *testing.T, place lab.Place, name string, addrs []netip.Addr) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		at := netip.AddrPortFrom(addr, witnessPort)
		if _, err := c.Start(place, "", "env", witnessVariable+"="+name+"@"+at.String(), self); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the witness to answer", 10*time.Second, func(ctx context.Context) error {
			made, err := exchanges(ctx, place, []exchange{{Protocol: "tcp", Target: at}})
			if err == nil && made[0].Failed != "" {
				err = errors.New(made[0].Failed)
			}
			return err
		})
	}
}
