package node

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tendril.io/tendril/internal/netlink"
)

// leftover is something of another network that may drop, translate or redirect packets of pods.
type leftover struct {
	network string // whose it is
	what    string
	remedy  string
}

// traces is how to know what a network leaves behind when it goes. Names are those of the projects' own documents and manifests.
type traces struct {
	network string
	devices []string // how names begin
	chains  []string // of nftables and of iptables on top of it
	pins    []string // below bpffs, patterns of filepath.Match
	configs []string // what the names of files with runtimes' networks contain
}

func others() []traces {
	return []traces{
		{"cilium", []string{"cilium_", "lxc"}, []string{"CILIUM_", "OLD_CILIUM_"}, []string{"cilium", "tc/globals/cilium_*"}, []string{"cilium"}},
		{"calico", []string{"cali", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali"}, []string{"cali-"}, []string{"calico", "tc/globals/cali_*"}, []string{"calico"}},
		{"flannel", []string{"flannel"}, []string{"FLANNEL-"}, nil, []string{"flannel"}},
		{"weave", []string{"weave", "vethwe-"}, []string{"WEAVE"}, nil, []string{"weave"}},
		{"antrea", []string{"antrea-"}, []string{"ANTREA-"}, nil, []string{"antrea"}},
		{"kube-router", []string{"kube-bridge", "kube-dummy-if"}, []string{"KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"}, nil, []string{"kuberouter", "kube-router"}},
		{"kube-proxy in its mode ipvs", []string{"kube-ipvs"}, nil, nil, nil},
		{"a bridge plugin", []string{"cni0", "cni-podman"}, []string{"CNI-"}, nil, nil},
	}
}

// warnOfOthers names what other networks have left on the node. It is no reason not to go on: another network may be meant to be there, for
// other pods or as the plugin before tendril's.
func warnOfOthers(config Config, log *slog.Logger) {
	found, err := findLeftovers(config)
	if err != nil {
		log.Warn("look for what other networks left; something may not be named", "error", err)
	}
	for _, l := range found {
		log.Warn("another network has left something on this node, which may drop or redirect pods' packets", "network", l.network, "what", l.what, "remedy", l.remedy)
	}
}

// findLeftovers looks everywhere; what could not be looked at is in the error.
func findLeftovers(config Config) ([]leftover, error) {
	var failed []error
	note := func(names []string, err error) []string {
		failed = append(failed, err)
		return names
	}
	devices, chains, configs := note(deviceNames()), note(chainNames()), note(configNames(config.CNIConfDir))
	root := filepath.Dir(config.BPFRoot)
	var found []leftover
	for _, t := range others() {
		found = append(found, t.find(devices, chains, configs)...)
		found = append(found, t.findPins(root)...)
	}
	return found, errors.Join(failed...)
}

// find compares names.
func (t traces) find(devices, chains, configs []string) (found []leftover) {
	for _, name := range devices {
		if begins(name, t.devices) {
			found = append(found, leftover{t.network, "device " + name, "run `ip link delete " + name + "` once no pod uses it"})
		}
	}
	for _, prefix := range t.chains {
		of := slices.DeleteFunc(slices.Clone(chains), func(name string) bool { return !strings.HasPrefix(name, prefix) })
		if len(of) > 0 {
			found = append(found, leftover{t.network, fmt.Sprintf("%d packet filter chains, such as %s", len(of), of[0]),
				"take the rules and chains out, or restart the node once that network is uninstalled: see `nft list ruleset`"})
		}
	}
	for _, path := range configs {
		if slices.ContainsFunc(t.configs, func(part string) bool { return strings.Contains(filepath.Base(path), part) }) {
			found = append(found, leftover{t.network, "network configuration " + path, "remove the file: a runtime without ours would go on with it"})
		}
	}
	return found
}

// findPins looks for programs and maps that are kept in bpffs.
func (t traces) findPins(root string) (found []leftover) {
	for _, pattern := range t.pins {
		paths, _ := filepath.Glob(filepath.Join(root, pattern)) // the patterns are well formed
		if len(paths) > 0 {
			found = append(found, leftover{t.network, fmt.Sprintf("%d BPF programs and maps, such as %s", len(paths), paths[0]),
				"uninstall that network, then remove them: programs stay attached as long as their pins do"})
		}
	}
	return found
}

func begins(name string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

func deviceNames() (names []string, err error) {
	devices, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, device := range devices {
		names = append(names, device.Name)
	}
	return names, nil
}

func chainNames() ([]string, error) {
	links, err := netlink.Open()
	if err != nil {
		return nil, err
	}
	defer links.Close()
	return links.Chains()
}

// configNames lists the files with runtimes' networks besides ours.
func configNames(folder string) (paths []string, err error) {
	if folder == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // checkRuntime says so
	}
	if err != nil {
		return nil, fmt.Errorf("cni_conf_dir: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() != conflist {
			paths = append(paths, filepath.Join(folder, entry.Name()))
		}
	}
	return paths, nil
}
