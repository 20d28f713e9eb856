package netlink

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Direction is seen from the device: what it receives, what it sends.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// DefaultHandle is the handle of the one program that a device has for a direction.
const DefaultHandle = 1

// Classifier is a BPF program to attach (cls_bpf, direct action).
type Classifier struct {
	Direction Direction
	FD        int
	Name      string // shown by tc; at most 255 bytes
	Handle    uint32 // tells programs of one device and direction apart; 0: DefaultHandle
}

const (
	// clsact's two lists of filters (linux/pkt_sched.h).
	parentIngress = 0xfffffff2
	parentEgress  = 0xfffffff3
	handleClsact  = 0xffff0000
	parentClsact  = 0xfffffff1

	attributeBPFFD    = 6 // TCA_BPF_FD and following, linux/pkt_cls.h
	attributeBPFName  = 7
	attributeBPFFlags = 8
	directAction      = 1

	// priority of our filters among those of a device. Others may stand before or behind.
	priority = 1
)

// AttachClassifier attaches a program to a device, or puts it in the place of the one with the same handle: packets
// meet the old or the new one, never none.
func (h *Handle) AttachClassifier(ifindex uint32, direction Direction, fd int, name string, handle uint32) error {
	return h.AttachClassifiers(ifindex, Classifier{direction, fd, name, handle})
}

// AttachClassifiers attaches several programs to a device at once.
func (h *Handle) AttachClassifiers(ifindex uint32, classifiers ...Classifier) error {
	batch := []message{newClsact(ifindex)}
	for _, c := range classifiers {
		batch = append(batch, c.message(ifindex))
	}
	_, err := h.do(batch...)
	return err
}

// DetachClassifier removes a program from a device; it is no error if there is none.
func (h *Handle) DetachClassifier(ifindex uint32, direction Direction, handle uint32) error {
	c := Classifier{Direction: direction, Handle: handle}
	_, err := h.do(message{
		what: fmt.Sprintf("detach classifier from device %d", ifindex), kind: unix.RTM_DELTFILTER, absent: true,
		body: attributeText(c.header(ifindex), unix.TCA_KIND, "bpf"),
	})
	if withoutClsact(err) {
		return nil
	}
	return err
}

// withoutClsact says whether a filter was not found because its device has no clsact: the kernel calls that invalid.
func withoutClsact(err error) bool { return errors.Is(err, unix.EINVAL) }

// Attached returns the id of the program that is attached with a handle, or 0 if there is none.
func (h *Handle) Attached(ifindex uint32, direction Direction, handle uint32) (program uint32, err error) {
	c := Classifier{Direction: direction, Handle: handle}
	replies, err := h.do(message{
		what: fmt.Sprintf("read classifier of device %d", ifindex), kind: unix.RTM_GETTFILTER, absent: true,
		body: attributeText(c.header(ifindex), unix.TCA_KIND, "bpf"),
	})
	if withoutClsact(err) || err == nil && len(replies) == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return programID(replies[0]), nil
}

// programID finds TCA_BPF_ID in a filter's description.
func programID(filter []byte) uint32 {
	const attributeBPFID = 11
	if len(filter) < sizeofTcmsg {
		return 0
	}
	for kind, value := range attributes(filter[sizeofTcmsg:]) {
		if kind != unix.TCA_OPTIONS {
			continue
		}
		for kind, value := range attributes(value) {
			if kind == attributeBPFID && len(value) >= 4 {
				return binary.NativeEndian.Uint32(value)
			}
		}
	}
	return 0
}

// newClsact makes the place where classifiers stand. It is there already if another one was attached, ours or not.
func newClsact(ifindex uint32) message {
	return message{
		what: fmt.Sprintf("add clsact to device %d", ifindex), kind: unix.RTM_NEWQDISC, present: true,
		flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL,
		body:  attributeText(tcmsg(ifindex, handleClsact, parentClsact, 0), unix.TCA_KIND, "clsact"),
	}
}

// message adds the classifier, or replaces it: without NLM_F_EXCL the kernel swaps the program of a filter that exists,
// and a packet meets one of the two.
func (c Classifier) message(ifindex uint32) message {
	options := attribute32(nil, attributeBPFFD, uint32(c.FD))
	options = attributeText(options, attributeBPFName, c.Name)
	options = attribute32(options, attributeBPFFlags, directAction)
	body := attributeText(c.header(ifindex), unix.TCA_KIND, "bpf")
	return message{
		what: fmt.Sprintf("attach classifier %s to device %d", c.Name, ifindex), kind: unix.RTM_NEWTFILTER,
		flags: unix.NLM_F_CREATE, body: nest(body, unix.TCA_OPTIONS, options),
	}
}

// header names a filter: device, list, priority, protocol (all) and handle.
func (c Classifier) header(ifindex uint32) []byte {
	parent := uint32(parentIngress)
	if c.Direction == Egress {
		parent = parentEgress
	}
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	return tcmsg(ifindex, cmp.Or(c.Handle, DefaultHandle), parent, priority<<16|uint32(protocol))
}

const sizeofTcmsg = 20

// tcmsg is struct tcmsg (linux/rtnetlink.h).
func tcmsg(ifindex, handle, parent, info uint32) []byte {
	out := make([]byte, 4, sizeofTcmsg) // family, padding
	for _, word := range []uint32{ifindex, handle, parent, info} {
		out = binary.NativeEndian.AppendUint32(out, word)
	}
	return out
}
