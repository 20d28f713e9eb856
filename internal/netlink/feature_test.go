package netlink

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFeaturesAreWhatIsOnOfTheDevice(t *testing.T) {
	node := newNode(t)
	link := addUplink(t, node)
	features, err := node.Features(uint32(link.Attrs().Index))
	if err != nil {
		t.Fatal(err)
	}
	for feature, want := range map[string]bool{"tx-tcp-segmentation": true, "tx-scatter-gather": true, "rx-gro-hw": false, "rx-lro": false} {
		if got := slices.Contains(features, feature); got != want {
			t.Errorf("veth's %s: got %v, want %v; there is %q", feature, got, want, features)
		}
	}
	if _, err := node.Features(12345); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a device that is not there: got %v, want %v", err, unix.ENODEV)
	}
}
