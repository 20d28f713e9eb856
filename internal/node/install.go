package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/datapath"
)

// pluginName is the CNI plugin's file name, and its type in the network's configuration.
const pluginName = "tendril-cni"

// Install checks that a node can have an agent, reports everything that lacks at once, and copies the CNI plugin from a file to where the
// runtime looks for plugins.
func Install(config Config, plugin string, log *slog.Logger) error {
	warnOfOthers(config, log)
	warnOfSettings("/proc/sys", log)
	if mode := kubeProxyMode(context.Background(), kubeProxyAddr); mode != "" {
		log.Info("kube-proxy runs on this node: it may go on, or go, as Services are served before its rules are asked", "mode", mode)
	}
	if err := errors.Join(checkKernel(config), checkRuntime(config)); err != nil {
		return err
	}
	if config.CNIBinDir == "" {
		return nil
	}
	content, err := os.ReadFile(plugin)
	if err != nil {
		return err
	}
	target := filepath.Join(config.CNIBinDir, pluginName)
	if known, err := os.ReadFile(target); err == nil && slices.Equal(known, content) {
		return nil
	}
	// Replaced as a whole: the runtime may call it at this moment.
	return renameio.WriteFile(target, content, 0o755, renameio.WithTempDir(config.CNIBinDir), renameio.WithStaticPermissions(0o755))
}

// checkKernel looks for what the datapath needs.
func checkKernel(config Config) error {
	var problems []error
	for _, feature := range datapath.Features() {
		if feature.Needed && !feature.Available {
			problems = append(problems, fmt.Errorf("kernel: no %s, for %s: use Linux 6.1 or later", feature.Name, feature.Detail))
		}
	}
	if !mounted(filepath.Dir(config.BPFRoot), unix.BPF_FS_MAGIC) {
		problems = append(problems, fmt.Errorf("bpf_root: %s is in no bpffs: run `mount -t bpf bpf /sys/fs/bpf` on the node", config.BPFRoot))
	}
	if config.Cgroup != "" && !mounted(config.Cgroup, unix.CGROUP2_SUPER_MAGIC) {
		problems = append(problems, fmt.Errorf(
			"cgroup: %s is no control group of version 2: give the folder where the node has them, often /sys/fs/cgroup or /sys/fs/cgroup/unified", config.Cgroup))
	}
	return errors.Join(problems...)
}

// warnOfSettings names settings of the kernel that make every packet dearer, and are not for us to change: they hold for all programs.
func warnOfSettings(root string, log *slog.Logger) {
	const compiler = "net/core/bpf_jit_enable"
	value, err := os.ReadFile(filepath.Join(root, compiler))
	if err == nil && strings.TrimSpace(string(value)) == "0" {
		log.Warn("the kernel interprets BPF programs, which makes every packet several times as dear", "remedy", "set "+compiler+" to 1 with sysctl")
	}
}

// mounted says whether a folder is of a kind of file system.
func mounted(folder string, magic int64) bool {
	var fs unix.Statfs_t
	return unix.Statfs(folder, &fs) == nil && fs.Type == magic
}

// checkRuntime looks for what would keep the container runtime from calling our plugin.
func checkRuntime(config Config) error {
	var problems []error
	if config.CNIBinDir != "" {
		if _, err := os.Stat(filepath.Join(config.CNIBinDir, "loopback")); err != nil {
			problems = append(problems, fmt.Errorf(
				"cni_bin_dir: %w: runtimes call this plugin for every pod: install the standard CNI plugins on the node", err))
		}
	}
	if config.CNIConfDir == "" {
		return errors.Join(problems...)
	}
	entries, err := os.ReadDir(config.CNIConfDir)
	if err != nil {
		return errors.Join(append(problems, fmt.Errorf("cni_conf_dir: %w", err))...)
	}
	for _, entry := range entries { // sorted by name
		kind := filepath.Ext(entry.Name())
		if entry.Name() < conflist && (kind == ".conf" || kind == ".conflist" || kind == ".json") {
			problems = append(problems, fmt.Errorf(
				"cni_conf_dir: %s is of another network and comes before %s, so the runtime would go on with it: remove that network",
				filepath.Join(config.CNIConfDir, entry.Name()), conflist))
		}
	}
	return errors.Join(problems...)
}
