package datapath

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// grace waits for RCU grace periods: when one is over, every program that ran before it began has ended.
type grace struct {
	log     *slog.Logger
	barrier bool      // membarrier(2) does it; else the update of outer does
	outer   *ebpf.Map // array of maps: its update waits for a grace period (kernel, maybe_wait_bpf_programs)
	inner   *ebpf.Map
	wake    chan struct{}

	running sync.Mutex // held from taking the queue until what it held is free

	mu      sync.Mutex
	waiting []retired // by completed publications
}

// newGrace chooses the way to wait. membarrier is refused on nohz_full kernels and does nothing with one CPU.
func newGrace(log *slog.Logger) (*grace, error) {
	g := &grace{log: log, wake: make(chan struct{}, 1), barrier: haveMembarrier() && runtime.NumCPU() > 1}
	if g.barrier {
		return g, nil
	}
	return g, g.useMaps()
}

// useMaps makes the pair of maps whose update waits.
func (g *grace) useMaps() (err error) {
	innerSpec := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	if g.inner, err = ebpf.NewMap(innerSpec); err != nil {
		return fmt.Errorf("grace period by map: %w", err)
	}
	g.outer, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: innerSpec})
	if err != nil {
		return fmt.Errorf("grace period by map: %w", err)
	}
	g.barrier = false
	return nil
}

// wait returns after one grace period.
func (g *grace) wait() error {
	if g.barrier {
		if err := membarrier(membarrierGlobal); err != nil {
			return fmt.Errorf("grace period by membarrier: %w", err)
		}
		return nil
	}
	if err := g.outer.Put(uint32(0), g.inner); err != nil {
		return fmt.Errorf("grace period by map: %w", err)
	}
	return nil
}

func (g *grace) close() {
	for _, m := range []*ebpf.Map{g.inner, g.outer} {
		if m != nil {
			m.Close()
		}
	}
}

// queue leaves retired numbers to the next grace period.
func (g *grace) queue(list []retired) {
	if len(list) == 0 {
		return
	}
	g.mu.Lock()
	g.waiting = append(g.waiting, list...)
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// take empties the queue.
func (g *grace) take() []retired {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.waiting
	g.waiting = nil
	return list
}

// reclaim frees everything that was retired before it began, after one grace period for all of it. A second caller
// waits for the first, so that what the first took is free when the second returns.
func (d *Datapath) reclaim() error {
	d.grace.running.Lock()
	defer d.grace.running.Unlock()
	list := d.grace.take()
	if len(list) == 0 {
		return nil
	}
	err := d.grace.wait()
	if err == nil {
		err = d.numbers.free(list)
	}
	if err != nil {
		d.grace.queue(list)
	}
	return err
}

// reclaimer frees after each publication; whatever is published during a grace period shares the next one.
func (d *Datapath) reclaimer(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.grace.wake:
		}
		if err := d.reclaim(); err != nil {
			d.log.Warn("numbers are not freed yet", "error", err)
			if !sleep(ctx, time.Second) {
				return nil
			}
		}
	}
}

// sleep waits unless the context ends first.
func sleep(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Commands of membarrier(2) (linux/membarrier.h).
const (
	membarrierQuery  = 0
	membarrierGlobal = 1
)

// haveMembarrier asks the kernel for the global barrier.
func haveMembarrier() bool {
	supported, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierQuery, 0, 0)
	return errno == 0 && supported&membarrierGlobal != 0
}

func membarrier(command uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, command, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
