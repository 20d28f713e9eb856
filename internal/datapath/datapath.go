package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// Datapath is a node's maps, programs and links. Its methods may be called from several goroutines.
type Datapath struct {
	cfg     Config
	log     *slog.Logger
	lock    *os.File
	specs   map[string]*ebpf.CollectionSpec // by object, as compiled
	set     *mapSet
	arenas  arenas
	numbers *Numbers
	grace   *grace
	counts  writeCounts

	mu        sync.Mutex // one publication at a time; guards what follows
	node      bpf.NodeConfig
	current   *version                   // in force
	staged    *version                   // loaded, to be put in force by Prune
	hooks     map[string]ebpf.AttachType // socket hooks by program name
	pinned    []string                   // programs that no entry slot holds
	fresh     bool                       // nothing published yet: the first publication always raises the verdict epoch
	stubs     stubs
	sweeper   sweeper
	xdp       xdpPlace // AttachXDP was called for it: its link follows the version
	socketsOn bool     // AttachSockets was called: links follow the version
}

// arenas are the arrays that the agent writes through memory.
type arenas struct {
	control, peerClass, classBits, programs, cells, slots, backends *arena
}

// LockedError says that another agent owns the folder.
type LockedError struct{ Root string }

// Error names the folder and the remedy.
func (e *LockedError) Error() string {
	return fmt.Sprintf("lock %s: another agent is running on it: stop that one, or give this one a root of its own", e.Root)
}

// Open takes over a node's datapath, or makes it: afterwards all maps exist, and a version of the programs is in force
// or, if a map had to be made anew beside one of another layout, waits for [Datapath.Prune].
func Open(ctx context.Context, cfg Config) (*Datapath, error) {
	d, err := openBare(cfg)
	if err != nil {
		return nil, err
	}
	if err := d.openPrograms(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open datapath %s: %w", cfg.Root, err), d.Close())
	}
	return d, nil
}

// openBare opens everything but programs.
func openBare(cfg Config) (_ *Datapath, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Datapath{cfg: cfg, log: cfg.Logger, node: cfg.Node, fresh: true}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.lock, err = lockRoot(cfg.Root, true); err != nil {
		return nil, err
	}
	if err := RequireFeatures(); err != nil {
		return nil, err
	}
	if err := d.openState(); err != nil {
		return nil, fmt.Errorf("open datapath %s: %w", cfg.Root, err)
	}
	return d, nil
}

// openState opens maps, their memory and the numbers.
func (d *Datapath) openState() (err error) {
	if d.specs, err = loadSpecs(); err != nil {
		return err
	}
	if err := d.completeNode(&d.node); err != nil {
		return err
	}
	specs, err := sharedSpecs(d.specs, d.cfg.Sizes, d.node.ClassWords)
	if err != nil {
		return err
	}
	if d.set, err = openMaps(filepath.Join(d.cfg.Root, mapsFolder), specs); err != nil {
		return err
	}
	if err := d.openArenas(); err != nil {
		return err
	}
	if d.grace, err = newGrace(d.log); err != nil {
		return err
	}
	if err := d.stubs.open(d.set); err != nil {
		return err
	}
	l := &mapLedger{m: d.set.maps["assignments"], before: d.counts.step}
	before, err := l.load()
	if err != nil {
		return err
	}
	if d.numbers, err = newNumbers(d.node.ClassWords, d.set.sizes, l, before); err != nil {
		return err
	}
	d.numbers.reclaim = d.reclaim
	return nil
}

// completeNode fills what the caller left to the datapath.
func (d *Datapath) completeNode(n *bpf.NodeConfig) (err error) {
	if n.ClassWords == 0 {
		n.ClassWords = uint32(bpf.CapSelectors) / 64
	}
	if n.EventWakeupBytes == 0 {
		n.EventWakeupBytes = uint32(bpf.CapEventBytes) / 4
	}
	if n.NetnsCookie == 0 {
		n.NetnsCookie, err = netnsCookie()
	}
	return err
}

func (d *Datapath) openArenas() error {
	for name, a := range map[string]**arena{
		"control": &d.arenas.control, "peer_class": &d.arenas.peerClass, "class_bits": &d.arenas.classBits,
		"policy_programs": &d.arenas.programs, "policy_cells": &d.arenas.cells,
		"slots": &d.arenas.slots, "backends": &d.arenas.backends,
	} {
		opened, err := mapArena(name, d.set.maps[name])
		if err != nil {
			return err
		}
		*a = opened
	}
	return nil
}

// Numbers gives out the numbers of this node.
func (d *Datapath) Numbers() *Numbers { return d.numbers }

// Version is the number of the programs in force; it rises with each reload, across restarts too.
func (d *Datapath) Version() uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil {
		return 0
	}
	return d.current.number
}

// Close lets go of everything and leaves it pinned and running. Stubs that were loaded and attached stay, too.
func (d *Datapath) Close() error {
	var errs []error
	for _, a := range []*arena{d.arenas.control, d.arenas.peerClass, d.arenas.classBits, d.arenas.programs, d.arenas.cells, d.arenas.slots, d.arenas.backends} {
		if a != nil {
			errs = append(errs, a.close())
		}
	}
	for _, v := range []*version{d.current, d.staged} {
		if v != nil {
			v.close()
		}
	}
	if d.grace != nil {
		d.grace.close()
	}
	if d.set != nil {
		d.set.close()
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// Teardown removes every pin and link of a root, and the root itself: traffic is no longer judged. It refuses while an
// agent owns the root. Doing it twice is harmless. What clsact holds on devices is netlink's to remove.
func Teardown(root string) error {
	if err := (&Config{Root: root, Node: bpf.NodeConfig{Features: bpf.FeatureIPv4}}).Validate(); err != nil {
		return err
	}
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, err := lockRoot(root, false)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Links first: what is left must never be attached programs without their maps' names.
	links, err := listFolder(filepath.Join(root, linksFolder))
	if err != nil {
		return fmt.Errorf("tear down %s: %w", root, err)
	}
	for _, name := range links {
		if err := removeLink(filepath.Join(root, linksFolder, name)); err != nil {
			return fmt.Errorf("tear down %s: %w", root, err)
		}
	}
	for _, folder := range []string{linksFolder, versionsFolder, mapsFolder} {
		if err := os.RemoveAll(filepath.Join(root, folder)); err != nil {
			return fmt.Errorf("tear down %s: %w", root, err)
		}
	}
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("tear down %s: %w", root, err)
	}
	return nil
}

// lockRoot locks a root folder, making it first if asked.
func lockRoot(root string, create bool) (*os.File, error) {
	if ok, err := onBPFFS(root); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("open datapath %s: not in a bpffs: run `mount -t bpf bpf /sys/fs/bpf` first", root)
	}
	if create {
		for _, folder := range []string{mapsFolder, linksFolder, versionsFolder} {
			if err := os.MkdirAll(filepath.Join(root, folder), 0o700); err != nil {
				return nil, fmt.Errorf("open datapath: %w", err)
			}
		}
	}
	f, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &LockedError{Root: root}
		}
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	return f, nil
}

// netnsCookie is the cookie of the caller's network namespace.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: %w", err)
	}
	return cookie, nil
}
