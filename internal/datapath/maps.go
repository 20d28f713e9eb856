package datapath

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
)

// Folders of a root, one per kind of pin.
const (
	mapsFolder     = "maps"     // <map>-<schema>
	linksFolder    = "links"    // <place>-<what>
	versionsFolder = "versions" // <number>-<digest>, holding what is private to a version
)

// frozen maps hold state that cannot be rebuilt; another layout is refused, another size ignored.
func frozen(name string) bool {
	return slices.Contains([]string{"flows", "nat", "affinities", "assignments", "entries"}, name)
}

// SchemaError says that a pinned map that cannot be rebuilt has another layout than this agent's.
type SchemaError struct {
	Map          string
	Found, Wants string // pins
}

// Error names the map and the ways out.
func (e *SchemaError) Error() string {
	return fmt.Sprintf("open map %s: pinned as %s, this agent needs %s: connections would be lost; "+
		"run the agent version that made it, or drain the node and run `tendril cleanup`", e.Map, e.Found, e.Wants)
}

// pointsInto names the map that a map's values are numbers of. Both are made anew together: programs that still use the
// old ones would else follow a new number into an old map, where something else stands or nothing.
func pointsInto(name string) string {
	return map[string]string{"policy_programs": "policy_cells", "peer_class": "class_bits", "frontends": "slots", "slots": "backends"}[name]
}

// pinName is the name a map is pinned under: its layout is in the name, so that an agent with another layout finds
// nothing and makes a new map beside the old one.
func pinName(specs map[string]*ebpf.MapSpec, name string) string {
	if spec := specs[name]; frozen(name) {
		return name + "-" + bpf.SchemaHash(spec)
	}
	sum := sha256.New()
	for spec := specs[name]; spec != nil; spec = specs[pointsInto(spec.Name)] {
		fmt.Fprintf(sum, "%s %d %d\n", bpf.SchemaHash(spec), spec.Flags, spec.MaxEntries)
	}
	return name + "-" + hex.EncodeToString(sum.Sum(nil)[:8])
}

// sharedSpecs collects the maps of all objects, resized, by name. Constants, variables and prog arrays other than
// `entries` are private to a version and not among them.
func sharedSpecs(objects map[string]*ebpf.CollectionSpec, sizes map[string]uint32, classWords uint32) (map[string]*ebpf.MapSpec, error) {
	specs := map[string]*ebpf.MapSpec{}
	for _, object := range objects {
		for name, spec := range object.Maps {
			if !private(spec) {
				specs[name] = spec.Copy()
			}
		}
	}
	if spec := specs["class_bits"]; spec != nil && spec.ValueSize != classWords*8 {
		spec.ValueSize, spec.Value = classWords*8, nil // the type would be of another size
	}
	for name, size := range sizes {
		if specs[name] == nil {
			return nil, fmt.Errorf("datapath config: sizes[%s]: there is no such map; there are %s", name, strings.Join(slices.Sorted(maps.Keys(specs)), ", "))
		}
		specs[name].MaxEntries = size
	}
	return specs, nil
}

// private says that a map belongs to one version of the programs.
func private(spec *ebpf.MapSpec) bool {
	return strings.HasPrefix(spec.Name, ".") || spec.Type == ebpf.ProgramArray && spec.Name != "entries"
}

// mapSet is the open shared maps.
type mapSet struct {
	folder string
	maps   map[string]*ebpf.Map
	sizes  map[string]uint32 // entries, by name
	made   []string          // maps that were not there before
	stale  []string          // pins of other layouts, to be removed once no program uses them
}

// openMaps opens or makes every map. On an error, what it made itself is unpinned again.
func openMaps(folder string, specs map[string]*ebpf.MapSpec) (_ *mapSet, err error) {
	pins, err := listFolder(folder)
	if err != nil {
		return nil, err
	}
	set := &mapSet{folder: folder, maps: map[string]*ebpf.Map{}, sizes: map[string]uint32{}}
	defer func() {
		if err != nil {
			set.undo()
		}
	}()
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		if err := set.open(specs[name], pinName(specs, name), pins); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// open opens or makes one map and notes pins of its other layouts.
func (s *mapSet) open(spec *ebpf.MapSpec, want string, pins []string) error {
	found := slices.Contains(pins, want)
	for _, pin := range pins {
		if pin == want || !strings.HasPrefix(pin, spec.Name+"-") {
			continue
		}
		if frozen(spec.Name) {
			return &SchemaError{Map: spec.Name, Found: pin, Wants: want}
		}
		s.stale = append(s.stale, pin)
	}
	m, err := openMap(filepath.Join(s.folder, want), spec, found)
	if err != nil {
		return fmt.Errorf("open map %s: %w", spec.Name, err)
	}
	if !found {
		s.made = append(s.made, spec.Name)
	}
	s.maps[spec.Name], s.sizes[spec.Name] = m, m.MaxEntries()
	return nil
}

func openMap(pin string, spec *ebpf.MapSpec, found bool) (*ebpf.Map, error) {
	if found {
		return ebpf.LoadPinnedMap(pin, nil)
	}
	spec = spec.Copy()
	spec.Contents = nil
	spec.Pinning = ebpf.PinNone
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("create with %d entries: %w", spec.MaxEntries, err)
	}
	if err := m.Pin(pin); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// undo takes back what openMaps made.
func (s *mapSet) undo() {
	for _, name := range s.made {
		_ = s.maps[name].Unpin() // an error is already on its way up; the next start finds the pin and uses it
	}
	s.close()
}

func (s *mapSet) close() {
	for _, m := range s.maps {
		m.Close()
	}
}

// dropStale removes pins of layouts that no program uses any more.
func (s *mapSet) dropStale() error {
	var errs []error
	for _, pin := range s.stale {
		errs = append(errs, removePin(filepath.Join(s.folder, pin)))
	}
	s.stale = nil
	return errors.Join(errs...)
}

// listFolder names what is in a folder; one that does not exist is empty.
func listFolder(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list %s: %w", folder, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// removePin removes a pin; one that is gone is fine.
func removePin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pin %s: %w", path, err)
	}
	return nil
}

// onBPFFS says whether a folder, or the nearest parent of it that exists, lies in a mounted bpffs.
func onBPFFS(folder string) (bool, error) {
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(folder, &fs)
		if errors.Is(err, unix.ENOENT) && folder != "/" {
			folder = filepath.Dir(folder)
			continue
		}
		if err != nil {
			return false, fmt.Errorf("statfs %s: %w", folder, err)
		}
		return fs.Type == unix.BPF_FS_MAGIC, nil
	}
}
