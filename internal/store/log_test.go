package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	storev1 "tendril.io/tendril/api/store/v1"
)

// contents reads a log as lines.
func contents(t testing.TB, path string) (lines []string, torn int64) {
	t.Helper()
	l, torn, err := openLog(path, func(sequence uint64, w *storev1.Write) {
		lines = append(lines, fmt.Sprintf("%d %s=%s %t", sequence, w.GetKey(), w.GetValue(), w.GetRemove()))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	return lines, torn
}

// written makes a log of a few writes and returns its bytes and what it holds.
func written(t testing.TB, path string) (raw []byte, lines []string) {
	t.Helper()
	l, _, err := openLog(path, func(uint64, *storev1.Write) {})
	if err != nil {
		t.Fatal(err)
	}
	for i, key := range []string{"a", "b", "a", "c"} {
		if err := l.append(uint64(i+1), key, fmt.Appendf(nil, "v%d", i), key == "b"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	raw, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines, _ = contents(t, path)
	return raw, lines
}

func TestALogGivesBackWhatWasAppended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder", "log")
	_, lines := written(t, path)
	want := []string{"1 a=v0 false", "2 b=v1 true", "3 a=v2 false", "4 c=v3 false"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestALogTornAtAnyByteKeepsEveryWholeWriteBeforeItAndGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	raw, all := written(t, path)
	for cut := len(logMagic); cut < len(raw); cut++ {
		if err := os.WriteFile(path, raw[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l, torn, err := openLog(path, func(uint64, *storev1.Write) {})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if err := l.append(9, "new", nil, false); err != nil {
			t.Fatal(err)
		}
		if err := l.close(); err != nil {
			t.Fatal(err)
		}
		lines, _ := contents(t, path)
		kept := len(lines) - 1
		if kept < 0 || kept > len(all) {
			t.Fatalf("cut at %d: %d writes", cut, len(lines))
		}
		if diff := cmp.Diff(append(all[:kept:kept], "9 new= false"), lines); diff != "" {
			t.Fatalf("cut at %d (-want +got):\n%s", cut, diff)
		}
		if whole := len(raw) == cut+int(torn); whole && kept != len(all) {
			t.Errorf("cut at %d: %d bytes torn, %d kept", cut, torn, kept)
		}
	}
}

func TestAFlippedBitEndsTheLogThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	raw, all := written(t, path)
	for at := len(logMagic); at < len(raw); at++ {
		damaged := bytes.Clone(raw)
		damaged[at] ^= 0x40
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		lines, torn := contents(t, path)
		if torn == 0 || len(lines) >= len(all) {
			t.Errorf("byte %d: the damage was not seen", at)
		}
		if diff := cmp.Diff(all[:len(lines):len(lines)], append([]string{}, lines...)); len(lines) > 0 && diff != "" {
			t.Errorf("byte %d (-want +got):\n%s", at, diff)
		}
	}
}

func TestAFileThatIsNoLogIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("somebody's precious text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if lines, torn := contents(t, path); len(lines) != 0 || torn == 0 {
		t.Errorf("got %v, %d bytes torn", lines, torn)
	}
	kept, err := os.ReadFile(path + ".bad")
	if err != nil || string(kept) != "somebody's precious text" {
		t.Errorf("set aside: %q, %v", kept, err)
	}
}

func TestCompactionKeepsTheLastWriteOfEachKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	written(t, path)
	l, _, err := openLog(path, func(uint64, *storev1.Write) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.append(5, "d", []byte("x"), true); err != nil {
		t.Fatal(err)
	}
	if err := l.compact(func(sequence uint64) bool { return sequence == 5 }); err != nil {
		t.Fatal(err)
	}
	if err := l.append(6, "e", nil, false); err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	lines, torn := contents(t, path)
	want := []string{"3 a=v2 false", "4 c=v3 false", "5 d=x true", "6 e= false"}
	if diff := cmp.Diff(want, lines); diff != "" || torn != 0 {
		t.Errorf("after compaction, %d bytes torn (-want +got):\n%s", torn, diff)
	}
}

func FuzzLog(f *testing.F) {
	raw, _ := written(f, filepath.Join(f.TempDir(), "log"))
	f.Add(raw)
	f.Add(raw[:len(raw)-3])
	f.Add([]byte(logMagic))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		first, _ := contents(t, path)
		second, torn := contents(t, path)
		if diff := cmp.Diff(first, second); diff != "" || torn != 0 {
			t.Errorf("reading repaired nothing: %d bytes torn again (-first +second):\n%s", torn, diff)
		}
	})
}
