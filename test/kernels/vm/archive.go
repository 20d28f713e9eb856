package vm

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// Modes of the files in an archive (stat(2)).
const (
	modeDir     = 0o040755
	modeFile    = 0o100755
	modeConsole = 0o020600 // a character device, number 5:1 (the kernel's Documentation/admin-guide/devices.txt)
)

// archive is a cpio archive of the "newc" kind, which the kernel unpacks into its first file system (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	out   bytes.Buffer
	count int
}

// add appends a file; names have no leading slash.
func (a *archive) add(name string, mode uint32, content []byte) {
	a.count++
	var major, minor uint32
	if mode == modeConsole {
		major, minor = 5, 1
	}
	fmt.Fprintf(&a.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.count, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0)
	a.out.WriteString(name + "\x00")
	a.pad()
	a.out.Write(content)
	a.pad()
}

// addFiles appends files by their paths in the guest, each below its folders.
func (a *archive) addFiles(files map[string]string) error {
	made := map[string]bool{"": true}
	for _, at := range slices.Sorted(maps.Keys(files)) {
		name := strings.TrimPrefix(at, "/")
		for i, char := range name {
			if folder := name[:i]; char == '/' && !made[folder] {
				made[folder] = true
				a.add(folder, modeDir, nil)
			}
		}
		content, err := os.ReadFile(files[at])
		if err != nil {
			return err
		}
		a.add(name, modeFile, content)
	}
	return nil
}

// pad fills up to a multiple of four bytes.
func (a *archive) pad() {
	for a.out.Len()%4 != 0 {
		a.out.WriteByte(0)
	}
}

// close ends the archive and returns it.
func (a *archive) close() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.out.Bytes()
}
