package endpoint

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/table"
)

// deleteHalf adds a pod and has its deletion fail at a call, after which everything works again.
func deleteHalf(t *testing.T, w *world, a *agent, failing string) {
	t.Helper()
	add(t, a, "web")
	w.fail = failing
	if err := a.Del(t.Context(), request("web")); !errors.Is(err, errFault) {
		t.Fatalf("deletion: %v, want the fault", err)
	}
	w.fail = ""
}

func TestRepeatedDeletionSparesThePodThatHasTheNumberNow(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	deleteHalf(t, w, a, "withdraw")
	w.number = 0 // numbers are given out again
	add(t, a, "db")
	if err := a.Del(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	rows := a.rows()
	if len(rows) != 1 || rows[0].Pod != "db" || rows[0].ID != 1 {
		t.Errorf("rows after the second deletion are %+v, want db's with number 1", rows)
	}
}

func TestRepeatedDeletionWithdrawsOnlyWhatTheFirstDidNot(t *testing.T) {
	w := newWorld()
	a := newAgent(t, w, t.TempDir())
	deleteHalf(t, w, a, "withdraw#2")
	w.commit() // the first address rests, and may be another pod's by the time of the second deletion
	if err := a.Del(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("fd01::3")}
	if diff := cmp.Diff(want, slices.Collect(maps.Keys(w.committed)), comparers()); diff != "" {
		t.Errorf("withdrawn by the second deletion (-want +got):\n%s", diff)
	}
	if found := left(t, a, w); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestRepeatedDeletionLeavesAddressesOfOthersInUse(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := newAgent(t, w, dir)
	deleteHalf(t, w, a, "withdraw#2")
	lines := a.journal.lines
	if err := a.Del(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	if a.journal.lines != lines {
		t.Error("the second deletion released the addresses once more in the journal")
	}
}

func TestJournalThatCannotBeRewrittenGoesOnGrowing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := newJournal(t, path)
	if err := os.Mkdir(path+".new", 0o700); err != nil { // stands in the way of the new file
		t.Fatal(err)
	}
	for i := range 3000 {
		r := testRecord(1 + i%3)
		r.Generation = uint32(i)
		if err := j.append(entry{Put: r}); err != nil {
			t.Fatalf("line %d: %v; it was written, and would be taken for unwritten", i, err)
		}
	}
	want := j.snapshot()
	got, err := readJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "in the file", want, got)
	if err := os.Remove(path + ".new"); err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		if err := j.append(entry{Put: testRecord(1)}); err != nil {
			t.Fatal(err)
		}
	}
	if j.lines > 2000 {
		t.Errorf("the journal has %d lines for 3 records: it is never rewritten again", j.lines)
	}
}

// TestNothingIsDetachedBeforeRestore: an agent that has forgotten its pods for the moment must not take them for
// detached, or they would come back for good once it remembers.
func TestNothingIsDetachedBeforeRestore(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	add(t, newAgent(t, w, dir), "web")
	a := newUnrestored(t, w, dir)
	for name, command := range map[string]func(context.Context, *cni.Request) error{"DEL": a.Del, "CHECK": a.Check, "GC": a.GC} {
		if err := command(t.Context(), request("web")); cni.AsError(err).Code != cni.CodeUnavailable {
			t.Errorf("%s before Restore: %v, want code %d", name, err, cni.CodeUnavailable)
		}
	}
	if err := a.Restore(t.Context(), cni.NewQueue(dir)); err != nil {
		t.Fatal(err)
	}
	if err := a.Del(t.Context(), request("web")); err != nil {
		t.Error(err)
	}
	if found := left(t, a, w); found != nil {
		t.Errorf("left behind: %v", found)
	}
}

func TestRestoreNamesPodsThatItCouldNotRestoreAndServesTheOthers(t *testing.T) {
	for _, failing := range []string{"inspect", "assign", "publish", "load", "attach", "connect"} {
		t.Run(failing, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			first := newAgent(t, w, dir)
			add(t, first, "a-pod")
			add(t, first, "b-pod")
			for _, device := range w.devices {
				device.Up = false // so that there is something to connect
			}
			w.foreignStubs, w.calls, w.fail = true, nil, failing
			a := newUnrestored(t, w, dir)
			err := a.Restore(t.Context(), cni.NewQueue(dir))
			if !errors.Is(err, errFault) || !containsAll(err.Error(), "endpoint 1", "default/a-pod") {
				t.Errorf("error is %v, want the fault and the pod", err)
			}
			w.fail = ""
			if rows := a.rows(); !slices.ContainsFunc(rows, func(r *table.Endpoint) bool { return r.Pod == "b-pod" }) {
				t.Errorf("rows are %+v, want b-pod's among them", rows)
			}
			for _, pod := range []string{"a-pod", "b-pod"} {
				if err := a.Del(t.Context(), request(pod)); err != nil {
					t.Error(err)
				}
			}
			if found := left(t, a, w); found != nil {
				t.Errorf("left behind: %v", found)
			}
		})
	}
}

func TestLostNumbersGetANewGenerationThatOutlivesTheNextStart(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	add(t, newAgent(t, w, dir), "web")
	clear(w.numbers)
	second := newAgent(t, w, dir).rows()[0]
	third := newAgent(t, w, dir).rows()[0]
	if second.ID == 1 || second.Generation != 2 || third.ID != second.ID || third.Generation != second.Generation {
		t.Errorf("number and generation are %d and %d, then %d and %d; want others than 1 and 1, and the same twice",
			second.ID, second.Generation, third.ID, third.Generation)
	}
}
