package node

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/datapath"
)

// xdpState is what came of the configuration's wish.
type xdpState struct {
	mode   XDP    // off, native or generic
	reason string // why it is off although it is wanted
}

// attachXDP does what the configuration says. Unasked, a driver that has no XDP, or has another's program, is left alone.
func (a *Agent) attachXDP() error {
	modes := map[XDP]datapath.XDPMode{XDPOff: datapath.XDPOff, XDPNative: datapath.XDPNative, XDPGeneric: datapath.XDPGeneric}
	a.xdp = xdpState{mode: a.config.XDP}
	if a.config.XDP == XDPAuto {
		a.xdp = a.autoXDP()
	}
	err := a.datapath.AttachXDP(a.uplink.ifindex, modes[a.xdp.mode])
	if err == nil {
		return nil
	}
	if a.config.XDP != XDPAuto {
		return fmt.Errorf("uplink %s: %w: take another program off it, or set xdp to auto, which does without where it has to", a.uplink.name, err)
	}
	a.log.Info("no XDP on the uplink", "device", a.uplink.name, "error", err)
	a.xdp = xdpState{XDPOff, xdpRefusal(a.uplink.name, err)}
	return a.datapath.AttachXDP(a.uplink.ifindex, datapath.XDPOff)
}

// autoXDP asks for native XDP, but not where it would cost more than it saves: where segments of a TCP stream pass the device in one piece, a
// program makes each a packet of its own. On veth that is at the sender, elsewhere at a driver that merges what it receives.
func (a *Agent) autoXDP() xdpState {
	const cost = ", which a program would end, and with it most of TCP's throughput"
	if a.uplink.kind == "veth" {
		return xdpState{XDPOff, a.uplink.name + " is a veth device: it takes segments in one piece" + cost}
	}
	features, err := a.links.Features(a.uplink.ifindex)
	if err != nil {
		return xdpState{XDPOff, err.Error()}
	}
	for _, merging := range []string{"rx-gro-hw", "rx-lro"} {
		if slices.Contains(features, merging) {
			return xdpState{XDPOff, fmt.Sprintf("%s receives segments in one piece (%s)%s", a.uplink.name, merging, cost)}
		}
	}
	return xdpState{XDPNative, ""}
}

// xdpRefusal says why the kernel did not take the program.
func xdpRefusal(device string, err error) string {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return fmt.Sprintf("%s's driver has no XDP, or none with its present settings: %v", device, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Sprintf("%s has another program: %v", device, err)
	}
	return err.Error()
}
