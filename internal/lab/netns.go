package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// onOwnThread runs f on a thread that may be spoilt: the thread ends with f unless f returns clean == true.
func onOwnThread(f func() (clean bool, err error)) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		clean, err := f()
		if clean {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// createNetns makes a named network namespace with its loopback device up.
func createNetns(path string) error {
	if err := shareFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("namespace %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", path, err)
	}
	file.Close()
	err = onOwnThread(func() (bool, error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("unshare: %w", err)
		}
		return false, unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
	if err == nil {
		err = withLinks(path, func(h *netlink.Handle) error { return linkUp(h, "lo") })
	}
	if err != nil {
		return errors.Join(fmt.Errorf("namespace %s: %w", path, err), deleteNetns(path))
	}
	return nil
}

// shareFolder makes the folder of named namespaces a shared mount of its own, as ip-netns(8) does at its first use, under
// the same lock. Were it left to a later `ip netns add`, that would cover the namespaces that are there by then, and
// nobody could remove them any more.
func shareFolder(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", folder, err)
	}
	err = unix.Mount("", folder, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) { // which says that it is no mount
		return err
	}
	if err := unix.Mount(folder, folder, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", folder, err)
	}
	return unix.Mount("", folder, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// deleteNetns removes a named namespace; one that is not there is fine. Its devices go when its last process has.
func deleteNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("namespace %s: %w", path, err)
	}
	return nil
}

// listNetns returns the paths of all namespaces of a lab.
func listNetns(n names) ([]string, error) {
	return filepath.Glob(filepath.Join(netnsRoot, n.netns("*")))
}

// inNetns runs f with its thread inside the namespace. What f starts as a process or opens as a socket stays there.
func inNetns(path string, f func() error) error {
	target, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", path, err)
	}
	defer target.Close()
	return onOwnThread(func() (bool, error) {
		home, err := netns.Get()
		if err != nil {
			return true, err
		}
		defer home.Close()
		if err := netns.Set(target); err != nil {
			return true, fmt.Errorf("enter namespace %s: %w", path, err)
		}
		err = f()
		return netns.Set(home) == nil, err
	})
}

// withLinks gives f a netlink handle of the namespace.
func withLinks(path string, f func(*netlink.Handle) error) error {
	target, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", path, err)
	}
	defer target.Close()
	handle, err := netlink.NewHandleAt(target, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in %s: %w", path, err)
	}
	defer handle.Close()
	return f(handle)
}

// setSysctls writes settings, "net.ipv4.ip_forward" to value, of one namespace. A setting that this kernel lacks is an
// error unless its name ends in "?".
func setSysctls(path string, settings map[string]string) error {
	return inNetns(path, func() error {
		for name, value := range settings {
			name, optional := strings.CutSuffix(name, "?")
			file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
			err := os.WriteFile(file, []byte(value), 0o644)
			if err != nil && !(optional && errors.Is(err, os.ErrNotExist)) {
				return fmt.Errorf("sysctl %s = %s in %s: %w", name, value, path, err)
			}
		}
		return nil
	})
}

func linkUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s up: %w", name, err)
	}
	return nil
}
