package vm

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheArchiveIsWhatCpioReads(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio is not installed")
	}
	var a archive
	a.add("etc", modeDir, nil)
	a.add("etc/odd", modeFile, []byte("12345"))
	a.add("last", modeFile, nil)
	list := exec.Command("cpio", "-it", "--quiet")
	list.Stdin = strings.NewReader(string(a.close()))
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := string(out), "etc\netc/odd\nlast\n"; got != want {
		t.Errorf("cpio lists %q, want %q", got, want)
	}
}

func TestTheConsoleSaysHowTheProgramEnded(t *testing.T) {
	died := errors.New("exit status 1")
	tests := []struct{ sentence, console, output, want string }{
		{"a program that succeeds", "hello\r\n\ntendril-guest-status:0\r\n", "hello\n\n", ""},
		{"a program that fails", "oops\n\ntendril-guest-status:2\n", "oops\n\n", "guest's program ended with status 2"},
		{"a guest that dies", "panic: no init\n", "panic: no init\n",
			"guest ended without a status: exit status 1: no such machine: its console ends with:\npanic: no init"},
		{"a program that prints something like a status", "x tendril-guest-status:0\n", "x tendril-guest-status:0\n",
			"guest ended without a status: exit status 1: no such machine: its console ends with:\nx tendril-guest-status:0"},
	}
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			output, err := judge(test.console, "no such machine\n", died)
			if output != test.output {
				t.Errorf("output %q, want %q", output, test.output)
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("error %q, want %q", got, test.want)
			}
		})
	}
}

func TestAMissingFileIsNamed(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "init")
	_, err := Run(t.Context(), Config{Init: missing, Program: missing})
	if err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v, want an error that names %s", err, missing)
	}
}
