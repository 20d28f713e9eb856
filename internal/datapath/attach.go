package datapath

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// NeedClsactError says that the kernel has no TCX (it came with 6.6), so that stubs of this device must be attached with
// clsact, which is netlink's.
type NeedClsactError struct {
	IfIndex uint32
}

// Error names the device.
func (e *NeedClsactError) Error() string {
	return fmt.Sprintf("attach to device %d: this kernel has no TCX: attach the stubs with clsact", e.IfIndex)
}

// AttachUplink puts the stubs of an outward device on it, by pinned links.
func (d *Datapath) AttachUplink(ifIndex uint32) error {
	return d.attachDevice(ifIndex, bpf.EntryNetIn, bpf.EntryNetOut)
}

// AttachOverlay puts the stubs of the overlay device on it, by pinned links.
func (d *Datapath) AttachOverlay(ifIndex uint32) error {
	return d.attachDevice(ifIndex, bpf.EntryTunnelIn, bpf.EntryTunnelOut)
}

// AttachLoopback puts the stub of the loopback device on it, by a pinned link.
func (d *Datapath) AttachLoopback(ifIndex uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attachTCX(ifIndex, bpf.EntryLoopOut, ebpf.AttachTCXEgress)
}

func (d *Datapath) attachDevice(ifIndex uint32, in, out bpf.Entry) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.attachTCX(ifIndex, in, ebpf.AttachTCXIngress); err != nil {
		return err
	}
	return d.attachTCX(ifIndex, out, ebpf.AttachTCXEgress)
}

// attachTCX makes the pinned link of one direction carry this agent's stub. A link that does is kept; one that carries
// another stub is updated in place, which no packet notices; one whose device is gone is replaced.
func (d *Datapath) attachTCX(ifIndex uint32, entry bpf.Entry, at ebpf.AttachType) error {
	pin := d.linkPin(fmt.Sprintf("%d-%s", ifIndex, entry))
	pinned, err := openLink(pin)
	if err != nil {
		return err
	}
	if pinned != nil {
		defer pinned.Close()
		kept, err := d.keepTCX(pinned, ifIndex, entry)
		if kept || err != nil {
			return err
		}
		if err := removeLink(pin); err != nil {
			return err
		}
	}
	stub, err := d.stubs.load(0, 0, entry)
	if err != nil {
		return err
	}
	defer stub.Close()
	made, err := link.AttachTCX(link.TCXOptions{Interface: int(ifIndex), Program: stub.program, Attach: at})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return &NeedClsactError{IfIndex: ifIndex}
	}
	if err != nil {
		return fmt.Errorf("attach %s to device %d: %w", entry, ifIndex, err)
	}
	defer made.Close()
	if err := made.Pin(pin); err != nil {
		return fmt.Errorf("pin %s of device %d: %w", entry, ifIndex, err)
	}
	d.stubs.note(stubKey{entry, ifIndex}, TemplateInstance{IfIndex: ifIndex, ProgramID: stub.ProgramID, LoadTime: stub.LoadTime})
	return nil
}

// keepTCX says whether a pinned link is still on the device, and makes it carry this agent's stub.
func (d *Datapath) keepTCX(l link.Link, ifIndex uint32, entry bpf.Entry) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("link of %s on device %d: %w", entry, ifIndex, err)
	}
	if tcx := info.TCX(); tcx == nil || tcx.Ifindex != ifIndex {
		return false, nil
	}
	same, err := d.stubs.is(info.Program, 0, 0, entry)
	if err != nil {
		return false, err
	}
	instance := TemplateInstance{IfIndex: ifIndex, ProgramID: uint32(info.Program)}
	if !same {
		stub, err := d.stubs.load(0, 0, entry)
		if err != nil {
			return false, err
		}
		defer stub.Close()
		if err := l.Update(stub.program); err != nil {
			return false, fmt.Errorf("update %s of device %d: %w", entry, ifIndex, err)
		}
		instance.ProgramID, instance.LoadTime = stub.ProgramID, stub.LoadTime
	}
	d.stubs.note(stubKey{entry, ifIndex}, instance)
	return true, nil
}

// Detach removes the links of a device of the node; without any it does nothing.
func (d *Datapath) Detach(ifIndex uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, entry := range []bpf.Entry{bpf.EntryNetIn, bpf.EntryNetOut, bpf.EntryTunnelIn, bpf.EntryTunnelOut, bpf.EntryLoopOut} {
		errs = append(errs, removeLink(d.linkPin(fmt.Sprintf("%d-%s", ifIndex, entry))))
		d.stubs.mu.Lock()
		delete(d.stubs.instances, stubKey{entry, ifIndex})
		d.stubs.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (d *Datapath) linkPin(name string) string {
	return filepath.Join(d.cfg.Root, linksFolder, name)
}

// openLink opens a pinned link; nil: there is none.
func openLink(pin string) (link.Link, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", pin, err)
	}
	return l, nil
}

// removeLink detaches a pinned link at once, where removing the pin alone would leave that to a kernel worker. One that
// is gone is fine; so is one whose device is.
func removeLink(pin string) error {
	l, err := openLink(pin)
	if err != nil || l == nil {
		return err
	}
	defer l.Close()
	if err := l.Detach(); err != nil {
		return fmt.Errorf("detach link %s: %w", pin, err)
	}
	return removePin(pin)
}

// socketHooks lists the programs of the cgroup hooks with their attach types.
func socketHooks(specs map[string]*ebpf.CollectionSpec) map[string]ebpf.AttachType {
	hooks := map[string]ebpf.AttachType{}
	for _, spec := range specs {
		for name, program := range spec.Programs {
			switch program.Type {
			case ebpf.CGroupSockAddr, ebpf.CGroupSock, ebpf.CGroupSockopt:
				hooks[name] = program.AttachType
			}
		}
	}
	return hooks
}

// AttachSockets puts the socket hooks on the configured cgroup, by pinned links which follow every reload.
func (d *Datapath) AttachSockets() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cfg.Cgroup == "" {
		return errors.New("attach socket hooks: no cgroup is configured")
	}
	d.socketsOn = true
	if d.current == nil {
		return nil // the staged version will be attached when it comes into force
	}
	return d.linkSockets()
}

// linkSockets makes every hook's link carry the program in force.
func (d *Datapath) linkSockets() error {
	for _, name := range slices.Sorted(maps.Keys(d.hooks)) {
		if err := d.linkSocket(name, d.hooks[name]); err != nil {
			return fmt.Errorf("attach socket hook %s to %s: %w", name, d.cfg.Cgroup, err)
		}
	}
	return nil
}

func (d *Datapath) linkSocket(name string, at ebpf.AttachType) error {
	program, pin := d.current.programs[name], d.linkPin("cgroup-"+name)
	pinned, err := openLink(pin)
	if err != nil {
		return err
	}
	if pinned != nil {
		defer pinned.Close()
		same, err := d.sameCgroup(pinned)
		if err != nil {
			return err
		}
		if same {
			return pinned.Update(program)
		}
		if err := removeLink(pin); err != nil {
			return err
		}
	}
	made, err := link.AttachCgroup(link.CgroupOptions{Path: d.cfg.Cgroup, Attach: at, Program: program})
	if err != nil {
		return err
	}
	defer made.Close()
	return made.Pin(pin)
}

// sameCgroup says whether a link is on the configured cgroup, which may have been another one before.
func (d *Datapath) sameCgroup(l link.Link) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	id, err := cgroupID(d.cfg.Cgroup)
	if err != nil {
		return false, err
	}
	cgroup := info.Cgroup()
	return cgroup != nil && cgroup.CgroupId == id, nil
}

// cgroupID is the kernel's number of a cgroup v2 folder: its inode number (kernel, kernfs).
func cgroupID(folder string) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(folder, &stat); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", folder, err)
	}
	return stat.Ino, nil
}
