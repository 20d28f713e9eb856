package kernels

import (
	"testing"

	"tendril.io/tendril/test/kernels/vm"
)

// TestXDPOnADriver runs labs in guests, where a node's uplink is a virtio-net device: the machine's own kernel has no driver with XDP but
// veth's. The oldest kernel's driver merges what it receives, the newest's does not, so that both kinds are tried, and each kernel once.
func TestXDPOnADriver(t *testing.T) {
	versions := supported()
	for version, test := range map[string]string{versions[0]: "TestXDPOnADriverThatMerges", versions[len(versions)-1]: "TestXDPOnVirtio"} {
		t.Run(version, func(t *testing.T) {
			config := labGuest(t, version, "virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "failover", "net_failover", "virtio_net")
			config.Wires = []vm.Wire{{Segments: true}, {}}
			runLab(t, config, test)
		})
	}
}
