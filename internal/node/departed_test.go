package node

import (
	"net/netip"
	"testing"
	"time"

	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/table"
)

func TestDepartedNamesLastForMinutesAndAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	d := newDeparted[netip.Addr]()
	d.now = func() time.Time { return now }
	first := netip.MustParseAddr("10.0.0.1")
	d.note(first, flow.PartyInfo{Pod: "a"})
	addr := netip.MustParseAddr("10.1.0.0")
	for _, step := range []struct {
		after time.Duration
		known bool
	}{{departedFor - time.Second, true}, {2 * time.Second, true}, {departedFor, false}} {
		now = now.Add(step.after)
		if who, ok := d.find(first); ok != step.known || ok && who.Pod != "a" {
			t.Errorf("%s later: %+v, %v", step.after, who, ok)
		}
	}
	for range 5 * departedMax {
		addr = addr.Next()
		d.note(addr, flow.PartyInfo{Pod: "b"})
	}
	if n := len(d.young) + len(d.old); n > 2*departedMax {
		t.Errorf("%d names are kept, at most %d", n, 2*departedMax)
	}
	if _, ok := d.find(addr); !ok {
		t.Error("the latest is forgotten though others are kept")
	}
	now = now.Add(3 * departedFor)
	if _, ok := d.find(addr); ok {
		t.Error("a name outlives its time because nobody asked meanwhile")
	}
}

func TestAPodThatIsGoneKeepsItsNameInRecordsInWhateverOrderItsRowsGo(t *testing.T) {
	for _, order := range []string{"pod, address", "address, pod"} {
		t.Run(order, func(t *testing.T) {
			n := startNode1(t)
			close(n.loaded)
			n.labelled("client", "node2", map[string]string{"role": "client"})
			ip := &table.IP{Node: "node2", Addr: netip.MustParseAddr("10.244.2.9"), PodUID: "uid-client", Namespace: "shop", Pod: "client"}
			insert(n, n.tables.IPs, ip)
			goPod := func() {
				remove(n, n.tables.Pods, &table.Pod{Node: "node2", Namespace: "shop", Name: "client", UID: "uid-client"})
			}
			goIP := func() { remove(n, n.tables.IPs, ip) }
			names := resolver{&Agent{tables: n.tables, policies: n.loop}}
			want := names.Party(ip.Addr, 1000, 0)
			eventually(t, "the loop knows the address", func() bool {
				known := false
				n.datapath.with(func() { _, known = n.datapath.kernel.Rows[exact(ip.Addr)] })
				return known
			})
			if want.Pod != "client" || len(want.Labels) != 1 {
				t.Fatalf("while it is there: %+v", want)
			}
			steps := []func(){goPod, goIP}
			if order == "address, pod" {
				steps = []func(){goIP, goPod}
			}
			for _, step := range steps {
				step()
				eventually(t, "the loop has seen it", func() bool {
					got := names.Party(ip.Addr, 1000, 0)
					return got.Identity != identity.World.String()
				})
			}
			eventually(t, "its name is that of before", func() bool {
				got := names.Party(ip.Addr, 1000, 0)
				return got.Identity == want.Identity && got.Pod == "client" && got.Node == "node2"
			})
		})
	}
}
