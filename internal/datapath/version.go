package datapath

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sync/errgroup"

	"tendril.io/tendril/bpf"
)

// A version is one load of all programs with one configuration. Its stages are reached through prog arrays of its own, so
// that changing the entry slots changes everything behind them, and no packet meets two versions. What a version needs
// beyond the agent's life is pinned in versions/<number>-<digest>; versions/current names the one in force.

// currentLink is the name of the symbolic link to the version in force; it is away while slots are being changed.
const currentLink = "current"

// configVariable is the programs' constant of type struct node_config.
const configVariable = "config"

// version is a loaded set of programs.
type version struct {
	number   uint32
	folder   string
	programs map[string]*ebpf.Program
	arrays   map[string]*ebpf.Map // prog arrays of its stages
}

func (v *version) close() {
	for _, p := range v.programs {
		p.Close()
	}
	for _, m := range v.arrays {
		m.Close()
	}
}

// discard closes a version that is not in force and removes its pins.
func (v *version) discard() error {
	v.close()
	return os.RemoveAll(v.folder)
}

// loadSpecs reads all objects.
func loadSpecs() (map[string]*ebpf.CollectionSpec, error) {
	specs := map[string]*ebpf.CollectionSpec{}
	for _, name := range bpf.Objects() {
		spec, err := bpf.Load(name)
		if err != nil {
			return nil, err
		}
		specs[name] = spec
	}
	return specs, nil
}

// programName is the C function of an entry.
func programName(entry bpf.Entry) string { return strings.ReplaceAll(entry.String(), "-", "_") }

// entryPrograms lists the entries that have a program.
func entryPrograms() map[bpf.Entry]string {
	out := map[bpf.Entry]string{}
	for entry := range bpf.EntryCount {
		if name := programName(entry); name != "" {
			out[entry] = name
		}
	}
	return out
}

// versionDigest stands for programs, configuration and maps: equal digests do the same.
func versionDigest(specs map[string]*ebpf.CollectionSpec, node *bpf.NodeConfig, set *mapSet) (string, error) {
	hash := sha256.New()
	for _, object := range slices.Sorted(maps.Keys(specs)) {
		for _, name := range slices.Sorted(maps.Keys(specs[object].Programs)) {
			fmt.Fprintf(hash, "%s %s\n", object, name)
			hashText(hash, specs[object].Programs[name].Instructions)
		}
	}
	fmt.Fprintf(hash, "%+v\n", *node)
	for _, name := range slices.Sorted(maps.Keys(set.maps)) {
		info, err := set.maps[name].Info()
		if err != nil {
			return "", fmt.Errorf("map %s: %w", name, err)
		}
		id, _ := info.ID()
		fmt.Fprintf(hash, "%s %d\n", name, id)
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

// hashText hashes a program's text; maps and functions by name, since they have no numbers before they are loaded.
func hashText(out io.Writer, text asm.Instructions) {
	var line []byte
	for i := range text {
		ins := &text[i]
		line = binary.NativeEndian.AppendUint64(line[:0], uint64(ins.Constant))
		line = append(line, byte(ins.OpCode), byte(ins.Dst), byte(ins.Src), byte(ins.Offset), byte(ins.Offset>>8))
		line = append(line, ins.Reference()...)
		_, _ = out.Write(append(line, '\n')) // a hash's Write never fails (hash.Hash)
	}
}

// openPrograms keeps the version in force if it is the one this agent would load, else loads another. Where a map was
// made beside one of another layout, the new version waits until the agent has filled that map.
func (d *Datapath) openPrograms(ctx context.Context) error {
	specs := d.specs
	d.specs = nil // not needed beyond Open, and large
	digest, err := versionDigest(specs, &d.node, d.set)
	if err != nil {
		return err
	}
	d.hooks, d.pinned = socketHooks(specs), unslotted(specs)
	if d.current, err = d.adoptVersion(digest); err != nil || d.current != nil {
		return err
	}
	next, err := d.loadVersion(specs, &d.node, digest)
	if err != nil {
		return err
	}
	if len(d.set.stale) > 0 {
		d.log.Info("programs wait until new maps are filled", "maps", strings.Join(d.set.made, " "))
		d.staged = next
		return nil
	}
	return d.putInForce(ctx, next)
}

// adoptVersion opens the version in force if it has the digest; nil: it has not.
func (d *Datapath) adoptVersion(digest string) (*version, error) {
	folder := filepath.Join(d.cfg.Root, versionsFolder)
	target, err := os.Readlink(filepath.Join(folder, currentLink))
	if err != nil {
		return nil, nil // none, or an agent died while it changed slots
	}
	number, found, _ := strings.Cut(target, "-")
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || found != digest {
		return nil, nil
	}
	v := &version{number: uint32(n), folder: filepath.Join(folder, target), programs: map[string]*ebpf.Program{}}
	for _, name := range d.pinned {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(v.folder, name), nil)
		if err != nil {
			v.close()
			d.log.Warn("programs in force are incomplete and will be replaced", "program", name, "error", err)
			return nil, nil
		}
		v.programs[name] = p
	}
	return v, nil
}

// unslotted lists the programs that no entry slot holds, and that are therefore pinned: socket hooks, XDP, sweepers, iterators.
func unslotted(specs map[string]*ebpf.CollectionSpec) []string {
	var names []string
	for _, spec := range specs {
		for name, program := range spec.Programs {
			if program.Type == ebpf.Syscall || program.Type == ebpf.Tracing || program.Type == ebpf.XDP {
				names = append(names, name)
			}
		}
	}
	names = slices.AppendSeq(names, maps.Keys(socketHooks(specs)))
	slices.Sort(names)
	return names // sorted, since a version's digest and its pins must not depend on a map's order
}

// loadVersion loads all programs; nothing is in force until putInForce.
func (d *Datapath) loadVersion(specs map[string]*ebpf.CollectionSpec, node *bpf.NodeConfig, digest string) (_ *version, err error) {
	number, err := d.nextNumber()
	if err != nil {
		return nil, err
	}
	v := &version{
		number: number, folder: filepath.Join(d.cfg.Root, versionsFolder, fmt.Sprintf("%d-%s", number, digest)),
		programs: map[string]*ebpf.Program{}, arrays: map[string]*ebpf.Map{},
	}
	if err := os.Mkdir(v.folder, 0o700); err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.discard())
		}
	}()
	if err := d.loadObjects(v, specs, node); err != nil {
		return nil, err
	}
	return v, d.pinVersion(v)
}

// loadObjects loads all objects into a version, side by side: most of the time is the verifier's, and it is what a first
// start waits for.
func (d *Datapath) loadObjects(v *version, specs map[string]*ebpf.CollectionSpec, node *bpf.NodeConfig) error {
	names := slices.Sorted(maps.Keys(specs))
	loaded := make([]*ebpf.Collection, len(names))
	var group errgroup.Group
	for i, object := range names {
		replacements, err := d.prepareObject(v, specs[object], node)
		if err != nil {
			return fmt.Errorf("load object %s: %w", object, errors.Join(err, group.Wait()))
		}
		group.Go(func() (err error) {
			loaded[i], err = ebpf.NewCollectionWithOptions(specs[object], ebpf.CollectionOptions{MapReplacements: replacements})
			if err != nil {
				return fmt.Errorf("load object %s: %w", object, err)
			}
			return nil
		})
	}
	err := group.Wait()
	for i, coll := range loaded {
		if coll == nil {
			continue
		}
		for name := range coll.Programs {
			v.programs[name] = coll.DetachProgram(name)
		}
		coll.Close()
		if err == nil {
			err = v.fillArrays(specs[names[i]])
		}
	}
	return err
}

// nextNumber is one more than the highest version that left a trace.
func (d *Datapath) nextNumber() (uint32, error) {
	names, err := listFolder(filepath.Join(d.cfg.Root, versionsFolder))
	if err != nil {
		return 0, err
	}
	highest := uint64(0)
	for _, name := range names {
		number, _, _ := strings.Cut(name, "-")
		if n, err := strconv.ParseUint(number, 10, 32); err == nil {
			highest = max(highest, n)
		}
	}
	return uint32(highest) + 1, nil
}

// prepareObject sets an object's constants and names the maps that it shares.
func (d *Datapath) prepareObject(v *version, spec *ebpf.CollectionSpec, node *bpf.NodeConfig) (map[string]*ebpf.Map, error) {
	if variable := spec.Variables[configVariable]; variable != nil {
		config, err := binary.Append(nil, binary.NativeEndian, node)
		if err != nil {
			return nil, fmt.Errorf("encode node config: %w", err)
		}
		config = append(config, make([]byte, max(0, int(variable.Size())-len(config)))...) // trailing padding
		if err := variable.Set(config); err != nil {
			return nil, fmt.Errorf("set node config: %w", err)
		}
	}
	replacements := map[string]*ebpf.Map{}
	for name, mapSpec := range spec.Maps {
		if shared := d.set.maps[name]; shared != nil {
			mapSpec.MaxEntries, mapSpec.ValueSize, mapSpec.Contents = shared.MaxEntries(), shared.ValueSize(), nil
			replacements[name] = shared
		} else if mapSpec.Type == ebpf.ProgramArray {
			array, err := v.array(name, mapSpec)
			if err != nil {
				return nil, err
			}
			replacements[name] = array
		}
	}
	return replacements, nil
}

// array opens the version's own prog array of a name, pinned so that it is not emptied when the agent ends.
func (v *version) array(name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if m := v.arrays[name]; m != nil {
		return m, nil
	}
	spec = spec.Copy()
	spec.Contents, spec.Pinning = nil, ebpf.PinNone
	m, err := openMap(filepath.Join(v.folder, name), spec, false)
	if err != nil {
		return nil, fmt.Errorf("stages %s: %w", name, err)
	}
	v.arrays[name] = m
	return m, nil
}

// fillArrays puts an object's stages into the version's prog arrays, as the object's declarations say.
func (v *version) fillArrays(spec *ebpf.CollectionSpec) error {
	for name, array := range v.arrays {
		mapSpec := spec.Maps[name]
		if mapSpec == nil {
			continue
		}
		for _, kv := range mapSpec.Contents {
			stage, _ := kv.Value.(string)
			if v.programs[stage] == nil {
				return fmt.Errorf("stages %s[%v]: no program %q", name, kv.Key, stage)
			}
			if err := array.Put(kv.Key, v.programs[stage]); err != nil {
				return fmt.Errorf("stages %s[%v]: %w", name, kv.Key, err)
			}
		}
	}
	return nil
}

// pinVersion pins what no entry slot will hold, and checks that every entry has its program.
func (d *Datapath) pinVersion(v *version) error {
	for entry, name := range entryPrograms() {
		if v.programs[name] == nil {
			return fmt.Errorf("load programs: entry %s has no program", entry)
		}
	}
	for _, name := range d.pinned {
		if err := v.programs[name].Pin(filepath.Join(v.folder, name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

// putInForce changes the entry slots to a version, one update each, then the socket hooks, and frees what was in force
// before, once no packet can be in it.
func (d *Datapath) putInForce(ctx context.Context, next *version) error {
	versions := filepath.Join(d.cfg.Root, versionsFolder)
	// Without the link the next start does not trust the slots and loads anew: the agent may die between two of them.
	if err := removePin(filepath.Join(versions, currentLink)); err != nil {
		return err
	}
	for entry, name := range entryPrograms() {
		if err := d.counts.step(writeEntry); err != nil {
			return err
		}
		if err := d.set.maps["entries"].Put(uint32(entry), next.programs[name]); err != nil {
			return fmt.Errorf("put program %s in force: %w", name, err)
		}
	}
	if err := os.Symlink(filepath.Base(next.folder), filepath.Join(versions, currentLink)); err != nil {
		return fmt.Errorf("record version in force: %w", err)
	}
	// From here on the version is in force, whatever fails below: an error is told, but nothing is taken back.
	before := d.current
	d.current, d.staged = next, nil
	if before != nil {
		defer before.close()
	}
	if d.socketsOn {
		if err := d.linkSockets(); err != nil {
			return err
		}
	}
	if err := d.linkXDP(); err != nil {
		return err
	}
	return errors.Join(d.dropVersions(), d.set.dropStale())
}

// dropVersions unpins every version but the one in force, after a grace period: emptying the stages of a version that a
// packet is in would drop that packet.
func (d *Datapath) dropVersions() error {
	versions := filepath.Join(d.cfg.Root, versionsFolder)
	names, err := listFolder(versions)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return name == currentLink || name == filepath.Base(d.current.folder)
	})
	if len(names) == 0 {
		return nil
	}
	if err := d.grace.wait(); err != nil {
		return err
	}
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(versions, name)); err != nil {
			return fmt.Errorf("drop version %s: %w", name, err)
		}
	}
	return nil
}

// Reload loads all programs with a configuration beside those in force and swaps them, entry by entry, each swap one
// store; no packet is lost. It returns the new version's number. On an error what was in force stays. Where a version waits for
// [Datapath.Prune] since its maps are not filled, the new one waits in its place.
func (d *Datapath) Reload(ctx context.Context, node bpf.NodeConfig) (uint32, error) {
	if err := validateNode(&node); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.completeNode(&node); err != nil {
		return 0, err
	}
	if node.ClassWords != d.node.ClassWords {
		return 0, fmt.Errorf("reload datapath: node.class_words %d: it is %d until the agent restarts", node.ClassWords, d.node.ClassWords)
	}
	specs, err := loadSpecs()
	if err != nil {
		return 0, fmt.Errorf("reload datapath: %w", err)
	}
	digest, err := versionDigest(specs, &node, d.set)
	if err != nil {
		return 0, fmt.Errorf("reload datapath: %w", err)
	}
	next, err := d.loadVersion(specs, &node, digest)
	if err != nil {
		return 0, fmt.Errorf("reload datapath: %w", err)
	}
	if waiting := d.staged; waiting != nil {
		d.staged, d.node = next, node
		if err := waiting.discard(); err != nil {
			return 0, fmt.Errorf("reload datapath: %w", err)
		}
		return next.number, nil
	}
	if err := d.putInForce(ctx, next); err != nil {
		return 0, fmt.Errorf("reload datapath: %w", err)
	}
	d.node = node
	return next.number, nil
}
