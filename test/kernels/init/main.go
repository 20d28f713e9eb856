// Command init is the first process of a guest kernel: it mounts what a BPF program's user needs, loads modules, runs one command, says
// on the console how that ended, and switches the machine off.
//
// Its command is the file /program with the arguments in /arguments and what /environment has, one a line. It never returns to the kernel.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	fmt.Printf("\n%s%d\n", "tendril-guest-status:", run())
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Println("power off:", err)
	select {}
}

// run mounts, executes and gives the exit status; 125 says that the guest itself is at fault.
func run() int {
	if err := mountAll(); err != nil {
		fmt.Println("guest:", err)
		return 125
	}
	if err := errors.Join(loadModules(), raiseLoopback()); err != nil {
		fmt.Println("guest:", err)
		return 125
	}
	arguments, err := os.ReadFile("/arguments")
	environment, err2 := os.ReadFile("/environment")
	if err := errors.Join(err, err2); err != nil {
		fmt.Println("guest:", err)
		return 125
	}
	command := exec.Command("/program", strings.Fields(string(arguments))...)
	command.Dir = "/work"
	command.Env = append(strings.FieldsFunc(string(environment), func(r rune) bool { return r == '\n' }), "PATH=/bin", "HOME=/", "TMPDIR=/tmp")
	command.Stdout, command.Stderr = os.Stdout, os.Stdout
	err = command.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Println("guest:", err)
	return 125
}

// loadModules loads the files in /modules in the order of their names.
func loadModules() error {
	files, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := unix.InitModule(content, ""); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}

// raiseLoopback sets the loopback device up.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("set up lo: %w", err)
	}
	return nil
}

// mountAll makes the file systems that programs expect.
func mountAll() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
		{"bpf", "/sys/fs/bpf"}, {"cgroup2", "/sys/fs/cgroup"}, {"tmpfs", "/work"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("none", m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	return nil
}
