package endpoint

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/ipam"
)

func newJournal(t testing.TB, path string) *journal {
	t.Helper()
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.close() })
	return j
}

func testRecord(number int) *record {
	return &record{
		Attachment: cni.Attachment{ContainerID: fmt.Sprint("c", number), IfName: "eth0"}, Network: "tendril",
		ID: uint32(number), Generation: uint32(number), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(number)})},
		Created: time.Unix(1000, 0).UTC(), Complete: true,
	}
}

// same compares what two journals say.
func same(t *testing.T, what string, want, got contents) {
	t.Helper()
	options := append(comparers(), cmp.AllowUnexported(contents{}))
	if diff := cmp.Diff(want, got, options); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestJournalSaysTheSameAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := newJournal(t, path)
	released := ipam.Address{Addr: netip.MustParseAddr("10.1.0.2"), Owner: "default/b", State: ipam.Released, Since: time.Now().UTC().Round(0)}
	for _, e := range []entry{
		{Put: testRecord(1)}, {Put: testRecord(2)}, {Put: testRecord(3)},
		{Drop: &testRecord(2).Attachment, Addresses: []ipam.Address{released}},
	} {
		if err := j.append(e); err != nil {
			t.Fatal(err)
		}
	}
	want := j.snapshot()
	if len(want.records) != 2 || want.generation != 3 || len(want.addresses) != 1 {
		t.Errorf("journal says %+v", want)
	}
	j.close()
	for range 2 { // as appended, and as rewritten
		j = newJournal(t, path)
		same(t, "after reopening", want, j.snapshot())
		j.close()
	}
}

func TestGenerationOutlivesItsEndpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j := newJournal(t, path)
	j.append(entry{Put: testRecord(7)})
	j.append(entry{Drop: &testRecord(7).Attachment})
	j.close()
	j = newJournal(t, path)
	j.close()
	if got := newJournal(t, path).snapshot().generation; got != 7 {
		t.Errorf("generation after two restarts is %d, want 7", got)
	}
}

func TestAddressInUseIsNoLongerReleased(t *testing.T) {
	j := newJournal(t, filepath.Join(t.TempDir(), "j"))
	addr := testRecord(1).Addrs[0]
	j.append(entry{Addresses: []ipam.Address{{Addr: addr, State: ipam.Cooling, Since: time.Now()}}})
	j.append(entry{Put: testRecord(1)})
	if got := j.snapshot().addresses; len(got) != 0 {
		t.Errorf("addresses that rest are %v, want none", got)
	}
}

func TestJournalCutOffAnywhereSaysWhatWholeLinesSay(t *testing.T) {
	dir := t.TempDir()
	j := newJournal(t, filepath.Join(dir, "whole"))
	for i := range 3 {
		j.append(entry{Put: testRecord(i + 1)})
	}
	text, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	for size := range len(text) {
		path := filepath.Join(dir, "cut")
		if err := os.WriteFile(path, text[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readJournal(path)
		if err != nil {
			t.Fatalf("cut at %d: %v", size, err)
		}
		want := max(0, bytes.Count(text[:size], []byte("\n"))-1) // the first line is the head
		if len(got.records) != want {
			t.Fatalf("cut at %d: %d records, want %d", size, len(got.records), want)
		}
	}
}

func TestDamagedJournalIsRefusedWithLineAndRemedy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	damaged := "{}\n{\"put\": nonsense}\n{}\n"
	if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := openJournal(path)
	for _, want := range []string{path, "line 2", "restart the agent"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want it to say %q", err, want)
		}
	}
	if text, _ := os.ReadFile(path); string(text) != damaged {
		t.Error("the damaged file was changed")
	}
}

func TestJournalDoesNotGrowWithoutEnd(t *testing.T) {
	j := newJournal(t, filepath.Join(t.TempDir(), "j"))
	for i := range 5000 {
		r := testRecord(1)
		r.Generation = uint32(i)
		if err := j.append(entry{Put: r}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(j.path)
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(1100 * 500); info.Size() > limit || info.Size() != j.size {
		t.Errorf("journal of one record is %d bytes (counted %d), want at most %d", info.Size(), j.size, limit)
	}
	if got, err := readJournal(j.path); err != nil || got.generation != 4999 {
		t.Errorf("generation is %d, %v; want 4999", got.generation, err)
	}
}

func FuzzJournalOfAnyBytes(f *testing.F) {
	f.Add([]byte(`{"generation":3}` + "\n" + `{"put":{"attachment":{"containerID":"a","ifname":"eth0"}}}` + "\n"))
	f.Add([]byte("null\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(path)
		if err != nil {
			return
		}
		defer j.close()
		want := j.snapshot()
		got, err := readJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "after rewriting", want, got)
	})
}
