package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/table"
)

func selector(t *testing.T, requirements ...label.Requirement) label.Selector {
	t.Helper()
	s, err := label.NewSelector(requirements...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ranges(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func TestAPodIsOfTheSetOfTheObjectsThatSelectIt(t *testing.T) {
	p := New()
	web, db := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::3")
	p.SetPod(web, Pod{Namespace: "shop", Labels: label.SetOf(map[string]string{"app": "web"}), Local: true})
	p.SetPod(db, Pod{Namespace: "shop", Labels: label.SetOf(map[string]string{"app": "db"})})
	if pods, _ := p.Flush(); len(pods) != 0 {
		t.Errorf("without objects: %v, want nobody selected", pods)
	}
	p.SetObject(&table.EgressGateway{Name: "all", Namespaces: selector(t, label.NamespaceEquals("team", "red")), Destinations: ranges("203.0.113.0/24")})
	p.SetObject(&table.EgressGateway{Name: "web", Pods: selector(t, label.Equals("app", "web")), Destinations: ranges("198.51.100.0/24")})
	pods, moved := p.Flush()
	if got, want := len(pods), 1; got != want || pods[web] == 0 || !moved {
		t.Errorf("before the namespace is red: %v, moved %v, want %s alone", pods, moved, web)
	}
	alone := pods[web]
	p.SetNamespace("shop", map[string]string{"team": "red"})
	pods, moved = p.Flush()
	if pods[web] == 0 || pods[db] == 0 || pods[web] == pods[db] || pods[web] == alone || !moved {
		t.Errorf("after: %v, moved %v, want two sets", pods, moved)
	}
	if diff := cmp.Diff([]netip.Addr{web}, p.Pods("all"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("pods of this node (-want +got):\n%s", diff)
	}
	p.DeleteObject("web")
	p.DeletePod(db)
	if pods, _ = p.Flush(); pods[db] != 0 || pods[web] == 0 {
		t.Errorf("in the end: %v, want %s out and %s of the set of all", pods, db, web)
	}
	if pods, moved = p.Flush(); len(pods) != 0 || moved {
		t.Errorf("nothing changed, yet %v, moved %v", pods, moved)
	}
}

// An agent that starts again must come to the numbers that the kernel has, whatever the order in which it hears of things.
func TestNumbersAreOfNamesAndNotOfOrder(t *testing.T) {
	a, b := New(), New()
	objects := []*table.EgressGateway{{Name: "x", Destinations: ranges("203.0.113.0/24")}, {Name: "y", Destinations: ranges("203.0.113.0/25")}}
	pod := netip.MustParseAddr("10.1.0.2")
	for _, o := range objects {
		a.SetObject(o)
	}
	a.SetPod(pod, Pod{Namespace: "shop"})
	b.SetPod(pod, Pod{Namespace: "shop"})
	b.Flush()
	for _, o := range slices.Backward(objects) {
		b.SetObject(o)
		b.Flush()
	}
	of, _ := a.Flush()
	if got, want := b.Placed()[pod], of[pod]; got != want {
		t.Errorf("set %d, want %d", got, want)
	}
	if diff := cmp.Diff(a.Routes(), b.Routes(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("routes (-a +b):\n%s", diff)
	}
}

// The reference asks every object; the routes are asked as the kernel does, by the longest that holds the address.
func TestRoutesSayWhatObjectsSay(t *testing.T) {
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		bits := rapid.IntRange(0, 6).Draw(t, "bits")
		addr := netip.AddrFrom4([4]byte{byte(rapid.IntRange(0, 63).Draw(t, "first") << 2)})
		return netip.PrefixFrom(addr, bits).Masked()
	})
	rapid.Check(t, func(t *rapid.T) {
		p := New()
		p.SetPod(netip.MustParseAddr("10.1.0.2"), Pod{})
		for i := range rapid.IntRange(1, 4).Draw(t, "objects") {
			p.SetObject(&table.EgressGateway{
				Name:         fmt.Sprint("o", i),
				Destinations: rapid.SliceOfN(prefix, 1, 4).Draw(t, "destinations"),
				Exceptions:   rapid.SliceOfN(prefix, 0, 3).Draw(t, "exceptions"),
			})
		}
		p.Flush()
		for first := range 64 {
			addr := netip.AddrFrom4([4]byte{byte(first << 2), 1})
			want := uint32(0)
			best := -1
			for _, o := range p.Objects() {
				if slices.ContainsFunc(o.Exceptions, func(r netip.Prefix) bool { return r.Contains(addr) }) {
					continue
				}
				for _, r := range o.Destinations {
					if r.Contains(addr) && r.Bits() > best {
						best, want = r.Bits(), p.Gateway(o.Name, true)
					}
				}
			}
			got, length := uint32(0), -1
			for _, route := range p.Routes() {
				if route.Prefix.Contains(addr) && route.Prefix.Bits() > length {
					length, got = route.Prefix.Bits(), route.Gateway
				}
			}
			if got != want {
				t.Fatalf("%s: gateway %d, want %d", addr, got, want)
			}
		}
	})
}
