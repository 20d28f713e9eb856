package node

import (
	"net/netip"
	"slices"
	"testing"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/table"
)

func TestOnlyWhatChangedIsWrittenToTheTablesOfTheKernel(t *testing.T) {
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	route := func(prefix, via string) table.Route {
		return table.Route{Prefix: netip.MustParsePrefix(prefix), Via: netip.MustParseAddr(via), Device: "eth0", Table: 254}
	}
	note := func(routes ...table.Route) (revision uint64) {
		txn := tables.DB.WriteTxn(tables.Routes)
		defer txn.Commit()
		if err := replace(txn, tables.Routes, routes, routeKey, sameRoute); err != nil {
			t.Fatal(err)
		}
		return tables.Routes.Revision(txn)
	}
	have := func() (out []table.Route) {
		for row := range tables.Routes.All(tables.DB.ReadTxn()) {
			out = append(out, *row)
		}
		return out
	}
	a, b, c := route("10.1.0.0/24", "172.30.0.2"), route("10.2.0.0/24", "172.30.0.3"), route("10.3.0.0/24", "172.30.0.4")
	first := note(a, b)
	if again := note(b, a); again != first {
		t.Errorf("the same routes in another order are written: revision %d, then %d", first, again)
	}
	moved := b
	moved.Via = c.Via
	note(moved, c)
	if got, want := have(), []table.Route{moved, c}; !slices.Equal(got, want) {
		t.Errorf("routes %v, want %v", got, want)
	}
	if note(); len(have()) != 0 {
		t.Errorf("routes %v stay though the kernel has none", have())
	}
}

func TestWhatPruningMustLeaveIsWhatTheNodeHas(t *testing.T) {
	n := startWeb(t)
	a := &Agent{tables: n.tables, numbering: &numbering{known: map[string]uint32{"node2": 5}}, uplink: uplink{ifindex: 4}}
	want := a.wantedRows()
	if !want.Nodes[5] || !want.Endpoints[1] || !want.Endpoints[uint32(bpf.EndpointHost)] || !want.Uplinks[4] ||
		len(want.Nodes)+len(want.Endpoints)+len(want.Uplinks) != 4 {
		t.Errorf("wanted %+v, want node 5, endpoint 1, the node's own endpoint and device 4", want)
	}
	if want.Addresses != nil || want.Frontends != nil {
		t.Errorf("%+v speaks for the loops", want)
	}
}
