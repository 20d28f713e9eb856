package datapath

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// podRow is a pod of this node.
func podRow() *table.Endpoint {
	return &table.Endpoint{
		ID: 3, Generation: 5, Namespace: "default", Pod: "web", IfIndex: 42, MTU: 1450, PodMAC: [6]byte{2, 1}, HostMAC: [6]byte{2, 2},
		Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00::5")},
	}
}

func TestEndpointRecordKeepsWhatPublishWrote(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	publish(t, d, &policy.Delta{Subjects: []policy.SubjectRow{{Endpoint: 3, Peer: 16, Ingress: 1, Egress: 2}}})
	row := podRow()
	want := bpf.Endpoint{
		Address4: bpf.AddressOf(row.Addrs[0]), Address6: bpf.AddressOf(row.Addrs[1]), PodMAC: row.PodMAC, HostMAC: row.HostMAC,
		IfIndex: 42, Generation: 5, MTU: 1450, Peer: 16, Ingress: 1, Egress: 2,
	}
	for _, when := range []string{"before the record", "again"} {
		if err := d.WriteEndpoint(row); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, must(d.Endpoint(3))); diff != "" {
			t.Errorf("subject published %s (-want +got):\n%s", when, diff)
		}
	}
}

func TestEndpointRecordOfAnotherUseStartsWithoutPolicy(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	row := podRow()
	if err := d.WriteEndpoint(row); err != nil {
		t.Fatal(err)
	}
	publish(t, d, &policy.Delta{Subjects: []policy.SubjectRow{{Endpoint: 3, Peer: 16, Ingress: 1, Egress: 2}}})
	row.Generation++
	if err := d.WriteEndpoint(row); err != nil {
		t.Fatal(err)
	}
	if got := must(d.Endpoint(3)); got.Peer != 0 || got.Ingress != 0 || got.Egress != 0 {
		t.Errorf("a new pod begins with its predecessor's policy: %+v", got)
	}
}

func TestDeletedEndpointIsEmpty(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	if err := d.WriteEndpoint(podRow()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.DeleteEndpoint(3); err != nil {
			t.Fatal(err)
		}
	}
	if got := must(d.Endpoint(3)); got != (bpf.Endpoint{}) {
		t.Errorf("left: %+v", got)
	}
}

func TestImpossibleRowsAreRefused(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	tooFar, noDevice := podRow(), podRow()
	tooFar.ID, noDevice.IfIndex = 64, 0
	for want, err := range map[string]error{
		"write endpoint default/web: id 64: there is room for 1 to 63": d.WriteEndpoint(tooFar),
		"write endpoint default/web: no device: create the pod's":      d.WriteEndpoint(noDevice),
		"delete endpoint 0: there is room for 1 to 63":                 d.DeleteEndpoint(0),
		"write node 64: there is room for 1 to 63":                     d.WriteNode(&Node{Number: 64}),
		"write node 0: there is room for 1 to 63":                      d.DeleteNode(0),
		"write uplink eth7: no device index":                           d.WriteUplink(&Uplink{Name: "eth7"}),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestNodesAndUplinksAreWrittenOnce(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	node := &Node{Number: 2, Tunnel: netip.MustParseAddr("192.0.2.2"), NextHop6: netip.MustParseAddr("2001:db8::2"), IfIndex: 4, Flags: 1}
	uplink := &Uplink{Name: "eth0", IfIndex: 4, Addr4: netip.MustParseAddr("192.0.2.1"), MTU: 1500}
	for range 2 {
		if err := d.WriteNode(node); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteUplink(uplink); err != nil {
			t.Fatal(err)
		}
	}
	if w := d.Writes(); w["node"] != 1 || w["uplink"] != 1 {
		t.Errorf("writes %v, want one each", w)
	}
	var gotNode bpf.Node
	var gotUplink bpf.Uplink
	if err := d.set.maps["nodes"].Lookup(uint32(2), &gotNode); err != nil {
		t.Fatal(err)
	}
	if err := d.set.maps["uplinks"].Lookup(uint32(4), &gotUplink); err != nil {
		t.Fatal(err)
	}
	wantNode := bpf.Node{Tunnel: bpf.AddressOf(node.Tunnel), NextHop6: bpf.AddressOf(node.NextHop6), IfIndex: 4, Flags: 1}
	if diff := cmp.Diff(wantNode, gotNode); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(bpf.Uplink{Address4: bpf.AddressOf(uplink.Addr4), MTU: 1500}, gotUplink); diff != "" {
		t.Errorf("uplink (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := d.DeleteUplink(4); err != nil {
			t.Fatal(err)
		}
	}
}

// webService is a frontend with two backends.
func webService() *service.Delta {
	key := service.FrontendKey{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: 6}
	return &service.Delta{
		Backends: []service.BackendRow{
			{Index: 1, Addr: netip.MustParseAddr("10.1.0.5"), Port: 8080, Proto: 6, State: bpf.BackendActive, Node: 2},
			{Index: 2, Addr: netip.MustParseAddr("fd00::5"), Port: 8080, Proto: 6, State: bpf.BackendTerminating},
		},
		Slots:     []service.SlotRange{{First: 4, Backends: []uint32{1, 2, 1}}},
		Frontends: []service.FrontendRow{{FrontendKey: key, Inside: bpf.SlotRange{First: 4, Count: 3}, Service: 9, AffinitySeconds: 30}},
	}
}

func TestServiceIsWrittenAsProgramsReadIt(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	delta := webService()
	for range 2 {
		if err := d.PublishServices(t.Context(), delta); err != nil {
			t.Fatal(err)
		}
	}
	var backend bpf.Backend
	if err := d.set.maps["backends"].Lookup(uint32(1), &backend); err != nil {
		t.Fatal(err)
	}
	wantBackend := bpf.Backend{
		Address: bpf.AddressOf(delta.Backends[0].Addr), Port: bpf.NetPort(8080), Protocol: 6, State: bpf.BackendActive, Node: 2,
	}
	if diff := cmp.Diff(wantBackend, backend); diff != "" {
		t.Errorf("backend (-want +got):\n%s", diff)
	}
	var slot uint32
	if err := d.set.maps["slots"].Lookup(uint32(5), &slot); err != nil || slot != 2 {
		t.Errorf("slot 5 holds %d (%v), want 2", slot, err)
	}
	var frontend bpf.Frontend
	key := frontendKey(delta.Frontends[0].FrontendKey)
	if err := d.set.maps["frontends"].Lookup(&key, &frontend); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(bpf.Frontend{Inside: bpf.SlotRange{First: 4, Count: 3}, Service: 9, AffinitySeconds: 30}, frontend); diff != "" {
		t.Errorf("frontend (-want +got):\n%s", diff)
	}
	if w := d.Writes(); w["backend"] != 2 || w["slots"] != 1 {
		t.Errorf("writes %v, want each backend and the slot range once", w)
	}
}

func TestRemovedServiceIsGoneAndItsBackendsKnowIt(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	delta := webService()
	if err := d.PublishServices(t.Context(), delta); err != nil {
		t.Fatal(err)
	}
	gone := &service.Delta{Removed: []service.FrontendKey{delta.Frontends[0].FrontendKey}, Retired: delta.Backends}
	for i := range gone.Retired {
		gone.Retired[i].State = bpf.BackendGone
	}
	if err := d.PublishServices(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if left := readState(t, d).Frontends; len(left) > 0 {
		t.Errorf("frontends left: %v", left)
	}
	var backend bpf.Backend
	if err := d.set.maps["backends"].Lookup(uint32(1), &backend); err != nil || backend.State != bpf.BackendGone || backend.Address.IsZero() {
		t.Errorf("backend 1 is %+v (%v), want gone with its address", backend, err)
	}
}

func TestImpossibleServiceIsRefusedWhole(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	before := readState(t, d)
	for want, spoil := range map[string]func(*service.Delta){
		"backend 256 (10.9.9.9): there is room for 1 to 255": func(s *service.Delta) {
			s.Backends = append(s.Backends, service.BackendRow{Index: 256, Addr: netip.MustParseAddr("10.9.9.9")})
		},
		"backend 0 (10.9.9.9): there is room for 1 to 255": func(s *service.Delta) {
			s.Retired = append(s.Retired, service.BackendRow{Addr: netip.MustParseAddr("10.9.9.9")})
		},
		"slots 1023 to 1024: there is room for 1024": func(s *service.Delta) {
			s.Slots = append(s.Slots, service.SlotRange{First: 1023, Backends: []uint32{1, 2}})
		},
		"frontend 10.96.0.1 port 80: slots 4 to 1027: there is room for 1024": func(s *service.Delta) { s.Frontends[0].Inside.Count = 1024 },
	} {
		delta := webService()
		spoil(delta)
		if err := d.PublishServices(t.Context(), delta); err == nil || err.Error() != "publish services: "+want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if diff := cmp.Diff(before, readState(t, d)); diff != "" {
		t.Errorf("half applied (-before +after):\n%s", diff)
	}
}

func TestPruneRemovesExactlyWhatNobodyWants(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	publish(t, d, smallDelta())
	services := webService()
	other := services.Frontends[0]
	other.Port, other.Inside.Count = 81, 0
	services.Frontends = append(services.Frontends, other)
	if err := d.PublishServices(t.Context(), services); err != nil {
		t.Fatal(err)
	}
	second := podRow()
	second.ID = 4
	for _, err := range []error{
		d.WriteEndpoint(podRow()), d.WriteEndpoint(second),
		d.WriteNode(&Node{Number: 1, IfIndex: 1}), d.WriteNode(&Node{Number: 2, IfIndex: 1}),
		d.WriteUplink(&Uplink{IfIndex: 1, MTU: 1}), d.WriteUplink(&Uplink{IfIndex: 2, MTU: 1}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	full := readState(t, d)
	if got, err := d.Prune(t.Context(), Wanted{}); err != nil || got != (Pruned{}) {
		t.Fatalf("pruned %+v (%v) though nothing is known to be complete", got, err)
	}
	if diff := cmp.Diff(full, readState(t, d)); diff != "" {
		t.Fatalf("state (-before +after):\n%s", diff)
	}
	want := Wanted{
		Addresses: map[netip.Prefix]bool{netip.MustParsePrefix("10.1.0.5/32"): true, netip.MustParsePrefix("2001:db8::/32"): true},
		Frontends: map[service.FrontendKey]bool{services.Frontends[0].FrontendKey: true},
		Nodes:     map[uint32]bool{2: true}, Endpoints: map[uint32]bool{3: true}, Uplinks: map[uint32]bool{2: true},
	}
	got, err := d.Prune(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Pruned{Addresses: 1, Prefixes: 2, Frontends: 1, Nodes: 1, Endpoints: 1, Uplinks: 1}, got); diff != "" {
		t.Errorf("pruned (-want +got):\n%s", diff)
	}
	if again, err := d.Prune(t.Context(), want); err != nil || again != (Pruned{}) {
		t.Errorf("the second time: %+v (%v)", again, err)
	}
	after := readState(t, d)
	if len(after.Addresses) != 1 || len(after.Prefixes) != 1 || len(after.Frontends) != 1 || after.Endpoints[3].IfIndex != 42 || after.Nodes[2].IfIndex != 1 {
		t.Errorf("what is wanted went, too: %+v", after)
	}
}
