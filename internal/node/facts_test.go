package node

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
	"tendril.io/tendril/internal/table"
)

// testFacts are those of node1 over empty tables.
func testFacts(t *testing.T, config Config) *facts {
	t.Helper()
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	config.Node, config.Cluster = "node1", "default"
	nodes := &numbering{numbers: policytest.NewNumbers(), known: map[string]uint32{}}
	return newFacts(tables, config, nodes.number)
}

// fact is what is known of an address as such, or of the prefix that text is.
func (f *facts) fact(t *testing.T, text string) policy.AddressFact {
	t.Helper()
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		prefix = exact(netip.MustParseAddr(text))
	}
	fact, _ := f.address(f.tables.DB.ReadTxn(), prefix)
	return fact
}

func TestNodePortsAreWhereTheyAreWanted(t *testing.T) {
	f := testFacts(t, Config{NodePortAddresses: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24")}})
	f.setNode(&table.Node{Name: "node1", Addresses: addrs("172.30.0.1"), Routers: addrs("10.1.0.1")}, false)
	for address, want := range map[string]bool{"172.30.0.1": true, "10.1.0.1": false} {
		if got := f.fact(t, address).Flags&uint32(bpf.AddressFlagNodePort) != 0; got != want {
			t.Errorf("node ports at %s: %v, want %v", address, got, want)
		}
	}
}

func TestAnotherConfigurationHasAddressesLookedAtAgain(t *testing.T) {
	list := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	f := testFacts(t, Config{NoMasquerade: list("198.51.100.0/24")})
	f.setNode(&table.Node{Name: "node1", Addresses: addrs("172.30.0.1")}, false)
	f.setDevice(&table.Device{Index: 7, Addrs: list("192.0.2.7/32")}, false)
	f.setAPIServers(map[netip.Addr]bool{netip.MustParseAddr("203.0.113.9"): true})
	for _, step := range []struct {
		config Config
		want   []netip.Prefix
		ports  string // the address that has node ports
		kept   string // the prefix that keeps pods' addresses, as the API server in it does
	}{
		{Config{NoMasquerade: list("198.51.100.0/24")}, nil, "172.30.0.1", "198.51.100.0/24"},
		{Config{NoMasquerade: list("203.0.113.0/24")}, list("198.51.100.0/24", "203.0.113.0/24", "203.0.113.9/32"), "192.0.2.7", "203.0.113.9/32"},
		{Config{NoMasquerade: list("203.0.113.0/24"), NodePortAddresses: list("192.0.2.0/24")}, list("172.30.0.1/32", "192.0.2.7/32"), "192.0.2.7", "203.0.113.0/24"},
		{Config{}, list("172.30.0.1/32", "192.0.2.7/32", "203.0.113.0/24", "203.0.113.9/32"), "172.30.0.1", ""},
	} {
		got := f.configure(&step.config)
		slices.SortFunc(got, netip.Prefix.Compare)
		if !slices.Equal(got, step.want) {
			t.Errorf("%+v: %v are looked at again, want %v", step.config.NoMasquerade, got, step.want)
		}
		if f.fact(t, step.ports).Flags&uint32(bpf.AddressFlagNodePort) == 0 {
			t.Errorf("with %v there are no node ports at %s", step.config.NodePortAddresses, step.ports)
		}
		if step.kept != "" && f.fact(t, step.kept).Flags&uint32(bpf.AddressFlagNoMasquerade) == 0 {
			t.Errorf("with %v pods keep no address towards %s", step.config.NoMasquerade, step.kept)
		}
	}
}

// What a device has is the node's while it has it, but not what another node says of itself, nor what kube-proxy calls the node's.
func TestAddressesOfDevicesAreTheNodes(t *testing.T) {
	f := testFacts(t, Config{})
	f.setNode(&table.Node{Name: "node2", Addresses: addrs("172.30.0.2")}, false)
	device := &table.Device{Index: 7, Name: "eth1", Addrs: []netip.Prefix{
		netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64"), netip.MustParsePrefix("172.30.0.2/24"),
		netip.MustParsePrefix("fe80::7/64"), netip.MustParsePrefix("127.0.0.2/8"),
	}}
	services := &table.Device{Index: 8, Name: "kube-ipvs0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.96.0.1/32")}}
	f.setDevice(services, false)
	if got := len(f.setDevice(device, false)); got != 3 {
		t.Errorf("%d prefixes to look at, want 3", got)
	}
	if again := f.setDevice(device, false); again != nil {
		t.Errorf("nothing changed, and %v are to be looked at", again)
	}
	host := bpf.AddressFlagCluster | bpf.AddressFlagHost | bpf.AddressFlagNodePort
	for address, want := range map[string]bpf.AddressFlag{
		"192.0.2.7": host, "2001:db8::7": host, "172.30.0.2": bpf.AddressFlagCluster | bpf.AddressFlagRemoteNode,
		"fe80::7": 0, "127.0.0.2": 0, "10.96.0.1": 0,
	} {
		if got := f.fact(t, address).Flags; got != uint32(want) {
			t.Errorf("%s has flags %x, want %x", address, got, want)
		}
	}
	f.setDevice(device, true)
	if got := f.fact(t, "192.0.2.7").Flags; got != 0 {
		t.Errorf("the device is gone, and its address has flags %x", got)
	}
}

func TestEachAddressOfANodeIsWhatItIsFor(t *testing.T) {
	for _, test := range []struct {
		node, address string
		mode          Mode
		reserved      identity.Reserved
		flags         bpf.AddressFlag
		away          bool // reached through the node
	}{
		{"node1", "172.30.0.1", ModeNative, identity.Host, bpf.AddressFlagCluster | bpf.AddressFlagHost | bpf.AddressFlagNodePort, false},
		{"node1", "10.1.0.1", ModeVXLAN, identity.Host, bpf.AddressFlagCluster | bpf.AddressFlagHost | bpf.AddressFlagNodePort, false},
		{"node1", "10.1.0.0/24", ModeVXLAN, identity.Unknown, bpf.AddressFlagCluster | bpf.AddressFlagUnknown, true},
		{"node2", "172.30.0.1", ModeNative, identity.RemoteNode, bpf.AddressFlagCluster | bpf.AddressFlagRemoteNode, true},
		{"node2", "10.1.0.2", ModeVXLAN, identity.RemoteNode, bpf.AddressFlagCluster | bpf.AddressFlagRemoteNode | bpf.AddressFlagTunnel, true},
		{"node2", "10.1.0.0/24", ModeVXLAN, identity.Unknown, bpf.AddressFlagCluster | bpf.AddressFlagUnknown | bpf.AddressFlagTunnel, true},
	} {
		t.Run(fmt.Sprint(test.node, " ", test.address, " ", test.mode), func(t *testing.T) {
			f := testFacts(t, Config{Mode: test.mode})
			f.setNode(&table.Node{
				Name: test.node, Addresses: addrs("172.30.0.1"), Routers: addrs("10.1.0.1"), Healths: addrs("10.1.0.2"),
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.77/24")}, // host bits, which a store may hold
			}, false)
			got := f.fact(t, test.address)
			if got.Reserved != test.reserved || got.Flags != uint32(test.flags) || (got.Node != 0) != test.away {
				t.Errorf("got %+v with flags %v, want %v with %v", got, bpf.AddressFlag(got.Flags), test.reserved, test.flags)
			}
		})
	}
}

// A machine comes back under another name with its old address before its old name is deleted.
func TestAnAddressOfTwoNodesIsOneNodesInWhateverOrderTheyCome(t *testing.T) {
	row := func(name string) *table.Node { return &table.Node{Name: name, Addresses: addrs("172.30.0.9")} }
	owner := func(f *facts) string {
		at, _ := f.owner(exact(netip.MustParseAddr("172.30.0.9")))
		return at.node
	}
	for _, order := range [][]string{{"node2", "node3"}, {"node3", "node2"}, {"node3", "node2", "node3"}} {
		f := testFacts(t, Config{})
		for _, name := range order {
			f.setNode(row(name), false)
		}
		if got := owner(f); got != "node2" {
			t.Errorf("%v: it is %q's, want the lowest name's", order, got)
		}
		if dirty := f.setNode(row("node2"), true); len(dirty) != 1 || owner(f) != "node3" {
			t.Errorf("%v: without node2 it is %q's and %v are looked at again, want node3's", order, owner(f), dirty)
		}
		f.setNode(row("node1"), false)
		if got := f.fact(t, "172.30.0.9"); got.Reserved != identity.Host {
			t.Errorf("%v: this node's own address is %v to it", order, got.Reserved)
		}
		f.setNode(row("node1"), true)
		f.setNode(row("node3"), true)
		if len(f.claims)+len(f.byNode) != 0 {
			t.Errorf("%v: %v %v stay when all are gone", order, f.claims, f.byNode)
		}
	}
}

func TestDestinationsThatKeepThePodsAddressAreTheWorldWithAFlag(t *testing.T) {
	f := testFacts(t, Config{NoMasquerade: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	want := policy.AddressFact{Reserved: identity.World, Flags: uint32(bpf.AddressFlagNoMasquerade)}
	if got := f.fact(t, "192.0.2.0/24"); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAPodIsFoundByUIDBecauseItsNameMayBeItsSuccessors(t *testing.T) {
	f := testFacts(t, Config{})
	txn := f.tables.DB.WriteTxn(f.tables.Pods, f.tables.LabelSets)
	set := &table.LabelSet{Hash: identity.ID{1}, Namespace: "shop", Labels: map[string]string{"role": "client"}}
	f.tables.LabelSets.Insert(txn, set)
	f.tables.Pods.Insert(txn, &table.Pod{Node: "node2", Namespace: "shop", Name: "db-0", UID: "second", Labels: set.Hash})
	txn.Commit()
	read := f.tables.DB.ReadTxn()
	for uid, want := range map[string]identity.Reserved{"first": identity.Init, "second": identity.Unknown, "": identity.Unknown} {
		if got := f.workload(read, uid, "shop", "db-0", nil, nil); got.Reserved != want {
			t.Errorf("uid %q: %+v, want reserved %v", uid, got, want)
		}
	}
	arg := &table.LabelSet{Namespace: "shop", Labels: map[string]string{"role": "arg"}}
	if got := f.workload(read, "first", "shop", "db-0", arg, nil); got.Labels.String() != "role=arg" || got.Cluster != "default" {
		t.Errorf("%+v, want the labels of the CNI arguments where the store has said nothing", got)
	}
}
