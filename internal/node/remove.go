package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/endpoint"
	"tendril.io/tendril/internal/netlink"
)

// Remove takes off a node what an agent with this configuration left there: the network's configuration and the plugin, pods' devices,
// routes and addresses, programs and maps, its files, and other folders that are named. Pods that still run lose their network. The agent must have ended. What is
// gone already is no error, so a removal that failed may be repeated.
func Remove(ctx context.Context, config Config, also []string, log *slog.Logger) error {
	locks := &Agent{config: config, log: log}
	defer locks.Close()
	if err := locks.buildFolders(ctx); err != nil { // one that runs still would put everything back
		return err
	}
	steps := []struct {
		what string
		do   func() error
	}{
		// First, so that the runtime sends no more pods.
		{"network configuration", func() error { return removeFile(config.CNIConfDir, conflist) }},
		{"devices, routes and addresses", func() error { return removeLinks(config) }},
		{"programs and maps", func() error { return datapath.Teardown(config.BPFRoot) }},
		{"plugin", func() error { return removeFile(config.CNIBinDir, pluginName) }},
		{"state", func() error { return removeFolder(config.StateDir) }},
		{"sockets", func() error { return removeFolder(config.RunDir) }},
		{"other folders", func() error { return removeFolders(also) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("remove %s: %w", step.what, err)
		}
		log.Info("removed", "what", step.what)
	}
	return nil
}

// removeLinks needs the prefixes that the agent had, for the node's own addresses are made of them.
func removeLinks(config Config) error {
	if len(config.PodCIDRs) == 0 {
		known, err := readCIDRs(filepath.Join(config.StateDir, podCIDRsFile))
		if err != nil {
			return err
		}
		config.PodCIDRs = known
	}
	own, err := ownAddresses(config.PodCIDRs)
	if err != nil {
		return err
	}
	left := netlink.Leftover{
		Devices: endpoint.DevicePrefix, Adopted: endpoint.ProgramNames(), Addrs: own,
		Classifiers: []string{bpf.EntryNetIn.String(), bpf.EntryNetOut.String(), bpf.EntryLoopOut.String()},
	}
	links, err := netlink.Open()
	if err != nil {
		return err
	}
	return errors.Join(links.Clear(left), links.Close())
}

func removeFile(folder, name string) error {
	if folder == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(folder, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// removeFolder empties a folder and removes it, unless something is mounted there.
func removeFolder(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(folder, entry.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(folder); err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

func removeFolders(folders []string) error {
	for _, folder := range folders {
		if err := removeFolder(folder); err != nil {
			return err
		}
	}
	return nil
}
