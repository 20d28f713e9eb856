package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Place is where a process lives: a network namespace and a cgroup. The zero value is no place.
type Place struct {
	Name   string // for messages: node1, shop/web, outside
	Netns  string // path of the namespace
	Cgroup string // path of the cgroup
}

// Process is a program that the lab started and left running. It is the process with this id and this start time:
// another one that got the same id later is never taken for it.
type Process struct {
	Name  string   `json:"name"`
	Argv  []string `json:"argv"`
	Place Place    `json:"place"`
	PID   int      `json:"pid"`
	Start uint64   `json:"start"` // in clock ticks since boot, field 22 of /proc/<pid>/stat
	Log   string   `json:"log"`
	// LogFrom is where this process's part of the log begins; earlier processes of that name wrote what is before.
	LogFrom int64 `json:"log_from"`
}

// Prepare makes the command start inside the place: born in its cgroup (CLONE_INTO_CGROUP), in a session of its own.
// The returned function starts it there and must be used instead of cmd.Start.
func (p Place) Prepare(cmd *exec.Cmd) (start func() error) {
	return func() error {
		cgroup, err := os.Open(p.Cgroup)
		if err != nil {
			return fmt.Errorf("place %s: %w", p.Name, err)
		}
		defer cgroup.Close()
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		}
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(cgroup.Fd())
		return inNetns(p.Netns, cmd.Start)
	}
}

// Exec runs a program to its end and returns what it printed on standard output. The error quotes standard error.
func (p Place) Exec(ctx context.Context, argv ...string) (string, error) {
	return p.execInput(ctx, nil, nil, argv...)
}

func (p Place) execInput(ctx context.Context, env []string, input []byte, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	err := p.Prepare(cmd)()
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %s: %w%s", p.Name, strings.Join(argv, " "), err, quote(stderr.String(), 5))
	}
	return stdout.String(), nil
}

// spawn starts a program that goes on after the caller has ended; its output is appended to the log file.
func (p Place) spawn(name, log string, argv ...string) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	from, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := p.Prepare(cmd)(); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", name, p.Name, err)
	}
	process := &Process{Name: name, Argv: argv, Place: p, PID: cmd.Process.Pid, Log: log, LogFrom: from}
	process.Start, _ = startTime(process.PID)
	return process, cmd.Process.Release()
}

// Alive says whether the process still runs; a zombie does not.
func (p *Process) Alive() bool {
	start, running := startTime(p.PID)
	return running && start == p.Start
}

// Wait waits until the process has ended and returns its exit status, which is known (not -1) where this program
// started it.
func (p *Process) Wait(ctx context.Context) (int, error) {
	status := -1
	for {
		alive := p.Alive() // asked first: what has ended by now can be reaped, and is not left as a zombie without its status
		var wait syscall.WaitStatus
		pid, err := syscall.Wait4(p.PID, &wait, syscall.WNOHANG, nil)
		if err == nil && pid == p.PID {
			status = exitStatus(wait)
		}
		if !alive {
			return status, nil
		}
		select {
		case <-ctx.Done():
			return -1, fmt.Errorf("process %s (%d): %w%s", p.Name, p.PID, ctx.Err(), p.quoteLog(3))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func exitStatus(wait syscall.WaitStatus) int {
	if wait.Signaled() {
		return 128 + int(wait.Signal())
	}
	return wait.ExitStatus()
}

// Signal sends a signal, and does nothing where the process has ended.
func (p *Process) Signal(signal syscall.Signal) error {
	if !p.Alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s to %s (%d): %w", signal, p.Name, p.PID, err)
	}
	return nil
}

// Stop asks the process to end and kills it where it does not within three seconds.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	gentle, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := p.Wait(gentle); err == nil {
		return nil
	}
	return p.Kill(ctx)
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	_, err := p.Wait(ctx)
	return err
}

// Output returns everything that the process has printed so far.
func (p *Process) Output() string {
	raw, err := os.ReadFile(p.Log)
	if err != nil {
		return ""
	}
	return string(raw[min(p.LogFrom, int64(len(raw))):])
}

func (p *Process) quoteLog(lines int) string { return quote(p.Output(), lines) }

// quote returns the last lines of a text, indented, to be put behind an error's message.
func quote(text string, lines int) string {
	text = strings.TrimSpace(text)
	if text == "" {
		return ""
	}
	all := strings.Split(text, "\n")
	return "\n    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}

// startTime reads when a process started; running is false where there is no such process or it is a zombie.
func startTime(pid int) (start uint64, running bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	return parseStat(string(raw))
}

// parseStat reads the state (field 3), the number of threads (20) and the start time (22) of proc_pid_stat(5). Threads end one by one:
// while there are others, what the process listens on is still taken, though the first is a zombie already. To list them in its
// place would be wrong: the kernel cuts the list short at one that ends meanwhile. The name in field 2 may hold blanks and
// brackets, so fields are counted from the last bracket.
func parseStat(stat string) (start uint64, running bool) {
	_, rest, found := cutLast(stat, ")")
	fields := strings.Fields(rest)
	if !found || len(fields) < 20 {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	ended := fields[0] == "Z" || fields[0] == "X"
	return start, err == nil && (!ended || fields[17] != "0" && fields[17] != "1")
}

func cutLast(text, separator string) (before, after string, found bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(separator):], true
}
