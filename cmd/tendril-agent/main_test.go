package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAConfigurationThatCannotBeEndsTheAgentBeforeItTouchesTheNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: without it the agent says that first")
	}
	folder := t.TempDir()
	bad := filepath.Join(folder, "bad.json")
	if err := os.WriteFile(bad, []byte(`{"node":"n","run_dir":"`+folder+`/run"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--config", filepath.Join(folder, "none.json")}, "read configuration"},
		{[]string{"--config", bad}, "store: required"},
		{[]string{"--config", bad, "extra"}, "unknown command"},
		{[]string{"--configuration", bad}, "unknown flag"},
	} {
		c := command()
		c.SetArgs(test.args)
		c.SetOut(io.Discard)
		c.SetErr(io.Discard)
		if err := c.Execute(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.args, err, test.want)
		}
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v (%v), want the configuration alone", entries, err)
	}
}
