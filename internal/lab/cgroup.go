package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cgroupMount finds where cgroup v2 is mounted: /sys/fs/cgroup, or beside v1 hierarchies in /sys/fs/cgroup/unified.
func cgroupMount() (string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	if mount := findMount(string(raw), "cgroup2"); mount != "" {
		return mount, nil
	}
	return "", errors.New("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

// findMount returns the first mount point of a filesystem type in the text of mountinfo (proc_pid_mountinfo(5)): the
// fifth field, and the first after the separator.
func findMount(mountinfo, fstype string) string {
	lines := bufio.NewScanner(strings.NewReader(mountinfo))
	for lines.Scan() {
		before, after, found := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if found && len(fields) >= 5 && len(kind) > 0 && kind[0] == fstype {
			return fields[4]
		}
	}
	return ""
}

// killCgroup kills every process below a cgroup and waits until none is left. A cgroup that is not there is fine.
func killCgroup(path string, within time.Duration) error {
	err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	for deadline := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		events, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
		if errors.Is(err, os.ErrNotExist) || strings.Contains(string(events), "populated 0") {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup %s: still has processes %s after being killed", path, within)
		}
	}
}

// removeCgroup removes an empty cgroup and those below it, deepest first.
func removeCgroup(path string) error {
	var folders []string
	err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			folders = append(folders, name)
		}
		return ignoreMissing(err)
	})
	slices.Reverse(folders)
	for _, folder := range folders {
		err = errors.Join(err, ignoreMissing(os.Remove(folder)))
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
