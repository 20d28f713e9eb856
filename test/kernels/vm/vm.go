// Package vm boots a Linux kernel in qemu with nothing but one program in it, and tells how the program ended.
//
// The guest's whole file system is an archive in memory: an init process and a static program, such as a compiled Go
// test, with modules of the kernel and programs of the machine if it needs some. There is no disk, no shared folder, and no network but
// wires from one of its devices to another, so nothing of the machine can be harmed and nothing stays.
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
	// Environment is the program's, besides PATH, HOME and TMPDIR; no line breaks inside.
	Environment []string
	// Files are more files of the guest, by their path there; see Programs. What is in /bin is found by name.
	Files     map[string]string
	MemoryMiB int // 0: 1024
	CPUs      int // 0: 1, which starts processes fastest
	// Wires are pairs of virtio-net devices, each joined as by a cable; they need root. Of the first the link addresses are
	// 02:00:00:00:01:01 and 02:00:00:00:01:02, and so on.
	Wires []Wire
}

// Modules lists modules in a kernel's folder of modules, by name.
func Modules(folder string, names ...string) []string {
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join(folder, name+".ko"))
	}
	return paths
}

// library finds files in the output of ldd(1): "libc.so.6 => /lib/libc.so.6 (0x0)", "/lib64/ld.so (0x0)".
var library = regexp.MustCompile(`(/\S+) \(0x`)

// Programs adds programs of the machine to Files, with the libraries that they load.
func (c *Config) Programs(names ...string) error {
	if c.Files == nil {
		c.Files = map[string]string{}
	}
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		c.Files["/bin/"+name] = path
		libraries, err := exec.Command("ldd", path).Output()
		if err != nil {
			return fmt.Errorf("libraries of %s: %w", path, err)
		}
		for _, found := range library.FindAllStringSubmatch(string(libraries), -1) {
			c.Files[found[1]] = found[1]
		}
	}
	return nil
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
		"-smp", strconv.Itoa(max(1, config.CPUs)), "-m", strconv.Itoa(memory), "-serial", "stdio",
		"-kernel", config.Kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet loglevel=3 panic=-1 oops=panic mitigations=off nokaslr random.trust_cpu=on "+
			"no_timer_check tsc=reliable apparmor=0 selinux=0 audit=0 cryptomgr.notests")
	command.Args = append(command.Args, wireArguments(config.Wires)...)
	var out, complaints bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaints
	start := command.Start
	if len(config.Wires) > 0 {
		start = func() error { return startWired(command, len(config.Wires)) }
	}
	runErr := start()
	if runErr == nil {
		runErr = command.Wait()
	}
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
	if err := a.addFiles(config.Files); err != nil {
		return nil, err
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
	a.add("environment", modeFile, []byte(strings.Join(config.Environment, "\n")))
	return a.close(), nil
}
