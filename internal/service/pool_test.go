package service

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/internal/label"
)

// town is a set of pools, of services that ask them, and of what is occupied.
type town struct {
	pools    []Pool
	requests []Request
	occupied Occupied
}

// drawTown draws small pools that overlap, and more services than they have addresses for.
func drawTown(t *rapid.T) town {
	ranges := []string{"192.0.2.0/29", "192.0.2.4/30", "192.0.2.9/32", "192.0.2.16/31", "255.255.255.252/30", "2001:db8::/126", "2001:db8::8/127"}
	subset := func(name string, from []string) (all []netip.Prefix) {
		for _, text := range rapid.SliceOfNDistinct(rapid.SampledFrom(from), 0, 2, rapid.ID).Draw(t, name) {
			all = append(all, prefix(text))
		}
		return all
	}
	var w town
	team := func(name string) label.Selector {
		if rapid.Bool().Draw(t, name) {
			return label.Selector{}
		}
		return label.MustSelector(label.Equals("team", rapid.SampledFrom([]string{"red", "blue"}).Draw(t, name+" team")))
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3, rapid.ID).Draw(t, "pools") {
		w.pools = append(w.pools, Pool{name, subset("ranges", ranges), team("services"), team("namespaces")})
	}
	known := addrs("192.0.2.1", "192.0.2.3", "192.0.2.5", "192.0.2.6", "192.0.2.9", "192.0.2.16", "192.0.2.0", "2001:db8::1", "2001:db8::2", "2001:db8::8", "198.51.100.1")
	oneEach := func(name string) (all []netip.Addr) {
		for _, addr := range rapid.SliceOfN(rapid.SampledFrom(known), 0, 2).Draw(t, name) {
			if !slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Is4() == addr.Is4() }) {
				all = append(all, addr)
			}
		}
		return all
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"p", "q", "r", "s", "t", "u"}), 0, 6, rapid.ID).Draw(t, "services") {
		r := Request{
			Namespace: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "namespace"), Name: name,
			Families: rapid.SampledFrom([][]int{{4}, {6}, {4, 6}, {6, 4}}).Draw(t, "families"), Prefer: rapid.Bool().Draw(t, "prefer"),
			Wishes: oneEach("wishes"),
		}
		r.Labels, r.NamespaceLabels = drawTeam(t), drawTeam(t)
		for _, addr := range oneEach("held") {
			r.Held = append(r.Held, Grant{addr, "a"})
		}
		w.requests = append(w.requests, r)
	}
	w.occupied = Occupied{Addrs: map[netip.Addr]string{}, Prefixes: subset("pods", []string{"192.0.2.0/30", "255.255.255.254/31", "2001:db8::2/128"})}
	for _, addr := range oneEach("occupied") {
		w.occupied.Addrs[addr] = "a node"
	}
	return w
}

func drawTeam(t *rapid.T) label.Set {
	return label.SetOf(map[string]string{"team": rapid.SampledFrom([]string{"red", "blue"}).Draw(t, "team")})
}

// grants lists who has what, as text, sorted.
func grants(requests []Request, answers []Allotment) []string {
	var all []string
	for i, answer := range answers {
		for _, g := range answer.Grants {
			all = append(all, fmt.Sprintf("%s %s %s", requests[i].key(), g.Addr, g.Pool))
		}
	}
	slices.Sort(all)
	return all
}

// allotBySearch is what Allot means, by trying every address.
func allotBySearch(w town) []string {
	owner := map[netip.Addr]string{} // by service
	has := map[string]bool{}
	var lines []string
	try := func(r Request, family int, addr netip.Addr, evenOccupied bool) bool {
		who := fmt.Sprint(r.key(), family)
		if has[who] || familyOf(addr) != family || owner[addr] != "" {
			return has[who]
		}
		if !evenOccupied && (w.occupied.Addrs[addr] != "" || slices.ContainsFunc(w.occupied.Prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })) {
			return false
		}
		for _, wish := range r.Wishes {
			if familyOf(wish) == family && wish != addr {
				return false
			}
		}
		pools := slices.SortedFunc(slices.Values(w.pools), func(x, y Pool) int { return strings.Compare(x.Name, y.Name) })
		for _, pool := range pools {
			if !slices.Contains(everyAddress(pool), addr) || !selects(pool, r) {
				continue
			}
			owner[addr], has[who] = r.key().String(), true
			lines = append(lines, fmt.Sprintf("%s %s %s", r.key(), addr, pool.Name))
			return true
		}
		return false
	}
	byName := slices.SortedFunc(slices.Values(w.requests), func(x, y Request) int { return x.key().compare(y.key()) })
	each := func(do func(r Request, family int)) {
		for _, r := range byName {
			for _, family := range r.Families {
				do(r, family)
			}
		}
	}
	each(func(r Request, family int) {
		for _, held := range r.Held {
			try(r, family, held.Addr, true)
		}
	})
	each(func(r Request, family int) {
		for _, wish := range r.Wishes {
			try(r, family, wish, false)
		}
	})
	each(func(r Request, family int) {
		for _, name := range []string{"a", "b", "c"} {
			for _, pool := range w.pools {
				if pool.Name != name || !selects(pool, r) {
					continue
				}
				for _, addr := range everyAddress(pool) {
					if try(r, family, addr, false) {
						break
					}
				}
			}
		}
	})
	slices.Sort(lines)
	return lines
}

// everyAddress lists what a small pool may give, range by range, each in rising order.
func everyAddress(pool Pool) (all []netip.Addr) {
	for _, p := range pool.Prefixes {
		var some []netip.Addr
		for addr := p.Addr(); addr.IsValid() && p.Contains(addr); addr = addr.Next() {
			some = append(some, addr)
		}
		if len(some) > 2 && p.Addr().Is4() {
			some = some[1 : len(some)-1]
		} else if len(some) > 2 {
			some = some[1:]
		}
		all = append(all, some...)
	}
	return all
}

func selects(pool Pool, r Request) bool {
	holds := func(s label.Selector, set label.Set) bool {
		team, _ := set.Get("team")
		return s.String() == "*" || s.String() == "team="+team
	}
	return holds(pool.Services, r.Labels) && holds(pool.Namespaces, r.NamespaceLabels)
}

func TestAddressesAreGivenAsASearchOfEveryAddressWouldGiveThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawTown(t)
		answers := NewAllotter(w.pools, w.occupied).Allot(w.requests)
		got := grants(w.requests, answers)
		if diff := cmp.Diff(allotBySearch(w), got); diff != "" {
			t.Fatalf("grants (-search +got):\n%s", diff)
		}
		seen := map[string]bool{}
		for _, line := range got {
			addr := strings.Fields(line)[1]
			if seen[addr] {
				t.Fatalf("%s is given twice: %v", addr, got)
			}
			seen[addr] = true
		}
		for i, r := range w.requests {
			for n, family := range r.Families {
				_, wishes := r.wished(family)
				missing := !answers[i].has(family) && (wishes || len(w.pools) > 0 && !(r.Prefer && n > 0))
				if missing && len(answers[i].Shortfalls) == 0 {
					t.Fatalf("%s has no IPv%d address and is not told why", r.key(), family)
				}
			}
		}
	})
}

func TestAddressesDependNeitherOnOrderNorOnHowOftenTheyAreAskedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawTown(t)
		want := grants(w.requests, NewAllotter(w.pools, w.occupied).Allot(w.requests))
		source := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		source.Shuffle(len(w.pools), func(i, j int) { w.pools[i], w.pools[j] = w.pools[j], w.pools[i] })
		source.Shuffle(len(w.requests), func(i, j int) { w.requests[i], w.requests[j] = w.requests[j], w.requests[i] })
		answers := NewAllotter(w.pools, w.occupied).Allot(w.requests)
		if diff := cmp.Diff(want, grants(w.requests, answers)); diff != "" {
			t.Fatalf("in another order (-want +got):\n%s", diff)
		}
		for i := range w.requests {
			w.requests[i].Held = answers[i].Grants
		}
		if diff := cmp.Diff(want, grants(w.requests, NewAllotter(w.pools, w.occupied).Allot(w.requests))); diff != "" {
			t.Fatalf("asked again (-want +got):\n%s", diff)
		}
		if len(w.requests) == 0 {
			return
		}
		// Who stays keeps what he has when another goes.
		staying := grants(w.requests[1:], answers[1:])
		after := grants(w.requests[1:], NewAllotter(w.pools, w.occupied).Allot(w.requests[1:]))
		for _, line := range staying {
			if !slices.Contains(after, line) {
				t.Fatalf("%s went: %v lost %s", w.requests[0].key(), after, line)
			}
		}
	})
}

// lacks says whether a request is short of an address, whether or not that is worth a word.
func lacks(r Request, answer Allotment) bool { return len(answer.Grants) < len(r.Families) }

func TestOneAfterAnotherServicesAreGivenWhatTheyWouldHaveBeenGivenTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawTown(t)
		first := rapid.IntRange(0, len(w.requests)).Draw(t, "first")
		allotter := NewAllotter(w.pools, w.occupied)
		answers := allotter.Allot(w.requests[:first])
		short := false
		for i := range answers {
			short = short || lacks(w.requests[i], answers[i])
			w.requests[i].Held = answers[i].Grants
		}
		for i := first; i < len(w.requests); i++ {
			w.requests[i].Held = nil
		}
		// Where nobody is short, one of those who have may come again with another wish, too.
		again := w.requests[first:]
		if first > 0 && !short {
			again = w.requests[first-1:]
			again[0].Wishes = addrs(rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.6", "2001:db8::1"}).Draw(t, "wish"))
			for _, g := range again[0].Held {
				allotter.Release(g.Addr)
			}
			answers = answers[:first-1]
		}
		answers = append(answers, allotter.Allot(again)...)
		want := grants(w.requests, NewAllotter(w.pools, w.occupied).Allot(w.requests))
		if diff := cmp.Diff(want, grants(w.requests, answers)); diff != "" {
			t.Fatalf("grants (-together +one after another):\n%s", diff)
		}
	})
}

func TestAShortfallSaysWhatIsWrong(t *testing.T) {
	pool := func(text string) []Pool { return []Pool{{Name: "office", Prefixes: []netip.Prefix{prefix(text)}}} }
	one := Request{Namespace: "shop", Name: "web", Families: []int{4}}
	wish := one
	wish.Wishes = addrs("192.0.2.1")
	other := Request{Namespace: "shop", Name: "a", Families: []int{4}, Wishes: addrs("192.0.2.1"), Held: []Grant{{addrs("192.0.2.1")[0], "office"}}}
	tests := []struct {
		sentence string
		pools    []Pool
		requests []Request
		want     string // of the last request
	}{
		{"without pools, somebody else may give addresses", nil, []Request{one}, ""},
		{"no pool has the family", pool("2001:db8::/64"), []Request{one}, "no LoadBalancerPool with IPv4 addresses selects it"},
		{"the pool is used up", pool("192.0.2.1/32"), []Request{other, one}, "no IPv4 address is left in LoadBalancerPool office"},
		{"the wish is another's", pool("192.0.2.0/30"), []Request{other, wish}, "192.0.2.1, which it asks for, is of service shop/a"},
		{"the wish is in no pool", pool("198.51.100.0/24"), []Request{wish}, "no LoadBalancerPool that selects it may give it 192.0.2.1, which it asks for"},
		{"a link of two has no broadcast address", pool("192.0.2.0/31"), []Request{wish}, ""},
	}
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			answers := NewAllotter(test.pools, Occupied{}).Allot(test.requests)
			got := answers[len(answers)-1].Shortfalls
			switch {
			case test.want == "" && len(got) > 0:
				t.Errorf("got %v, want none", got)
			case test.want != "" && (len(got) != 1 || got[0].Message != test.want || got[0].Remedy == ""):
				t.Errorf("got %q, want %q and a remedy", got, test.want)
			}
		})
	}
}

func TestAPoolOfAWholeNetworkIsSearchedPastItsPodsAtOnce(t *testing.T) {
	pools := []Pool{{Name: "big", Prefixes: []netip.Prefix{prefix("2001:db8::/32")}}}
	requests := []Request{{Namespace: "a", Name: "b", Families: []int{6}}}
	answers := NewAllotter(pools, Occupied{Prefixes: []netip.Prefix{prefix("2001:db8::/48")}}).Allot(requests)
	if got, want := fmt.Sprint(answers[0].Grants), "[{2001:db8:1:: big}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
