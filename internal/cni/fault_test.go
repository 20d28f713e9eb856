package cni

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// deletion is a request that may be queued.
func deletion(container string) *Raw {
	return &Raw{Command: Del, ContainerID: container, IfName: "eth0", Stdin: []byte(goodConfig)}
}

// queued lists the files of a queue.
func queued(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "deletions"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestQueueGoesOnPastWhatItCannotDo(t *testing.T) {
	dir := t.TempDir()
	queue := NewQueue(dir)
	for _, container := range []string{"good", "bad", "better"} {
		if err := queue.Put(deletion(container)); err != nil {
			t.Fatal(err)
		}
	}
	broken := filepath.Join(dir, "deletions", "broken.json")
	if err := os.WriteFile(broken, []byte(`{"command":`), 0o600); err != nil {
		t.Fatal(err)
	}
	refusal := errors.New("device is busy")
	var done []string
	err := queue.Drain(func(request *Request) error {
		if request.ContainerID == "bad" {
			return refusal
		}
		done = append(done, request.ContainerID)
		return nil
	})
	if !errors.Is(err, refusal) || !strings.Contains(err.Error(), broken) {
		t.Errorf("error is %v, want the refusal and the broken file's name", err)
	}
	slices.Sort(done)
	if diff := cmp.Diff([]string{"better", "good"}, done); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
	want := []string{filepath.Base(NewQueue(dir).path(deletion("bad"))), "broken.json"}
	slices.Sort(want)
	if diff := cmp.Diff(want, queued(t, dir)); diff != "" {
		t.Errorf("what stays queued (-want +got):\n%s", diff)
	}
}

func TestDeletionHalfWrittenByADyingPluginIsNone(t *testing.T) {
	dir := t.TempDir()
	queue := NewQueue(dir)
	if err := queue.Put(deletion("whole")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "deletions", "new-123"), []byte(`{"command":"DE`), 0o600); err != nil {
		t.Fatal(err)
	}
	count := 0
	if err := queue.Drain(func(*Request) error { count++; return nil }); err != nil || count != 1 {
		t.Errorf("%d deletions were done, %v; want the whole one", count, err)
	}
}

func TestQueueThatCannotBeWrittenSaysSo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	queue := NewQueue(file) // a folder below a file
	for what, err := range map[string]error{
		"put":    queue.Put(deletion("a")),
		"remove": queue.Remove(deletion("a")),
		"drain":  queue.Drain(func(*Request) error { return nil }),
	} {
		if err == nil || !strings.Contains(err.Error(), "deletion") || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v, want an error that names operation and file", what, err)
		}
	}
	if err := NewQueue(t.TempDir()).Remove(deletion("never queued")); err != nil {
		t.Errorf("removing what is not queued: %v", err)
	}
}

// TestAgentThatDiesWhileItWorksIsNotAway: the plugin may not take such a command for one that was never begun.
func TestAgentThatDiesWhileItWorksIsNotAway(t *testing.T) {
	for name, answer := range map[string]string{
		"without a word":   "",
		"in the header":    "\x00\x00",
		"in the reply":     "\x00\x00\x00\x10{\"res",
		"with other words": "\x00\x00\x00\x04nope",
		"with too much":    "\xff\xff\xff\xff{}",
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			listener, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				conn, err := listener.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				var request Raw
				readFrame(conn.(*net.UnixConn), &request)
				conn.Write([]byte(answer))
				conn.Close()
			}()
			_, err = Ask(t.Context(), socket, deletion("a"), nil, time.Second)
			<-ended
			if err == nil || errors.Is(err, ErrAgentAway) || !strings.Contains(err.Error(), "read agent's reply") {
				t.Errorf("error is %v, want one about the reply", err)
			}
		})
	}
}

func TestResultWithoutGatewayHasNoFieldForIt(t *testing.T) {
	result := &Result{
		IPs:    []IP{{Address: netip.MustParsePrefix("10.1.0.3/32")}},
		Routes: []Route{{Dst: netip.MustParsePrefix("10.0.0.0/8")}},
	}
	for _, version := range Versions() {
		encoded, err := result.Encode(version)
		if err != nil || !json.Valid(encoded) {
			t.Fatalf("%s: %s, %v", version, encoded, err)
		}
		for _, field := range []string{"gateway", "gw", "invalid IP", "interfaces"} {
			if strings.Contains(string(encoded), field) {
				t.Errorf("%s: %s has %q", version, encoded, field)
			}
		}
	}
}

// TestNamesAgreeWithTheirPatterns compares the checks, which are written out for speed, with the patterns of the CNI's
// specification (section 2), RFC 1123 and Kubernetes.
func TestNamesAgreeWithTheirPatterns(t *testing.T) {
	const subdomain = `[a-z0-9]([-.a-z0-9]*[a-z0-9])?`
	const dressed = `[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?`
	checks := []struct {
		name    string
		valid   func(string) bool
		pattern *regexp.Regexp
		most    int
	}{
		{"identifier", validIdentifier, regexp.MustCompile(`^[A-Za-z0-9][-_.A-Za-z0-9]*$`), 255},
		{"object", validObject, regexp.MustCompile(`^` + subdomain + `$`), 253},
		{"port", validPortName, regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`), 15},
		{"label value", validLabelValue, regexp.MustCompile(`^(` + dressed + `)?$`), 63},
		{"label key", validLabelKey, regexp.MustCompile(`^(` + subdomain + `/)?` + dressed + `$`), 253 + 1 + 63},
	}
	text := rapid.OneOf(
		rapid.StringOfN(rapid.RuneFrom([]rune("aZ0-_./ é\x00")), 0, 8, -1),
		rapid.Map(rapid.IntRange(0, 300), func(n int) string { return strings.Repeat("a", n) }),
	)
	rapid.Check(t, func(t *rapid.T) {
		s := text.Draw(t, "name")
		for _, c := range checks {
			_, afterPrefix, prefixed := strings.Cut(s, "/")
			want := c.pattern.MatchString(s) && len(s) <= c.most
			if c.name == "label key" && want { // the name behind the prefix, or the whole, has 63 at most
				want = prefixed && len(afterPrefix) <= 63 || !prefixed && len(s) <= 63
			}
			if got := c.valid(s); got != want {
				t.Fatalf("%s %q is valid: %t, want %t", c.name, s, got, want)
			}
		}
	})
}

func TestErrorsOfOthersAreInternalAndKeepTheirText(t *testing.T) {
	got := AsError(errors.New("disk full"))
	if got.Code != CodeInternal || !strings.Contains(got.Error(), "disk full") {
		t.Errorf("error is %+v", got)
	}
	if short := (&Error{Code: CodeIO, Message: "just so"}).Error(); short != "just so" {
		t.Errorf("an error without details is %q", short)
	}
}
