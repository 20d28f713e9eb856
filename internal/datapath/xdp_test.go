package datapath

import (
	"testing"

	"github.com/vishvananda/netlink"
)

// xdpOn is the number of the XDP program on a device, 0: none.
func xdpOn(t *testing.T, ifIndex uint32) uint32 {
	t.Helper()
	device, err := netlink.LinkByIndex(int(ifIndex))
	if err != nil {
		t.Fatal(err)
	}
	if xdp := device.Attrs().Xdp; xdp != nil && xdp.Attached {
		return xdp.ProgId
	}
	return 0
}

func TestXDPOutlivesTheAgentAndFollowsItsReloads(t *testing.T) {
	for _, mode := range []XDPMode{XDPNative, XDPGeneric} {
		t.Run(string(mode), func(t *testing.T) {
			root, ifIndex := rootFolder(t), testDevice(t)
			d := open(t, testConfig(root))
			for range 2 { // the second time changes nothing
				if err := d.AttachXDP(ifIndex, mode); err != nil {
					t.Fatal(err)
				}
			}
			first := xdpOn(t, ifIndex)
			if first == 0 {
				t.Fatal("no program on the device")
			}
			node := testConfig(root).Node
			node.HalfOpenLimit++
			if _, err := d.Reload(t.Context(), node); err != nil {
				t.Fatal(err)
			}
			second := xdpOn(t, ifIndex)
			if second == 0 || second == first {
				t.Errorf("program %d became %d by a reload, want another", first, second)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if got := xdpOn(t, ifIndex); got != second {
				t.Errorf("without an agent the program is %d, want %d", got, second)
			}
			cfg := testConfig(root)
			cfg.Node = node
			again := open(t, cfg)
			if err := again.AttachXDP(ifIndex, mode); err != nil {
				t.Fatal(err)
			}
			if got := xdpOn(t, ifIndex); got != second {
				t.Errorf("the next agent changed program %d to %d", second, got)
			}
			if err := again.AttachXDP(ifIndex, XDPOff); err != nil {
				t.Fatal(err)
			}
			if got := xdpOn(t, ifIndex); got != 0 {
				t.Errorf("program %d is still on the device", got)
			}
		})
	}
}
