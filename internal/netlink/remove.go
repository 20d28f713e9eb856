package netlink

import (
	"sync"

	"golang.org/x/sys/unix"
)

// removalGroup marks devices that are being removed; nobody else may use it. Removing a device waits for RCU grace
// periods under RTNL, 10 ms and more each time; the kernel removes all devices of a group in one such wait.
const removalGroup = 0x7e4d

// removals collects the devices whose removal was asked for while another removal runs. The next asker whose turn
// comes takes all of them along.
type removals struct {
	mutex   sync.Mutex
	waiting *removal
	turn    sync.Mutex // held by the asker who removes
}

// removal is a set of devices that go together.
type removal struct {
	devices []string
	done    bool // guarded by turn
	err     error
}

// RemovePair removes a pod's devices by the name of the host's end. It is no error if there is none. Calls in parallel
// share their wait in the kernel.
func (h *Handle) RemovePair(device string) error {
	r := &h.removals
	r.mutex.Lock()
	if r.waiting == nil {
		r.waiting = &removal{}
	}
	mine := r.waiting
	mine.devices = append(mine.devices, device)
	r.mutex.Unlock()

	r.turn.Lock()
	defer r.turn.Unlock()
	if !mine.done {
		r.mutex.Lock()
		r.waiting = nil
		r.mutex.Unlock()
		mine.err = h.removeAll(mine.devices)
		mine.done = true
	}
	return mine.err
}

// removeAll removes devices, in one wait if there are several. The devices go down with their group set, so what an
// agent that dies in between leaves behind is harmless and found again by name.
func (h *Handle) removeAll(devices []string) error {
	if len(devices) == 1 {
		_, err := h.do(deleteLink(devices[0]))
		return err
	}
	group := attribute32(nil, unix.IFLA_GROUP, removalGroup)
	batch := make([]message, 0, len(devices)+1)
	for _, device := range devices {
		batch = append(batch, message{
			what: "mark device " + device + " for removal", kind: unix.RTM_SETLINK, absent: true,
			body: append(attributeText(ifinfo(0, 0), unix.IFLA_IFNAME, device), group...),
		})
	}
	batch = append(batch, message{
		what: "remove marked devices", kind: unix.RTM_DELLINK, absent: true,
		body: append(ifinfo(0, 0), group...),
	})
	_, err := h.do(batch...)
	return err
}
