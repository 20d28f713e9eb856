package datapath

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
)

// xdpProgram is the C function that an uplink carries before the kernel makes a packet of a frame.
const xdpProgram = "xdp_in"

// XDPMode says who runs the program: the device's driver, or the kernel in its place.
type XDPMode string

// The modes.
const (
	XDPOff     XDPMode = ""
	XDPNative  XDPMode = "native"
	XDPGeneric XDPMode = "generic"
)

func (m XDPMode) flags() link.XDPAttachFlags {
	if m == XDPNative {
		return link.XDPDriverMode
	}
	return link.XDPGenericMode
}

// xdpPlace is where the program is wanted.
type xdpPlace struct {
	ifIndex uint32
	mode    XDPMode
}

// pin is the link's name: a link does not tell its mode, so the name does.
func (p xdpPlace) pin() string { return fmt.Sprintf("%d-xdp-%s", p.ifIndex, p.mode) }

// AttachXDP puts the program before the stubs of an uplink, by a pinned link which follows every reload, or takes it away. There is
// one uplink: the program leaves any other device.
func (d *Datapath) AttachXDP(ifIndex uint32, mode XDPMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.xdp = xdpPlace{ifIndex, mode}
	links, err := listFolder(filepath.Join(d.cfg.Root, linksFolder))
	if err != nil {
		return err
	}
	for _, name := range links {
		if strings.Contains(name, "-xdp-") && name != d.xdp.pin() {
			if err := removeLink(d.linkPin(name)); err != nil {
				return err
			}
		}
	}
	if d.current == nil {
		return nil // the staged version will be attached when it comes into force
	}
	return d.linkXDP()
}

// linkXDP makes the link carry the program in force. One whose device is gone is replaced.
func (d *Datapath) linkXDP() error {
	if d.xdp.mode == XDPOff {
		return nil
	}
	program, pin := d.current.programs[xdpProgram], d.linkPin(d.xdp.pin())
	pinned, err := openLink(pin)
	if err != nil {
		return err
	}
	if pinned != nil {
		defer pinned.Close()
		info, err := pinned.Info()
		if err != nil {
			return fmt.Errorf("link of %s: %w", xdpProgram, err)
		}
		if xdp := info.XDP(); xdp != nil && xdp.Ifindex == d.xdp.ifIndex {
			return pinned.Update(program)
		}
		if err := removeLink(pin); err != nil {
			return err
		}
	}
	made, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: int(d.xdp.ifIndex), Flags: d.xdp.mode.flags()})
	if err != nil {
		return fmt.Errorf("attach %s to device %d, xdp %s: %w", xdpProgram, d.xdp.ifIndex, d.xdp.mode, err)
	}
	return errors.Join(made.Pin(pin), made.Close())
}
