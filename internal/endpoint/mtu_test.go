package endpoint

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMTUOfEachModeEncryptionAndUnderlay(t *testing.T) {
	for _, c := range []struct {
		tunnel     bool
		encryption Encryption
		ipv6       bool
		want       MTUs
	}{
		{false, EncryptNone, false, MTUs{1500, 1500, 0}},
		{false, EncryptNone, true, MTUs{1500, 1500, 0}},
		{false, EncryptIPsec, false, MTUs{1500, 1443, 0}},
		{false, EncryptIPsec, true, MTUs{1500, 1423, 0}},
		{false, EncryptWireGuard, false, MTUs{1500, 1440, 0}},
		{false, EncryptWireGuard, true, MTUs{1500, 1420, 0}},
		{true, EncryptNone, false, MTUs{1500, 1450, 1450}},
		{true, EncryptNone, true, MTUs{1500, 1430, 1430}},
		{true, EncryptIPsec, false, MTUs{1500, 1393, 1393}},
		{true, EncryptIPsec, true, MTUs{1500, 1353, 1353}},
		{true, EncryptWireGuard, false, MTUs{1500, 1390, 1390}},
		{true, EncryptWireGuard, true, MTUs{1500, 1350, 1350}},
	} {
		t.Run(fmt.Sprintf("tunnel %v, encryption %q, IPv6 %v", c.tunnel, c.encryption, c.ipv6), func(t *testing.T) {
			got := MTU(Underlay{DeviceMTU: 1500, Tunnel: c.tunnel, IPv6: c.ipv6, Encryption: c.encryption})
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("MTUs (-want +got):\n%s", diff)
			}
			if !got.Fits() {
				t.Error("an Ethernet underlay is said to be too small for IPv6")
			}
		})
	}
}

func TestLargerUnderlayMakesNothingSmaller(t *testing.T) {
	for _, tunnel := range []bool{false, true} {
		for _, encryption := range []Encryption{EncryptNone, EncryptIPsec, EncryptWireGuard} {
			before := MTUs{}
			for device := range uint32(10_000) {
				got := MTU(Underlay{DeviceMTU: device, Tunnel: tunnel, IPv6: true, Encryption: encryption})
				if got.Route > got.Device || got.Route < before.Route || got.Tunnel > got.Device {
					t.Fatalf("device MTU %d gives %+v, one less gave %+v", device, got, before)
				}
				before = got
			}
		}
	}
}

func TestUnderlayTooSmallForIPv6DoesNotFit(t *testing.T) {
	for device, want := range map[uint32]bool{1280: false, 1349: false, 1350: true, 0: false, 40: false} {
		got := MTU(Underlay{DeviceMTU: device, Tunnel: true, IPv6: true})
		if got.Fits() != want {
			t.Errorf("device MTU %d: fits is %v, want %v", device, got.Fits(), want)
		}
	}
}
