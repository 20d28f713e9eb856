package flow

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
)

// story is a few events: what each filter finds of it is told by their numbers.
func story() []bpf.Event {
	events := []bpf.Event{
		0: event("10.0.0.1", "10.0.0.2", nil),
		1: event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			judged(bpf.ActionAllow, 1, bpf.ActionDeny, 64)(e)
			staged(bpf.ActionAllow, 1, bpf.ActionDeny, 65)(e)
		}),
		2: event("10.0.0.2", "192.0.2.7", func(e *bpf.Event) { e.Protocol = 17 }),
		3: event("fd00::1", "fd00::2", func(e *bpf.Event) { e.Kind = bpf.EventFlowEnd }),
		4: event("10.0.0.1", "10.0.0.2", func(e *bpf.Event) {
			e.Service, e.ServicePort = address("10.96.0.1"), bpf.NetPort(443)
			e.EgressAction = bpf.ActionRedirect
		}),
		5: event("192.0.2.7", "198.51.100.1", func(e *bpf.Event) {
			e.Protocol = 1
			staged(bpf.ActionDeny, 64, bpf.ActionNone, 0)(e)
		}),
	}
	for i := range events {
		events[i].Time = uint64(i)
	}
	return events
}

// numbersOf says which events of the story the records are.
func numbersOf(flows []*agentv1.Flow) []int {
	numbers := []int{}
	for _, f := range flows {
		numbers = append(numbers, int(f.TimeUnixNano-boot))
	}
	return numbers
}

func TestAFilterFinds(t *testing.T) {
	for _, c := range []struct {
		name    string
		request *agentv1.ObserveRequest
		want    []int
	}{
		{"everything", &agentv1.ObserveRequest{}, []int{0, 1, 2, 3, 4, 5}},
		{"the last two", &agentv1.ObserveRequest{Last: 2}, []int{4, 5}},
		{"the last of those wanted", &agentv1.ObserveRequest{Last: 1, Protocol: "udp"}, []int{2}},
		{"more than there are", &agentv1.ObserveRequest{Last: 100, Protocol: "udp"}, []int{2}},
		{"a pod on either side", &agentv1.ObserveRequest{Pod: "shop/web"}, []int{0, 1, 2, 3, 4}},
		{"a pod of the default namespace by its name alone", &agentv1.ObserveRequest{Pod: "client"}, []int{0, 1, 3, 4}},
		{"what a pod sends", &agentv1.ObserveRequest{FromPod: "shop/web"}, []int{2}},
		{"what a pod gets", &agentv1.ObserveRequest{ToPod: "shop/web", Protocol: "6", Kind: "new"}, []int{0, 4}},
		{"a namespace", &agentv1.ObserveRequest{Namespace: "default"}, []int{0, 1, 3, 4}},
		{"drops", &agentv1.ObserveRequest{Verdict: "dropped"}, []int{1}},
		{"drops by another word", &agentv1.ObserveRequest{Verdict: "denied"}, []int{1}},
		{"what goes to the proxy", &agentv1.ObserveRequest{Verdict: "redirected"}, []int{4}},
		{"what is allowed", &agentv1.ObserveRequest{Verdict: "allowed"}, []int{0, 2, 3, 5}},
		{"an address", &agentv1.ObserveRequest{Ip: "192.0.2.7"}, []int{2, 5}},
		{"a service's address", &agentv1.ObserveRequest{Ip: "10.96.0.1"}, []int{4}},
		{"a range", &agentv1.ObserveRequest{Ip: "fd00::/64"}, []int{3}},
		{"a port of a service", &agentv1.ObserveRequest{Port: 443}, []int{4}},
		{"a port, which no echo's id is", &agentv1.ObserveRequest{Port: 80}, []int{0, 1, 2, 3, 4}},
		{"what staged policies would change", &agentv1.ObserveRequest{Staged: true}, []int{5}},
		{"a kind", &agentv1.ObserveRequest{Kind: "end"}, []int{3}},
		{"a time", &agentv1.ObserveRequest{SinceUnixNano: boot + 4}, []int{4, 5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewRing(16)
			r.Store(story())
			q, err := ParseQuery(c.request)
			if err != nil {
				t.Fatal(err)
			}
			var got []*agentv1.Flow
			err = r.Observe(t.Context(), q, decoder, func(f *agentv1.Flow) error { got = append(got, f); return nil })
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, numbersOf(got)); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAFilterThatMakesNoSenseIsRefused(t *testing.T) {
	for want, request := range map[string]*agentv1.ObserveRequest{
		`verdict "perhaps": must be`:        {Verdict: "perhaps"},
		`kind "odd": must be`:               {Kind: "odd"},
		`ip "10.0.0": must be an address`:   {Ip: "10.0.0"},
		`ip "::ffff:10.0.0.0/104": an IPv4`: {Ip: "::ffff:10.0.0.0/104"},
		`port 70000: must be from 1`:        {Port: 70000},
		`protocol "ipx": must be`:           {Protocol: "ipx"},
		`protocol "256": must be`:           {Protocol: "256"},
		`pod "/web": must be namespace`:     {Pod: "/web"},
		`from-pod "a/b/c": must be`:         {FromPod: "a/b/c"},
		`to-pod "shop/": must be namespace`: {ToPod: "shop/"},
	} {
		if _, err := ParseQuery(request); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %s", err, want)
		}
	}
}

func TestFollowingGoesOnUntilTheCallerLeaves(t *testing.T) {
	r := NewRing(16)
	r.Store(story()[:2])
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var got []*agentv1.Flow
	err := r.Observe(ctx, Query{Follow: true, Last: 1}, decoder, func(f *agentv1.Flow) error {
		got = append(got, f)
		switch len(got) {
		case 1:
			r.Lose(5)
			r.Store(story()[2:4])
		case 3:
			leave()
		}
		return nil
	})
	if err != nil {
		t.Errorf("Observe: %v, want nil when the caller leaves", err)
	}
	if diff := cmp.Diff([]int{1, 2, 3}, numbersOf(got)); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	for i, want := range []uint64{0, 5, 0} {
		if got[i].Lost != want {
			t.Errorf("record %d tells of %d losses, want %d", i, got[i].Lost, want)
		}
	}
}

func TestFollowingWithoutAPastStartsNow(t *testing.T) {
	r := NewRing(16)
	r.Store(story())
	ctx, leave := context.WithCancel(t.Context())
	leave()
	err := r.Observe(ctx, Query{Follow: true}, decoder, func(f *agentv1.Flow) error { return errors.New("got a past record") })
	if err != nil {
		t.Error(err)
	}
}

func TestObserveEndsWithTheErrorOfItsCaller(t *testing.T) {
	r := NewRing(16)
	r.Store(story())
	broken := errors.New("stream closed")
	for _, q := range []Query{{}, {Last: 3}} {
		if err := r.Observe(t.Context(), q, decoder, func(*agentv1.Flow) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("%+v: got %v, want the caller's error", q, err)
		}
	}
}

// TestThePastEndsWhereItWasWhenTheCallerAsked: a busy node stores events while earlier ones are sent, and a caller that
// does not follow would never be done with them.
func TestThePastEndsWhereItWasWhenTheCallerAsked(t *testing.T) {
	for name, c := range map[string]struct {
		query Query
		want  []int
	}{
		"all":       {Query{}, []int{0, 1, 2, 3, 4, 5}},
		"some last": {Query{Last: 2}, []int{4, 5}},
		"filtered":  {Query{Filter: Filter{Protocol: 17}}, []int{2}},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewRing(1024)
			r.Store(story())
			var got []*agentv1.Flow
			err := r.Observe(t.Context(), c.query, decoder, func(f *agentv1.Flow) error {
				if got = append(got, f); len(got) > 100 {
					return errors.New("no end")
				}
				r.Store(story())
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, numbersOf(got)); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLastKeepsTheLastOfMany(t *testing.T) {
	r := NewRing(1024)
	for i := range 1000 {
		e := story()[0]
		e.Time = uint64(i)
		r.Store([]bpf.Event{e})
	}
	var got []*agentv1.Flow
	if err := r.Observe(t.Context(), Query{Last: 3}, decoder, func(f *agentv1.Flow) error { got = append(got, f); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{997, 998, 999}, numbersOf(got)); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}
