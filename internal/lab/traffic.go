package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// Answer is what a web server of StartNginx said.
type Answer struct {
	Name string        // of the server
	Sees netip.Addr    // whom it saw asking
	Took time.Duration // as curl measured it
}

// Fetch asks a web server of StartNginx with curl, on a new connection, within two seconds.
func (p Place) Fetch(ctx context.Context, addr netip.Addr, port uint16) (Answer, error) {
	url := "http://" + netip.AddrPortFrom(addr, port).String() + "/"
	out, err := p.Exec(ctx, "curl", "-sS", "-m", "2", "-w", "%{time_total}", url)
	if err != nil {
		return Answer{}, err
	}
	answer, err := parseAnswer(out)
	if err != nil {
		return Answer{}, fmt.Errorf("%s: %s: %w", p.Name, url, err)
	}
	return answer, nil
}

// parseAnswer reads "NAME sees ADDRESS", and in the next line how many seconds it took.
func parseAnswer(text string) (Answer, error) {
	words := strings.Fields(text)
	if len(words) != 4 || words[1] != "sees" {
		return Answer{}, fmt.Errorf("answer %q: is not of a web server of the lab", text)
	}
	sees, err := netip.ParseAddr(words[2])
	if err != nil {
		return Answer{}, fmt.Errorf("answer %q: %w", text, err)
	}
	seconds, err := strconv.ParseFloat(words[3], 64)
	if err != nil {
		return Answer{}, fmt.Errorf("answer %q: %w", text, err)
	}
	return Answer{Name: words[0], Sees: sees.Unmap(), Took: time.Duration(seconds * float64(time.Second))}, nil
}

// FetchMany makes so many connections to a web server, one after another, and counts who answered.
func (p Place) FetchMany(ctx context.Context, addr netip.Addr, port uint16, connections int) (map[string]int, error) {
	url := "http://" + netip.AddrPortFrom(addr, port).String() + "/"
	script := fmt.Sprintf("for i in $(seq %d); do curl -sS -m 2 '%s' || exit 1; done", connections, url)
	out, err := p.Exec(ctx, "sh", "-c", script)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(line, " ")
		counts[name]++
	}
	return counts, nil
}

// Probing is what a probe prints when it has begun.
const Probing = "probing\n"

// StartProbe starts an open-loop probe in a place, and returns once it sends; it runs until EndProbe.
func (l *Lab) StartProbe(ctx context.Context, place Place, kind ProbeKind, target netip.AddrPort, interval time.Duration) (*Process, error) {
	probe, err := l.Start(place, "probe-"+string(kind), l.tendril(), "lab", "probe", target.String(),
		"--kind", string(kind), "--interval", interval.String(), "--duration", "1h")
	if err != nil {
		return nil, err
	}
	err = Wait(ctx, probe.Name, 10*time.Second, func(context.Context) error {
		switch {
		case strings.HasPrefix(probe.Output(), Probing):
			return nil
		case !probe.Alive():
			return fmt.Errorf("it has ended%s", probe.quoteLog(3))
		}
		return fmt.Errorf("it has no connection to %s yet", target)
	})
	return probe, err
}

// EndProbe interrupts a probe and returns what it saw.
func EndProbe(ctx context.Context, probe *Process) (ProbeResult, error) {
	var result ProbeResult
	if err := probe.Signal(syscall.SIGINT); err != nil {
		return result, err
	}
	if _, err := probe.Wait(ctx); err != nil {
		return result, err
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(probe.Output(), Probing)), &result); err != nil {
		return result, fmt.Errorf("probe %s: %w%s", probe.Name, err, probe.quoteLog(5))
	}
	return result, nil
}

// Clean says that everything sent was answered, and that something was sent.
func (r ProbeResult) Clean() bool { return r.Sent > 0 && r.Lost+r.Reset+r.Refused == 0 }

// Flows reads the flow records that a node's agent keeps and the request selects.
func (l *Lab) Flows(ctx context.Context, node string, request *agentv1.ObserveRequest) ([]*agentv1.Flow, error) {
	client, err := l.Agent(node)
	if err != nil {
		return nil, err
	}
	stream, err := client.Observe(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("flows of %s: %w", node, err)
	}
	var flows []*agentv1.Flow
	for {
		flow, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return flows, nil
		}
		if err != nil {
			return flows, fmt.Errorf("flows of %s: %w", node, err)
		}
		flows = append(flows, flow)
	}
}

// WaitFlow waits until a node's agent has a flow record that the request selects and wanted accepts.
func (l *Lab) WaitFlow(ctx context.Context, node string, request *agentv1.ObserveRequest, wanted func(*agentv1.Flow) bool) error {
	return Wait(ctx, "a flow record on "+node, 3*time.Second, func(ctx context.Context) error {
		flows, err := l.Flows(ctx, node, request)
		if err != nil {
			return err
		}
		for _, flow := range flows {
			if wanted(flow) {
				return nil
			}
		}
		var last *agentv1.Flow
		if len(flows) > 0 {
			last = flows[len(flows)-1]
		}
		return fmt.Errorf("none of %d records is the one; the last is {%v}", len(flows), last)
	})
}
