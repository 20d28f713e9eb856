package service

import (
	"fmt"
	"net/netip"
	"testing"

	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// counter gives out numbers as fast as a map does.
type counter struct {
	held map[assignment]uint32
	next uint32
}

func (c *counter) Assign(kind policy.Kind, digest policy.Digest, n uint32) (uint32, error) {
	first := c.next + 1
	c.next += n
	c.held[assignment{kind, digest}] = first
	return first, nil
}

func (c *counter) Release(kind policy.Kind, digest policy.Digest) {
	delete(c.held, assignment{kind, digest})
}

// cluster returns services with five backends each.
func cluster(services int) ([]table.Service, []table.Backends) {
	var ss []table.Service
	var bs []table.Backends
	for i := range services {
		name := fmt.Sprintf("svc-%d", i)
		s := web(name)
		s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		var rows []table.Backend
		for j := range 5 {
			rows = append(rows, table.Backend{
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(1 + j), byte(i >> 8), byte(i)})},
				Node:  fmt.Sprintf("node-%d", i%5000), Ready: true, Serving: true,
			})
		}
		ss, bs = append(ss, s), append(bs, behind(name, rows...))
	}
	return ss, bs
}

func load(b *testing.B, ss []table.Service, bs []table.Backends) *Brain {
	b.Helper()
	brain, err := New(Config{}, &counter{held: map[assignment]uint32{}})
	if err != nil {
		b.Fatal(err)
	}
	for i := range ss {
		brain.SetService(ss[i])
		brain.SetBackends(bs[i])
	}
	brain.Flush()
	return brain
}

// BenchmarkLoad is the first flush of 20k services with five backends each.
func BenchmarkLoad(b *testing.B) {
	ss, bs := cluster(20_000)
	for b.Loop() {
		load(b, ss, bs)
	}
}

// BenchmarkOneChange takes a backend away and brings it back; its cost must not know how many services there are.
func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{10, 1_000, 20_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			ss, bs := cluster(n)
			brain := load(b, ss, bs)
			full, less := bs[n/2], bs[n/2]
			less.Backends = less.Backends[1:]
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				brain.SetBackends([]table.Backends{less, full}[i%2])
				brain.Flush()
			}
		})
	}
}

// BenchmarkViews lists 20k services, and shows one of them.
func BenchmarkViews(b *testing.B) {
	ss, bs := cluster(20_000)
	brain := load(b, ss, bs)
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			brain.Views("")
		}
	})
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			brain.Views("default/svc-10000")
		}
	})
}

// BenchmarkMaglev fills one table.
func BenchmarkMaglev(b *testing.B) {
	set := setOf(10)
	for b.Loop() {
		if _, err := slotOrder(set, AlgorithmMaglev, DefaultMaglevSize); err != nil {
			b.Fatal(err)
		}
	}
}

// The work of one change is that of one service, however many there are.
func TestOneChangeTouchesOneService(t *testing.T) {
	n := newTestNode(t, Config{})
	ss, bs := cluster(200)
	for i := range ss {
		n.SetService(ss[i])
		n.SetBackends(bs[i])
	}
	n.flush()
	less := bs[7]
	less.Backends = less.Backends[1:]
	n.SetBackends(less)
	want := Work{ServicesRecomputed: 1, SlotsComputed: 4, KernelWrites: 1 + 1 + 4}
	if got := n.flush().Work; got != want {
		t.Errorf("work %+v, want %+v", got, want)
	}
}
