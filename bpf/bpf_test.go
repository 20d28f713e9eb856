package bpf

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// goTypes are the Go forms of everything that is a key or value of a map, or travels through one.
func goTypes() map[string]any {
	return map[string]any{
		"node_config": NodeConfig{}, "endpoint": Endpoint{}, "endpoint_use": EndpointUse{}, "address": Address{},
		"peer_info": PeerInfo{}, "prefix": Prefix{}, "node": Node{}, "uplink": Uplink{}, "announcement": Announcement{}, "rival": Rival{},
		"policy_cell": PolicyCell{}, "class_row": ClassRow{},
		"flow_key": FlowKey{}, "flow": Flow{}, "nat_key": NATKey{}, "nat_mapping": NATMapping{},
		"fragment_key": FragmentKey{}, "fragment": Fragment{}, "frontend_key": FrontendKey{}, "frontend": Frontend{},
		"backend": Backend{}, "socket_service": SocketService{}, "datagram_key": DatagramKey{},
		"datagram_service": DatagramService{}, "counter": Counter{}, "assignment_key": AssignmentKey{},
		"assignment": Assignment{}, "affinity_key": AffinityKey{}, "affinity": Affinity{}, "guard": Guard{}, "gateway_route": GatewayRoute{}, "gateway": Gateway{}, "backend_client": BackendClient{},
	}
}

func load(t *testing.T, name string) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// The kernel's allocator keeps objects of 256 bytes and of 512: an entry of `flows` takes 48 bytes of its own (struct htab_elem), 8 of
// the allocator's, key and value.
func TestAFlowFitsTheKernelsNextSize(t *testing.T) {
	if got := 48 + 8 + binary.Size(FlowKey{}) + binary.Size(Flow{}); got > 256 {
		t.Errorf("an entry of flows takes %d bytes, and so 512 of the kernel's memory", got)
	}
}

func TestGoStructsAreAsLargeAsTheirMapsSay(t *testing.T) {
	types := goTypes()
	check := func(m *ebpf.MapSpec, typ btf.Type, size uint32) {
		name := typ.TypeName()
		goType, ok := types[name]
		if !ok {
			if _, composite := typ.(*btf.Struct); composite && name != "packet" { // private to the programs
				t.Errorf("map %s: struct %s has no Go form in this test", m.Name, name)
			}
			return
		}
		if got := binary.Size(goType); uint32(got) != size {
			t.Errorf("map %s: %s is %d bytes in Go and %d in the map", m.Name, name, got, size)
		}
		if got := reflect.TypeOf(goType).Size(); uint32(got) != size {
			t.Errorf("map %s: %s takes %d bytes of Go memory and %d in the map", m.Name, name, got, size)
		}
	}
	for _, object := range Objects() {
		for _, m := range load(t, object).Maps {
			if m.Key != nil {
				check(m, m.Key, m.KeySize)
			}
			if m.Value != nil {
				check(m, m.Value, m.ValueSize)
			}
		}
	}
}

func TestTheNodeConfigOfEveryObjectIsAsLargeAsItsGoForm(t *testing.T) {
	for _, object := range Objects() {
		config := load(t, object).Variables["config"]
		if config == nil {
			t.Errorf("%s has no config", object)
			continue
		}
		if got, want := uint64(config.Size()), uint64(binary.Size(NodeConfig{})); got != want {
			t.Errorf("%s: config is %d bytes, bpf.NodeConfig %d", object, got, want)
		}
	}
}

func TestObjectsAgreeOnEveryMap(t *testing.T) {
	first := map[string]string{}
	for _, object := range Objects() {
		for name, m := range load(t, object).Maps {
			hash := SchemaHash(m)
			if was, ok := first[name]; ok && was != hash {
				t.Errorf("map %s has another layout in %s than elsewhere", name, object)
			}
			first[name] = hash
		}
	}
}

func TestTheSchemaHashTellsLayoutsApart(t *testing.T) {
	maps := load(t, "pod").Maps
	if SchemaHash(maps["flows"]) == SchemaHash(maps["nat"]) {
		t.Error("flows and nat have one hash")
	}
	grown := maps["flows"].Copy()
	grown.MaxEntries *= 2
	if SchemaHash(grown) != SchemaHash(maps["flows"]) {
		t.Error("the number of entries is part of the hash, so a resized map could not be adopted")
	}
}

func TestLoadNamesTheObjectThatIsMissing(t *testing.T) {
	_, err := Load("none")
	if got, want := err.Error(), `bpf object "none": there is none of that name`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAddressesSurviveTheWayThere(t *testing.T) {
	for _, text := range []string{"10.1.2.3", "fd00::1", "0.0.0.0", "255.255.255.255"} {
		addr := netip.MustParseAddr(text)
		if got := AddressOf(addr).Addr(); got != addr {
			t.Errorf("%s became %s", addr, got)
		}
	}
	if AddressOf(netip.Addr{}).Addr().IsValid() {
		t.Error("no address became one")
	}
	if got, want := AddressOf(netip.MustParseAddr("1.2.3.4")).String(), "1.2.3.4"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := (Address{}).String(), "-"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPrefixesOfIPv4AreMapped(t *testing.T) {
	got := PrefixOf(netip.MustParsePrefix("10.1.2.3/8"))
	want := Prefix{Length: 104, Address: netip.MustParseAddr("::ffff:10.0.0.0").As16()}
	if got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := PrefixOf(netip.MustParsePrefix("fd00::/16")).Length; got != 16 {
		t.Errorf("an IPv6 prefix of 16 bits has length %d", got)
	}
}

func TestPortsSwap(t *testing.T) {
	if got := Port(NetPort(8080)); got != 8080 {
		t.Errorf("8080 became %d", got)
	}
	memory := make([]byte, 2)
	binary.NativeEndian.PutUint16(memory, NetPort(0x1234))
	if memory[0] != 0x12 || memory[1] != 0x34 {
		t.Errorf("port 0x1234 lies in memory as % x", memory)
	}
}

func TestEveryReasonHasANameAndSaysWhatItMeans(t *testing.T) {
	seen := map[string]bool{}
	for _, reason := range Reasons() {
		if reason.String() == "" || reason.About() == "" || seen[reason.String()] {
			t.Errorf("reason %d is called %q and means %q", reason, reason, reason.About())
		}
		seen[reason.String()] = true
	}
	if got, want := DropPolicyDeny.String(), "policy-deny"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (AddressFlagHost | AddressFlagCluster).String(); got != "host|cluster" {
		t.Errorf("flags print as %q", got)
	}
}
