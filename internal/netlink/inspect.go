package netlink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PairState is how a pod's devices are.
type PairState struct {
	IfIndex uint32 // of the host's end; 0: there is none
	Up      bool   // the host's end
	HostMAC [6]byte
	// Programs attached to the host's end with DefaultHandle, by Direction; 0: none.
	Programs [2]uint32
	// The pod's end, if it was asked for.
	Joined   bool // it is the other end of the host's
	PodUp    bool
	PodMAC   [6]byte
	PodAddrs []netip.Addr
}

// InspectPair says how a pair is; the pod's end only if netns is not nil. A missing device is no error.
func (h *Handle) InspectPair(device string, netns *os.File, ifName string) (PairState, error) {
	var state PairState
	replies, err := h.do(getLink(device))
	if errors.Is(err, unix.ENODEV) {
		return state, nil
	}
	if err != nil || len(replies) == 0 {
		return state, errors.Join(err, fmt.Errorf("read device %s: %d answers", device, len(replies)))
	}
	link := parseLink(replies[0])
	state.IfIndex, state.Up, state.HostMAC = link.index, link.flags&unix.IFF_UP != 0, link.mac
	for _, direction := range []Direction{Ingress, Egress} {
		if state.Programs[direction], err = h.Attached(link.index, direction, DefaultHandle); err != nil {
			return state, err
		}
	}
	if netns == nil {
		return state, nil
	}
	return state, state.inspectPod(netns, ifName, link.peer)
}

// inspectPod reads the end inside the pod's namespace; peer is the index that the host's end says it has.
func (s *PairState) inspectPod(netns *os.File, ifName string, peer uint32) error {
	inside, err := OpenAt(netns)
	if err != nil {
		return err
	}
	defer inside.Close()
	link, err := inside.lib.LinkByName(ifName)
	if missing := (lib.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pod's device %s: %w", ifName, err)
	}
	s.Joined = uint32(link.Attrs().Index) == peer && uint32(link.Attrs().ParentIndex) == s.IfIndex
	s.PodUp = link.Attrs().Flags&net.FlagUp != 0
	copy(s.PodMAC[:], link.Attrs().HardwareAddr)
	addrs, err := again(func() ([]lib.Addr, error) { return inside.lib.AddrList(link, lib.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("read addresses of pod's device %s: %w", ifName, err)
	}
	for _, addr := range addrs {
		if prefix := prefixOf(addr.IPNet); prefix.IsValid() && !prefix.Addr().IsLinkLocalUnicast() {
			s.PodAddrs = append(s.PodAddrs, prefix.Addr())
		}
	}
	return nil
}
