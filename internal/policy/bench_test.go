package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

// An identity that appears: engine alone, beside the floor of making and hashing it.
func BenchmarkIdentityAppears(b *testing.B) {
	for _, s := range []size{small, large} {
		b.Run(s.String(), func(b *testing.B) {
			n := s.node(b)
			b.ReportAllocs()
			i := s.peers
			for b.Loop() {
				n.engine.SetAddress(s.newcomer(i))
				i++
				n.mustFlush(b)
			}
		})
	}
}

// An identity that appears and goes again.
func BenchmarkIdentityComesAndGoes(b *testing.B) {
	for _, s := range []size{small, large} {
		b.Run(s.String(), func(b *testing.B) {
			n := s.node(b)
			b.ReportAllocs()
			for b.Loop() {
				prefix, fact := s.newcomer(s.peers)
				n.engine.SetAddress(prefix, fact)
				n.mustFlush(b)
				n.engine.DeleteAddress(prefix)
				n.mustFlush(b)
			}
		})
	}
}

func BenchmarkIdentityAppearsFloor(b *testing.B) {
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		large.newcomer(i)
		i++
	}
}

// 10,000 policies are loaded at once, each of a rule; one endpoint is selected by a hundred of them.
func BenchmarkLoad10kPolicies(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		e := policy.New(policy.Config{}, policytest.NewNumbers())
		for i := range uint32(100) {
			e.SetSubject(i+1, app(fmt.Sprint("db", i)))
		}
		for i := range 10000 {
			p := allow(fmt.Sprint("rule", i), fmt.Sprint("db", i%100), policy.Rule{
				Peers: []policy.Peer{pods(fmt.Sprint("app", i%1000))}, Ports: []policy.Port{{Protocol: tcp, First: uint16(i), Last: uint16(i)}},
			})
			if err := e.SetPolicy(p); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := e.Flush(); err != nil {
			b.Fatal(err)
		}
		if refused := e.Refused(); len(refused) > 0 {
			b.Fatalf("refused: %v", refused[0].Reason)
		}
	}
}

// A flow is judged by 1000 rules, none of which is its own.
func BenchmarkJudge(b *testing.B) {
	n := crowd(b, 1000)
	n.engine.SetAddress(stranger(0))
	n.flush(b, nil)
	from, to := n.engine.Party(netip.MustParseAddr("10.1.0.0")), policy.Party{Endpoint: 1}
	b.ReportAllocs()
	for b.Loop() {
		n.engine.Judge(from, to, tcp, 65000)
	}
}
