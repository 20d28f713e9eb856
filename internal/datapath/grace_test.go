package datapath

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sync/errgroup"

	"tendril.io/tendril/internal/policy"
)

// hammerCells is the length of a program's content in cells.
const hammerCells = 16

// lookup leaves in R0 the value of a map at the index in register from, or ends the program.
func lookup(fd int, from asm.Register) asm.Instructions {
	return asm.Instructions{
		asm.StoreMem(asm.R10, -4, from, asm.Word),
		asm.LoadMapPtr(asm.R1, fd),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "end"),
	}
}

// tornCounter reads program 1's descriptor and then all of its content, which must be of one kind, and counts in
// counts[0] how often it was not and in counts[1] how often it looked.
func tornCounter(d *Datapath, counts *ebpf.Map) asm.Instructions {
	text := asm.Instructions{asm.Mov.Imm(asm.R6, 1)}
	text = append(text, lookup(d.set.maps["policy_programs"].FD(), asm.R6)...)
	text = append(text,
		asm.LoadMem(asm.R6, asm.R0, 0, asm.DWord),
		asm.JEq.Imm(asm.R6, 0, "end"),
		asm.LSh.Imm(asm.R6, 32), asm.RSh.Imm(asm.R6, 32), // bits 0..31: the first cell
		asm.Mov.Imm(asm.R8, 0), // or of all differences
	)
	for i := range hammerCells {
		text = append(text, lookup(d.set.maps["policy_cells"].FD(), asm.R6)...)
		if i == 0 {
			text = append(text, asm.LoadMem(asm.R7, asm.R0, 0, asm.DWord))
		}
		text = append(text,
			asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord), asm.Xor.Reg(asm.R1, asm.R7), asm.Or.Reg(asm.R8, asm.R1),
			asm.LoadMem(asm.R1, asm.R0, 8, asm.DWord), asm.Xor.Reg(asm.R1, asm.R7), asm.Or.Reg(asm.R8, asm.R1),
			asm.Add.Imm(asm.R6, 1),
		)
	}
	text = append(text, asm.Mov.Imm(asm.R9, 1), asm.JEq.Imm(asm.R8, 0, "count"), asm.Mov.Imm(asm.R9, 0))
	count := lookup(counts.FD(), asm.R9)
	count[0] = count[0].WithSymbol("count")
	text = append(text, count...)
	return append(text,
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("end"), asm.Return(),
	)
}

// hammer flips program 1 between fresh contents in a space with room for three, while a program reads it all the time,
// and returns how many readings were torn and whole. finish frees what a flip released.
func hammer(t *testing.T, limit time.Duration, untilTorn bool, finish func(*Datapath) error) (torn, whole uint64) {
	t.Helper()
	cfg := testConfig(rootFolder(t))
	cfg.Sizes["policy_cells"] = 3*hammerCells + 1
	d := bare(t, cfg)
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer counts.Close()
	reader := loadProbe(t, "torn counter", tornCounter(d, counts))
	ctx, stop := context.WithTimeout(t.Context(), limit)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for ctx.Err() == nil {
			if _, err := reader.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 2000}); err != nil {
				return err
			}
			if untilTorn && countAt(t, counts, 0) > 0 {
				stop()
			}
		}
		return nil
	})
	group.Go(func() error {
		for i := 0; ctx.Err() == nil; i++ {
			if err := errors.Join(flip(d, i), finish(d)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return countAt(t, counts, 0), countAt(t, counts, 1)
}

func countAt(t *testing.T, counts *ebpf.Map, i uint32) (n uint64) {
	if err := counts.Lookup(&i, &n); err != nil {
		t.Error(err)
	}
	return n
}

// flip publishes content number i as program 1 and releases the one before.
func flip(d *Datapath, i int) error {
	name := func(i int) policy.Digest { return policy.Digest{byte(i), byte(i >> 8), byte(i >> 16), 1} }
	first, err := d.numbers.Assign(policy.KindCells, name(i), hammerCells)
	var room *policy.Shortage
	if errors.As(err, &room) {
		return nil // all of it waits for a grace period
	}
	if err != nil {
		return err
	}
	if i > 0 {
		d.numbers.Release(policy.KindCells, name(i-1))
	}
	return d.Publish(context.Background(), &policy.Delta{
		Contents: []policy.ContentRow{{FirstCell: first, Cells: cells(hammerCells, uint64(i)+1)}},
		Programs: []policy.ProgramRow{{Program: 1, Descriptor: inUse | uint64(first)}},
	})
}

func TestNoVerdictIsTornWhileProgramsFlip(t *testing.T) {
	for name, useMaps := range map[string]bool{"membarrier": false, "map update": true} {
		t.Run(name, func(t *testing.T) {
			torn, whole := hammer(t, time.Second, false, func(d *Datapath) error {
				if useMaps && d.grace.barrier {
					if err := d.grace.useMaps(); err != nil {
						return err
					}
				}
				return d.reclaim()
			})
			if torn > 0 || whole == 0 {
				t.Errorf("%d readings torn, %d whole", torn, whole)
			}
			t.Logf("%d readings, none torn", whole)
		})
	}
}

// Without the grace period the same reader does see torn content, so the test above can fail.
func TestWithoutGracePeriodVerdictsAreTorn(t *testing.T) {
	torn, whole := hammer(t, 20*time.Second, true, func(d *Datapath) error { return d.numbers.free(d.grace.take()) })
	if torn == 0 {
		t.Errorf("none of %d readings was torn", whole)
	}
	t.Logf("%d of %d readings torn", torn, torn+whole)
}

func TestRunFreesWhatPublicationsRetire(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	number := must(d.numbers.Assign(policy.KindClass, digest(1), 1))
	d.numbers.Release(policy.KindClass, digest(1))
	publish(t, d, &policy.Delta{})
	deadline := time.Now().Add(10 * time.Second)
	for i := byte(2); ; i++ {
		if must(d.numbers.Assign(policy.KindClass, digest(i), 1)) == number {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the number was not freed")
		}
		time.Sleep(100 * time.Millisecond)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run ended with %v", err)
	}
}

func TestFailedGracePeriodFreesNothing(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	must(d.numbers.Assign(policy.KindClass, digest(1), 1))
	d.numbers.Release(policy.KindClass, digest(1))
	publish(t, d, &policy.Delta{})
	if err := d.grace.useMaps(); err != nil {
		t.Fatal(err)
	}
	d.grace.outer.Close()
	if err := d.reclaim(); err == nil {
		t.Error("a grace period that could not be waited for was taken as over")
	}
	if got := len(d.grace.take()); got != 1 {
		t.Errorf("%d numbers wait for the next grace period, want 1", got)
	}
}

func BenchmarkGracePeriod(b *testing.B) {
	d := openBench(b)
	for b.Loop() {
		if err := d.grace.wait(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestWhoFindsNoRoomWaitsForWhatIsRetired(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t))) // nothing reclaims in the background
	big := d.set.sizes["policy_cells"] - 1
	if _, err := d.numbers.Assign(policy.KindCells, policy.Digest{1}, big); err != nil {
		t.Fatal(err)
	}
	d.numbers.Release(policy.KindCells, policy.Digest{1})
	if _, err := d.numbers.Assign(policy.KindCells, policy.Digest{2}, 2); err == nil {
		t.Fatal("released cells were given away before the publication that no longer refers to them")
	}
	if err := d.Publish(t.Context(), &policy.Delta{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.numbers.Assign(policy.KindCells, policy.Digest{2}, 2); err != nil {
		t.Errorf("retired cells could be waited for: %v", err)
	}
}
