package node

import (
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestASecondAgentOnAFolderIsRefusedAndTakesNothing(t *testing.T) {
	folder := t.TempDir()
	config := Config{RunDir: filepath.Join(folder, "run"), StateDir: filepath.Join(folder, "state")}
	first := &Agent{config: config}
	if err := first.buildFolders(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.buildSockets(t.Context()); err != nil {
		t.Fatal(err)
	}
	for field, shared := range map[string]Config{
		"run_dir":   {RunDir: config.RunDir, StateDir: filepath.Join(folder, "other")},
		"state_dir": {RunDir: filepath.Join(folder, "other"), StateDir: config.StateDir},
	} {
		_, err := Build(t.Context(), shared, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), field) || !strings.Contains(err.Error(), "another agent is running on it") {
			t.Errorf("second agent on one %s: %v, want a refusal that names it", field, err)
		}
	}
	for _, name := range []string{"agent.sock", "cni.sock"} {
		if !answers(filepath.Join(config.RunDir, name)) {
			t.Errorf("%s of the running agent is gone", name)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (&Agent{config: config}).buildFolders(t.Context()); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
}

// answers says whether somebody listens on a socket.
func answers(path string) bool {
	connection, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	connection.Close()
	return true
}

func TestAStartWaitsForAnAgentThatIsAboutToEnd(t *testing.T) {
	folder := t.TempDir()
	before, err := lockFolder(t.Context(), "run_dir", folder)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { before.Close() }) // its last thread ends
	after, err := lockFolder(t.Context(), "run_dir", folder)
	if err != nil {
		t.Fatalf("a restart right behind a kill was refused: %v", err)
	}
	after.Close()
}
