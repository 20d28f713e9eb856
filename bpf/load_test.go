package bpf

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// needRoot skips a test that has to load programs; the only reason for which one may be skipped.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading programs needs root")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
}

// testConfig is the node that tests run on, with everything switched on.
func testConfig() NodeConfig {
	return NodeConfig{
		Node4: AddressOf(netip.MustParseAddr("192.0.2.1")), Node6: AddressOf(netip.MustParseAddr("2001:db8::1")),
		Router4: AddressOf(netip.MustParseAddr("10.1.0.1")), Router6: AddressOf(netip.MustParseAddr("fd01::1")),
		Loopback4: AddressOf(netip.MustParseAddr("169.254.99.1")), Loopback6: AddressOf(netip.MustParseAddr("fd01:99::1")),
		Features:      FeatureTunnel | FeatureMasquerade | FeatureServices | FeatureFlowRecords | FeatureIPv4 | FeatureIPv6,
		UplinkIfIndex: 100, VNI: 7, PodMTU: 1500, TunnelMTU: 1450, ClassWords: 2, HalfOpenLimit: 4, OutsideHalfOpenLimit: 1 << 16,
		NATPortMin: 40000, NATPortMax: 40009, EventWakeupBytes: 1 << 20, OverlayPort: 8472,
	}
}

// shrink makes maps small enough for a test, where the number of entries does not matter.
func shrink(spec *ebpf.CollectionSpec) {
	for _, m := range spec.Maps {
		if m.MaxEntries > 4096 && m.Type != ebpf.RingBuf {
			m.MaxEntries = 4096
		}
		if m.Type == ebpf.RingBuf {
			m.MaxEntries = 1 << 18
		}
	}
}

// loadObject loads an object with its configuration, with maps of its own or those that are given.
func loadObject(t testing.TB, name string, config NodeConfig, maps map[string]*ebpf.Map) *ebpf.Collection {
	t.Helper()
	return loadSized(t, name, config, maps, nil)
}

// loadSized does so with some maps of other sizes.
func loadSized(t testing.TB, name string, config NodeConfig, maps map[string]*ebpf.Map, sizes map[string]uint32) *ebpf.Collection {
	t.Helper()
	spec, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	shrink(spec)
	for name, entries := range sizes {
		spec.Maps[name].MaxEntries = entries
	}
	if err := spec.Variables["config"].Set(config); err != nil {
		t.Fatal(err)
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		var refused *ebpf.VerifierError
		if errors.As(err, &refused) {
			log := refused.Log
			if len(log) > 60 {
				log = log[len(log)-60:]
			}
			for _, line := range log {
				t.Log(line)
			}
		}
		t.Fatalf("load %s: %v", name, err)
	}
	t.Cleanup(loaded.Close)
	return loaded
}

func TestEveryProgramLoadsWithEverythingSwitchedOn(t *testing.T) {
	needRoot(t)
	for _, object := range Objects() {
		loadObject(t, object, testConfig(), nil)
	}
}

func TestEveryProgramLoadsWithEverythingSwitchedOff(t *testing.T) {
	needRoot(t)
	config := testConfig()
	config.Features = FeatureIPv4
	for _, object := range Objects() {
		loadObject(t, object, config, nil)
	}
}
