package netlink

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Adopted is a pod's device that another plugin made.
type Adopted struct {
	Device  string  `json:"device"` // on the host
	IfIndex uint32  `json:"ifindex"`
	HostMAC [6]byte `json:"host_mac"`
	PodMAC  [6]byte `json:"pod_mac"`
	MTU     uint32  `json:"mtu"`
}

// FindPair finds the host's end of a pod's device. It must be a pair of veth devices between the pod's namespace and the handle's: of
// anything else, such as macvlan, there is no place on the host where all that the pod sends and gets comes by.
func (h *Handle) FindPair(netns *os.File, ifName string) (Adopted, error) {
	inside, err := OpenAt(netns)
	if err != nil {
		return Adopted{}, err
	}
	defer inside.Close()
	pod, err := inside.lib.LinkByName(ifName)
	if err != nil {
		return Adopted{}, fmt.Errorf("read pod's device %s: %w", ifName, err)
	}
	if pod.Type() != "veth" {
		return Adopted{}, fmt.Errorf("pod's device %s is of type %s: only veth devices can be taken over, such as the plugins bridge and ptp make", ifName, pod.Type())
	}
	id, err := h.lib.GetNetNsIdByFd(int(netns.Fd()))
	if err != nil {
		return Adopted{}, fmt.Errorf("number of the pod's namespace: %w", err)
	}
	host, err := h.lib.LinkByIndex(pod.Attrs().ParentIndex)
	if err != nil || host.Type() != "veth" || host.Attrs().ParentIndex != pod.Attrs().Index || host.Attrs().NetNsID != id {
		return Adopted{}, errors.Join(fmt.Errorf("pod's device %s has no other end in the node's namespace", ifName), err)
	}
	found := Adopted{Device: host.Attrs().Name, IfIndex: uint32(host.Attrs().Index), MTU: uint32(pod.Attrs().MTU)}
	copy(found.HostMAC[:], host.Attrs().HardwareAddr)
	copy(found.PodMAC[:], pod.Attrs().HardwareAddr)
	return found, h.unused(found, host)
}

// unused fails if a filter or a program is on the device already. It would pass packets on before ours sees them, or ours would take its
// place without a word.
func (h *Handle) unused(a Adopted, host lib.Link) error {
	carries := func(what string) error {
		return fmt.Errorf("device %s carries %s already: delete the container, and take the plugin out of the list that puts it there", a.Device, what)
	}
	filters, err := h.classifiers(host)
	if err != nil {
		return err
	}
	if len(filters) > 0 {
		return carries("a classifier (" + filters[0].Type() + ")")
	}
	return enter(h.namespace, func() error {
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			attached, err := link.QueryPrograms(link.QueryOptions{Target: int(a.IfIndex), Attach: at})
			if errors.Is(err, unix.EINVAL) { // before kernel 6.6 there is no such place
				return nil
			}
			if err != nil {
				return fmt.Errorf("list programs of %s: %w", a.Device, err)
			}
			if len(attached.Programs) > 0 {
				return carries(fmt.Sprintf("program %d", attached.Programs[0].ID))
			}
		}
		return nil
	})
}

// NotePod tells the bridge that the device is a port of, if it is, where the pod is: what it sends to the pod it then floods nowhere else,
// although it sees nothing of what the pod sends.
func (h *Handle) NotePod(a Adopted) error {
	host, err := h.lib.LinkByIndex(int(a.IfIndex))
	if err != nil {
		return fmt.Errorf("read device %s: %w", a.Device, err)
	}
	master := host.Attrs().MasterIndex
	if master == 0 {
		return nil
	}
	bridge, err := h.lib.LinkByIndex(master)
	if err != nil || bridge.Type() != "bridge" {
		return err
	}
	entry := &lib.Neigh{
		LinkIndex: int(a.IfIndex), Family: unix.AF_BRIDGE, State: lib.NUD_NOARP, Flags: lib.NTF_MASTER, HardwareAddr: a.PodMAC[:],
	}
	if err := h.lib.NeighSet(entry); err != nil {
		return fmt.Errorf("note the pod's link address at %s: %w", bridge.Attrs().Name, err)
	}
	return nil
}

// ReleasePair leaves a device to the plugin that made it: down first, so that nothing passes unjudged, then without our programs. It is no
// error if the device is gone, and one that has another's index or address is not touched.
func (h *Handle) ReleasePair(a Adopted) error {
	host, err := h.lib.LinkByIndex(int(a.IfIndex))
	if missing := (lib.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read device %s: %w", a.Device, err)
	}
	if host.Attrs().Name != a.Device || string(host.Attrs().HardwareAddr) != string(a.HostMAC[:]) {
		return nil
	}
	if err := h.lib.LinkSetDown(host); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("set device %s down: %w", a.Device, err)
	}
	return errors.Join(h.DetachClassifier(a.IfIndex, Ingress, DefaultHandle), h.DetachClassifier(a.IfIndex, Egress, DefaultHandle))
}
