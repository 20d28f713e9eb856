package datapath

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// Flags of bpf_ringbuf_output (linux/bpf.h).
const (
	ringNoWakeup    = 1
	ringForceWakeup = 2
)

// sender outputs one event whose protocol is the packet's first byte and whose time rises from 1, and returns what the
// helper returned.
func sender(t testing.TB, d *Datapath, flags int32) *ebpf.Program {
	t.Helper()
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { counts.Close() })
	text := asm.Instructions{asm.Mov.Imm(asm.R6, 0)}
	text = append(text, lookup(counts.FD(), asm.R6)...)
	text = append(text,
		asm.Mov.Imm(asm.R7, 1),
		asm.LoadMem(asm.R7, asm.R0, 0, asm.DWord), asm.Add.Imm(asm.R7, 1), asm.StoreMem(asm.R0, 0, asm.R7, asm.DWord),
	)
	at := int16(-eventSize - 8)
	text = append(text, asm.Mov.Imm(asm.R8, 0))
	for offset := int16(0); offset < int16(eventSize); offset += 8 {
		text = append(text, asm.StoreMem(asm.R10, at+offset, asm.R8, asm.DWord))
	}
	text = append(text,
		asm.StoreMem(asm.R10, at, asm.R7, asm.DWord),
		asm.LoadMapPtr(asm.R1, d.set.maps["events"].FD()),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, int32(at)),
		asm.Mov.Imm(asm.R3, int32(eventSize)), asm.Mov.Imm(asm.R4, flags),
		asm.FnRingbufOutput.Call(),
		asm.Return().WithSymbol("end"),
	)
	return loadProbe(t, "sender", text)
}

// send runs a sender n times.
func send(t testing.TB, p *ebpf.Program, n int) {
	t.Helper()
	if _, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: uint32(n)}); err != nil {
		t.Fatal(err)
	}
}

func TestEventsComeInOrderAndWhole(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	p := sender(t, d, ringNoWakeup)
	const total = 3000 // more than one batch, and several times round the ring
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	next, done := uint64(1), make(chan error)
	seen := make(chan int, 1000)
	go func() {
		done <- d.Events(ctx, func(batch []bpf.Event) {
			for i := range batch {
				if batch[i].Time != next {
					t.Errorf("event %d came when %d was due", batch[i].Time, next)
				}
				next++
			}
			seen <- len(batch)
		})
	}()
	for sent, read := 0, 0; read < total; {
		for ; sent < total && sent-read < 200; sent++ {
			send(t, p, 1)
		}
		select {
		case n := <-seen:
			read += n
		case <-time.After(5 * time.Second):
			t.Fatalf("%d of %d events came", read, total)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestReaderIsWokenOnlyWhenAProgramAsks(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	p, err := openPoll(d.set.maps["events"].FD())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	waited := func() time.Duration {
		start := time.Now()
		if err := p.wait(300 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	send(t, sender(t, d, ringNoWakeup), 5)
	waited() // whatever the registration itself reported
	send(t, sender(t, d, ringNoWakeup), 5)
	if got := waited(); got < 250*time.Millisecond {
		t.Errorf("woken after %v by events that ask for no wake-up", got)
	}
	send(t, sender(t, d, ringForceWakeup), 1)
	if got := waited(); got > 200*time.Millisecond {
		t.Errorf("woken only after %v though a program asked", got)
	}
}

func TestReadingEventsAllocatesNothing(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	p := sender(t, d, ringNoWakeup)
	r, err := openRing(d.set.maps["events"])
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	batch := make([]bpf.Event, eventBatch)
	opts := &ebpf.RunOptions{Data: make([]byte, 64), Repeat: 50}
	read := 0
	sending := testing.AllocsPerRun(20, func() { p.Run(opts) })
	for r.read(batch) > 0 {
	}
	both := testing.AllocsPerRun(20, func() {
		p.Run(opts)
		read += r.read(batch)
	})
	if read < 20*50 {
		t.Fatalf("only %d events were read", read)
	}
	if both > sending {
		t.Errorf("%v allocations with reading, %v without", both, sending)
	}
}

// fakeRing is a ring in plain memory, as the kernel lays it out.
func fakeRing(size int) *ring {
	return &ring{
		consumer: make([]byte, unix.Getpagesize()), producer: make([]byte, unix.Getpagesize()+2*size), mask: uint64(size - 1),
	}
}

// add appends a record to a fake ring.
func (r *ring) add(header uint32, sample []byte) {
	data := r.producer[unix.Getpagesize():]
	at := binary.NativeEndian.Uint64(r.producer)
	size := r.mask + 1
	record := binary.NativeEndian.AppendUint32(nil, header|uint32(len(sample)))
	record = append(append(record, 0, 0, 0, 0), sample...)
	for i, b := range record {
		place := (at + uint64(i)) % size
		data[place], data[place+size] = b, b
	}
	binary.NativeEndian.PutUint64(r.producer, at+uint64(len(record)+7)&^7)
}

// sample is an event as bytes.
func sample(t testing.TB, e *bpf.Event) []byte {
	t.Helper()
	return must(binary.Append(nil, binary.NativeEndian, e))
}

func TestRingSkipsDiscardedStopsAtBusyAndCountsStrange(t *testing.T) {
	r := fakeRing(4096)
	first, second := bpf.Event{Time: 1, Protocol: 6}, bpf.Event{Time: 2, Kind: bpf.EventDrop}
	r.add(0, sample(t, &first))
	r.add(ringDiscard, make([]byte, 48))
	r.add(0, make([]byte, 13))
	r.add(0, sample(t, &second))
	busyAt := binary.NativeEndian.Uint64(r.producer)
	r.add(ringBusy, make([]byte, eventSize))
	batch := make([]bpf.Event, 10)
	if diff := cmp.Diff([]bpf.Event{first, second}, batch[:r.read(batch)]); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if r.strange != 1 {
		t.Errorf("%d strange records, want 1", r.strange)
	}
	if got := binary.NativeEndian.Uint64(r.consumer); got != busyAt {
		t.Errorf("consumed up to %d, want up to the busy record at %d", got, busyAt)
	}
}

func TestRingReadsNoMoreThanAsked(t *testing.T) {
	r := fakeRing(4096)
	for i := range uint64(5) {
		r.add(0, sample(t, &bpf.Event{Time: i}))
	}
	batch := make([]bpf.Event, 3)
	if got := []int{r.read(batch), r.read(batch), r.read(batch)}; !cmp.Equal(got, []int{3, 2, 0}) {
		t.Errorf("read %v, want 3, 2, 0", got)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add(sample(f, &bpf.Event{Time: 3, Protocol: 17}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e bpf.Event
		if !decodeEvent(b, &e) {
			if len(b) == eventSize {
				t.Fatal("a sample of the right size was refused")
			}
			return
		}
		if diff := cmp.Diff(b[:eventSize], sample(t, &e)); diff != "" {
			t.Fatalf("decoding lost bytes (-sample +event):\n%s", diff)
		}
	})
}

func FuzzRing(f *testing.F) {
	f.Add([]byte{0xb8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3}, uint16(64))
	f.Fuzz(func(t *testing.T, content []byte, produced uint16) {
		r := fakeRing(4096)
		data := r.producer[unix.Getpagesize():]
		copy(data[:4096], content)
		copy(data[4096:], data[:4096])
		end := min(uint64(produced)&^7, 4096)
		binary.NativeEndian.PutUint64(r.producer, end)
		batch := make([]bpf.Event, 8)
		for range 2000 {
			if r.read(batch) == 0 {
				break
			}
		}
		if got := binary.NativeEndian.Uint64(r.consumer); got > end {
			t.Fatalf("consumed %d of %d bytes", got, end)
		}
	})
}

func BenchmarkReadEvent(b *testing.B) {
	d := openBench(b)
	p := sender(b, d, ringNoWakeup)
	r, err := openRing(d.set.maps["events"])
	if err != nil {
		b.Fatal(err)
	}
	defer r.close()
	batch := make([]bpf.Event, eventBatch)
	opts := &ebpf.RunOptions{Data: make([]byte, 64), Repeat: 200}
	b.ReportAllocs()
	var spent time.Duration
	n := 0
	for b.Loop() {
		p.Run(opts)
		start := time.Now()
		n += r.read(batch)
		spent += time.Since(start)
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(n), "ns/event")
}
