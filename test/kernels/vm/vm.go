// Package vm boots a Linux kernel in qemu with nothing but one program in it, and tells how the program ended.
//
// The guest's whole file system is an archive in memory: an init process and a static program, such as a compiled Go
// test, with modules of the kernel if it needs some. There is no disk, no network and no shared folder, so nothing of the machine can be harmed and nothing stays.
// The processor is emulated, even where the machine could lend its own: a kernel then boots in seconds anywhere, inside another
// virtual machine, too. Good for whether something works, never for how fast.
package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// status is the line in which the guest's init says how the program ended.
var status = regexp.MustCompile(`(?m)^tendril-guest-status:(\d+)\r?$`)

// Config says what to boot.
type Config struct {
	Kernel    string   // vmlinux, an ELF file
	Init      string   // the compiled guest init
	Modules   []string // of the kernel, to load first, in order
	Program   string   // static program to run
	Arguments []string // of the program; no blanks inside
	MemoryMiB int      // 0: 1024
}

// Diag lists the modules of sock_diag, in a kernel's folder of modules.
func Diag(folder string) []string {
	var paths []string
	for _, name := range []string{"inet_diag", "tcp_diag", "udp_diag"} {
		paths = append(paths, filepath.Join(folder, name+".ko"))
	}
	return paths
}

// Run boots the guest and returns the program's output. The error says if the guest died or the program failed.
func Run(ctx context.Context, config Config) (string, error) {
	archive, err := pack(config)
	if err != nil {
		return "", fmt.Errorf("guest: %w", err)
	}
	dir, err := os.MkdirTemp("", "tendril-vm-")
	if err != nil {
		return "", fmt.Errorf("guest: %w", err)
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, archive, 0o600); err != nil {
		return "", fmt.Errorf("guest: %w", err)
	}
	memory := config.MemoryMiB
	if memory == 0 {
		memory = 1024
	}
	command := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,i8042=off,usb=off", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off",
		"-smp", "1", "-m", strconv.Itoa(memory), "-serial", "stdio",
		"-kernel", config.Kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet loglevel=3 panic=-1 oops=panic mitigations=off nokaslr random.trust_cpu=on "+
			"no_timer_check tsc=reliable apparmor=0 selinux=0 audit=0 cryptomgr.notests")
	var out, complaints bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaints
	runErr := command.Run()
	return judge(out.String(), complaints.String(), errors.Join(runErr, ctx.Err()))
}

// judge finds the program's output and status on the console.
func judge(console, complaints string, runErr error) (string, error) {
	found := status.FindStringSubmatchIndex(console)
	if found == nil {
		return console, fmt.Errorf("guest ended without a status: %w: %s: its console ends with:\n%s", runErr, strings.TrimSpace(complaints), tail(console, 30))
	}
	output := strings.ReplaceAll(console[:found[0]], "\r\n", "\n")
	if code := console[found[2]:found[3]]; code != "0" {
		return output, fmt.Errorf("guest's program ended with status %s", code)
	}
	return output, nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// pack makes the guest's file system.
func pack(config Config) ([]byte, error) {
	var a archive
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "run", "work"} {
		a.add(dir, modeDir, nil)
	}
	a.add("dev/console", modeConsole, nil)
	for name, path := range map[string]string{"init": config.Init, "program": config.Program} {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		a.add(name, modeFile, content)
	}
	a.add("modules", modeDir, nil)
	for i, path := range config.Modules {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		a.add(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(path)), modeFile, content)
	}
	a.add("arguments", modeFile, []byte(strings.Join(config.Arguments, "\n")))
	return a.close(), nil
}
