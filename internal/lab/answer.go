package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"
)

// Echo answers every datagram and every byte with itself, on all addresses of the place it runs in, until the context
// ends.
func Echo(ctx context.Context, port uint16) error {
	address := fmt.Sprintf(":%d", port)
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	enlarge(packets)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("echo: %w", errors.Join(err, packets.Close()))
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		return errors.Join(packets.Close(), listener.Close())
	})
	group.Go(func() error {
		return answerPackets(packets, func(query []byte) []byte { return query })
	})
	group.Go(func() error { return echoStreams(listener) })
	return ignoreClosed(group.Wait())
}

func echoStreams(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() { // ends with its client
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

// answerPackets sends back what answer makes of each datagram; nil is no answer.
func answerPackets(packets net.PacketConn, answer func([]byte) []byte) error {
	buffer := make([]byte, 65536)
	for {
		n, from, err := packets.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if reply := answer(buffer[:n]); reply != nil {
			_, _ = packets.WriteTo(reply, from) // the client asks again if it did not arrive
		}
	}
}

// Names maps DNS names, with the final dot, to addresses.
type Names map[string][]netip.Addr

// ParseNames reads NAME=ADDR[,ADDR...] for each name.
func ParseNames(args []string) (Names, error) {
	names := Names{}
	for _, arg := range args {
		name, list, found := strings.Cut(arg, "=")
		if !found || name == "" {
			return nil, fmt.Errorf("name %q: write NAME=ADDRESS,ADDRESS", arg)
		}
		for text := range strings.SplitSeq(list, ",") {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("name %q: %w", arg, err)
			}
			key := strings.ToLower(strings.TrimSuffix(name, ".")) + "."
			names[key] = append(names[key], addr.Unmap())
		}
	}
	return names, nil
}

// ServeDNS answers queries for A and AAAA over UDP on all addresses until the context ends.
func ServeDNS(ctx context.Context, port uint16, names Names) error {
	packets, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { packets.Close() })
	defer stop()
	return ignoreClosed(answerPackets(packets, names.answer))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// answer makes the reply to a query (RFC 1035); what is not a query of one question gets none.
func (n Names) answer(query []byte) []byte {
	var parser dnsmessage.Parser
	header, err := parser.Start(query)
	if err != nil || header.Response {
		return nil
	}
	questions, err := parser.AllQuestions()
	if err != nil || len(questions) != 1 {
		return nil
	}
	question := questions[0]
	addrs, known := n[strings.ToLower(question.Name.String())]
	reply := dnsmessage.Message{
		Header: dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true,
			RecursionDesired: header.RecursionDesired, RecursionAvailable: true},
		Questions: questions,
	}
	if !known {
		reply.RCode = dnsmessage.RCodeNameError
	}
	for _, addr := range addrs {
		if body := resource(question.Type, addr); body != nil {
			reply.Answers = append(reply.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: 5},
				Body:   body,
			})
		}
	}
	raw, err := reply.Pack()
	if err != nil {
		return nil
	}
	return raw
}

// resource is the record that tells an address, where its family is the one asked for.
func resource(kind dnsmessage.Type, addr netip.Addr) dnsmessage.ResourceBody {
	switch {
	case kind == dnsmessage.TypeA && addr.Is4():
		return &dnsmessage.AResource{A: addr.As4()}
	case kind == dnsmessage.TypeAAAA && addr.Is6():
		return &dnsmessage.AAAAResource{AAAA: addr.As16()}
	}
	return nil
}
