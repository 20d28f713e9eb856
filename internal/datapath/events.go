package datapath

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// The ring buffer (kernel, kernel/bpf/ringbuf.c): one page with the consumer's position, one with the producer's, and the
// data, mapped twice in a row so that a record never wraps. Positions count bytes since ever. A record is a header of
// 8 bytes, whose first word is the length and two flags, and the sample, padded to 8.
const (
	ringHeader  = 8
	ringBusy    = 1 << 31 // the program is still writing it
	ringDiscard = 1 << 30 // the program thought better of it
	eventSize   = int(unsafe.Sizeof(bpf.Event{}))
)

// Between looks at the ring, which programs do not announce: short while events come, longer when none do. A program
// wakes the reader when more than node_config.event_wakeup_bytes are unread.
const (
	eventWaitMin = 10 * time.Millisecond
	eventWaitMax = 100 * time.Millisecond
)

// eventBatch is how many events a callback gets at most.
const eventBatch = 1024

// ring reads a BPF ring buffer in place.
type ring struct {
	consumer []byte // written by the reader
	producer []byte // producer's page, then the data twice
	mask     uint64
	strange  uint64 // records of another size, which are skipped
}

func openRing(m *ebpf.Map) (*ring, error) {
	page, size := unix.Getpagesize(), int(m.MaxEntries())
	consumer, err := unix.Mmap(m.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map events into memory: %w", err)
	}
	producer, err := unix.Mmap(m.FD(), int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map events into memory: %w", err), unix.Munmap(consumer))
	}
	return &ring{consumer: consumer, producer: producer, mask: uint64(size - 1)}, nil
}

func (r *ring) close() error {
	return errors.Join(unix.Munmap(r.consumer), unix.Munmap(r.producer))
}

// read copies unread events into out, gives their room back to the programs and returns how many there were.
func (r *ring) read(out []bpf.Event) int {
	consumed := (*uint64)(unsafe.Pointer(&r.consumer[0]))
	produced := (*uint64)(unsafe.Pointer(&r.producer[0]))
	at, n := atomic.LoadUint64(consumed), 0
	end := atomic.LoadUint64(produced)
	data := r.producer[unix.Getpagesize():]
	for n < len(out) && at < end {
		record := data[at&r.mask:]
		header := atomic.LoadUint32((*uint32)(unsafe.Pointer(&record[0])))
		if header&ringBusy != 0 {
			break
		}
		length := int(header &^ (ringBusy | ringDiscard))
		if uint64(ringHeader+length) > end-at { // never by the kernel; nothing beyond can be told from noise
			r.strange++
			at = end
			break
		}
		if header&ringDiscard == 0 {
			if decodeEvent(record[ringHeader:ringHeader+length], &out[n]) {
				n++
			} else {
				r.strange++
			}
		}
		at = min(at+uint64(ringHeader+length+7)&^7, end)
	}
	atomic.StoreUint64(consumed, at)
	return n
}

// decodeEvent copies a sample; false: it is not one of this layout. Any bytes of the right length are an event, since
// the struct has no padding and no pointer.
func decodeEvent(sample []byte, out *bpf.Event) bool {
	if len(sample) < eventSize || len(sample) >= eventSize+8 {
		return false
	}
	*out = *(*bpf.Event)(unsafe.Pointer(&sample[0]))
	return true
}

// Events calls handle with what programs saw, in order, until ctx ends. The slice is only valid during the call, and
// nothing is allocated for it. One reader at a time.
func (d *Datapath) Events(ctx context.Context, handle func(batch []bpf.Event)) error {
	m := d.set.maps["events"]
	r, err := openRing(m)
	if err != nil {
		return err
	}
	defer r.close()
	poll, err := openPoll(m.FD())
	if err != nil {
		return err
	}
	defer poll.close()
	batch := make([]bpf.Event, eventBatch)
	wait := eventWaitMin
	for ctx.Err() == nil {
		n := r.read(batch)
		if n > 0 {
			handle(batch[:n])
			wait = eventWaitMin
		}
		if n == len(batch) {
			continue
		}
		if err := poll.wait(wait); err != nil {
			return err
		}
		wait = min(wait*5/4, eventWaitMax)
	}
	if r.strange > 0 {
		return fmt.Errorf("read events: %d records of another layout: programs and agent are of different versions", r.strange)
	}
	return nil
}

// poll waits for a file descriptor with a time limit.
type poll struct {
	fd     int
	events [1]unix.EpollEvent
}

func openPoll(fd int) (*poll, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("wait for events: %w", err)
	}
	// Edge-triggered: unread events below the threshold must not end the wait.
	err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for events: %w", err), unix.Close(epoll))
	}
	return &poll{fd: epoll}, nil
}

func (p *poll) close() error { return unix.Close(p.fd) }

// wait returns when a program asked for it or the time is over.
func (p *poll) wait(limit time.Duration) error {
	_, err := unix.EpollWait(p.fd, p.events[:], int(limit.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for events: %w", err)
	}
	return nil
}
