package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	vishvananda "github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/netlink"
)

// testNoRules wants services and source translation to have been done without the kernel's own: no table of nftables or
// iptables and no connection tracked, on any node.
func (c *cluster) testNoRules(t *testing.T) {
	for _, place := range c.hosts(t) {
		found, err := kernelRules(place)
		if err != nil || len(found) > 0 {
			t.Errorf("%s: %q, %v, want neither rules nor connections", place.Name, found, err)
		}
	}
}

// kernelRules lists the tables of nftables and iptables and the tracked connections of a place. What the kernel has no code
// for it has none of.
func kernelRules(place lab.Place) (found []string, err error) {
	netns, err := os.Open(place.Netns)
	if err != nil {
		return nil, err
	}
	defer netns.Close()
	err = netlink.Within(netns, func() error {
		request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
		tables, err := request.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("list nftables: %w", err)
		}
		for range tables {
			found = append(found, "nftables table")
		}
		for _, file := range []string{"ip_tables_names", "ip6_tables_names", "nf_conntrack"} {
			raw, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			for line := range strings.Lines(string(raw)) {
				found = append(found, file+": "+strings.TrimSpace(line))
			}
		}
		for _, family := range []vishvananda.InetFamily{unix.AF_INET, unix.AF_INET6} {
			flows, err := vishvananda.ConntrackTableList(vishvananda.ConntrackTable, family)
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("list tracked connections: %w", err)
			}
			for _, flow := range flows {
				found = append(found, "conntrack: "+flow.String())
			}
		}
		return nil
	})
	return found, err
}

// askVariable makes the test binary ask a name server instead: as a process of its own it has a pod's cgroup.
const askVariable = "TENDRIL_TEST_ASK"

// Pairs that are asked for, and how many queries are on their way at a time: each socket buffer holds that many.
const (
	askPairs  = 100_000
	askWindow = 64
)

// asked is what became of the queries.
type asked struct {
	Sent, Answered, Strange int
	Took                    time.Duration
}

// ask sends pairs of A and AAAA queries back to back from one socket that has no peer, as resolvers do. An answer counts if it
// comes from the address that was asked, and once.
func ask(server netip.AddrPort) (result asked, err error) {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return result, err
	}
	defer conn.Close()
	begun := time.Now()
	defer func() { result.Took = time.Since(begun) }()
	name := dnsmessage.MustNewName("web.shop.")
	buffer := make([]byte, 1500)
	waiting := map[uint16]bool{}
	for result.Sent < 2*askPairs || len(waiting) > 0 {
		for ; result.Sent < 2*askPairs && len(waiting) < askWindow; result.Sent++ {
			kind := dnsmessage.TypeA
			if result.Sent%2 == 1 {
				kind = dnsmessage.TypeAAAA
			}
			id := uint16(result.Sent)
			query := dnsmessage.Message{
				Header:    dnsmessage.Header{ID: id},
				Questions: []dnsmessage.Question{{Name: name, Type: kind, Class: dnsmessage.ClassINET}},
			}
			raw, err := query.Pack()
			if err != nil {
				return result, err
			}
			if _, err := conn.WriteToUDPAddrPort(raw, server); err != nil {
				return result, err
			}
			waiting[id] = true
		}
		if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return result, err
		}
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return result, err // the rest is lost
		}
		var parser dnsmessage.Parser
		header, err := parser.Start(buffer[:n])
		if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); err != nil || !waiting[header.ID] || from != server {
			result.Strange++
			continue
		}
		delete(waiting, header.ID)
		result.Answered++
	}
	return result, nil
}

// runAsk is the process that asks.
func runAsk(server string) int {
	result, err := ask(netip.MustParseAddrPort(server))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		return 1
	}
	return 0
}

// testPairs asks two name servers behind one service, at the socket and per packet: not one answer may be missing, nor come
// from an address that was not asked.
func (c *cluster) testPairs(t *testing.T) {
	for _, name := range []string{"web-1", "web-2"} {
		if _, err := c.StartDNS(t.Context(), c.pods[name].Place, "web.shop=10.96.0.80,fd96::80"); err != nil {
			t.Fatal(err)
		}
	}
	c.apply(t, manifest(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: names, namespace: shop}
spec:
  clusterIPs: ["10.96.1.53", "fd96::1:53"]
  clusterIP: 10.96.1.53
  ports: [{name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names-4, namespace: shop, labels: {kubernetes.io/service-name: names}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}]
endpoints: [{addresses: ["%s"]}, {addresses: ["%s"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names-6, namespace: shop, labels: {kubernetes.io/service-name: names}}
addressType: IPv6
ports: [{name: dns, port: 53, protocol: UDP}]
endpoints: [{addresses: ["%s"]}, {addresses: ["%s"]}]
`, c.pods["web-1"].Addr(4), c.pods["web-2"].Addr(4), c.pods["web-1"].Addr(6), c.pods["web-2"].Addr(6))))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for server, place := range map[string]lab.Place{"10.96.1.53:53": c.pods["client"].Place, "[fd96::1:53]:53": c.stray("client")} {
		out, err := place.Exec(t.Context(), "env", askVariable+"="+server, self)
		var result asked
		if err == nil {
			err = json.Unmarshal([]byte(out), &result)
		}
		if err != nil || result.Answered != 2*askPairs || result.Strange != 0 {
			t.Errorf("%s asks %s: %+v, %v, want %d answers and no other", place.Name, server, result, err, 2*askPairs)
		}
		t.Logf("%s: %d pairs in %v", place.Name, askPairs, result.Took)
	}
}
