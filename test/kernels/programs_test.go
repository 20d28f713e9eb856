// Package kernels holds the tests of the datapath on other kernels than the machine's.
//
// TestEveryProgramLoads and TestClientsOfAGoneBackendEnd run on any kernel: `make test` runs them here, and TestOn boots each kernel that
// fetch.sh brought and runs them there.
package kernels

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// everything is a node with every feature: what is off, the verifier does not look at.
func everything() bpf.NodeConfig {
	return bpf.NodeConfig{
		Features:   bpf.FeatureTunnel | bpf.FeatureMasquerade | bpf.FeatureServices | bpf.FeatureFlowRecords | bpf.FeatureIPv4 | bpf.FeatureIPv6,
		ClassWords: uint32(bpf.CapSelectors) / 64, NATPortMin: 32768, NATPortMax: 60999, PodMTU: 1500, TunnelMTU: 1450, HalfOpenLimit: 100, OutsideHalfOpenLimit: 100,
	}
}

// TestEveryProgramLoads gives each program of each object to the kernel's verifier, with its maps at their real sizes.
func TestEveryProgramLoads(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	var release unix.Utsname
	if err := unix.Uname(&release); err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel %s", unix.ByteSliceToString(release.Release[:]))
	for _, name := range bpf.Objects() {
		t.Run(name, func(t *testing.T) {
			spec, err := bpf.Load(name)
			if err != nil {
				t.Fatal(err)
			}
			if config := spec.Variables["config"]; config != nil {
				if err := config.Set(everything()); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range spec.Maps {
				m.Pinning = ebpf.PinNone
			}
			collection, err := ebpf.NewCollection(spec)
			var verifier *ebpf.VerifierError
			if errors.As(err, &verifier) {
				t.Fatalf("refused by the verifier; the end of its log: %-30v", verifier)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(collection.Close)
			if len(collection.Programs) == 0 {
				t.Error("the object has no program")
			}
			t.Logf("%d programs, %d maps", len(collection.Programs), len(collection.Maps))
		})
	}
}
