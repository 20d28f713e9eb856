package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Mode says how pods of different nodes reach each other.
type Mode string

// The modes.
const (
	ModeNative Mode = "native" // direct routes
	ModeVXLAN  Mode = "vxlan"  // overlay
	ModeBare   Mode = "bare"   // plain veth pairs and kernel routes: no agents, no store, no BPF
)

// Config says what to build. The zero value of every field is its default.
type Config struct {
	// Name tells labs on one machine apart: a letter, then letters and digits, at most 20. Default "lab".
	Name string `json:"name"`
	// Nodes is how many nodes there are, at most 199. Default 3.
	Nodes int `json:"nodes"`
	// Mode is native by default.
	Mode Mode `json:"mode"`
	// BinDir holds tendril, tendril-agent and tendril-cni. Default: the folder of the running program.
	BinDir string `json:"bin_dir"`
	// IPv4 and IPv6 choose the families of pods. Neither: both.
	IPv4 bool `json:"ipv4"`
	IPv6 bool `json:"ipv6"`
	// NoFlowRecords makes agents report drops only.
	NoFlowRecords bool `json:"no_flow_records"`
	// MapSizes overrides sizes of the agents' BPF maps, by name.
	MapSizes map[string]uint32 `json:"map_sizes,omitempty"`
	// LBMode is the agents' lb_mode, snat or dsr. Default: theirs.
	LBMode string `json:"lb_mode,omitempty"`
	// XDP is the agents' xdp: off, auto, native or generic. Default: theirs. Unless it is off, the fabric is one on which XDP can be.
	XDP string `json:"xdp,omitempty"`
	// Wires join nodes to the fabric by devices that the machine has, for tests of drivers. Default: veth pairs, made for it.
	Wires map[string]Wire `json:"wires,omitempty"`
	// AliveLease is for how long a node counts as alive after its last heartbeat, in whole seconds. Default: the agents'.
	AliveLease time.Duration `json:"alive_lease,omitempty"`
	// NoAgents leaves out store and agents: who asked for that starts others in their places, as a test of the operator does.
	NoAgents bool `json:"no_agents,omitempty"`
	// Progress is told each step in a few words. Default: nobody is.
	Progress func(string) `json:"-"`
}

// Wire is two devices of the machine: what the one sends the other receives.
type Wire struct {
	Uplink string `json:"uplink"` // becomes the node's
	Port   string `json:"port"`   // becomes a port of the fabric's bridge
}

// Lab is a cluster on this machine. Its methods may be called from several goroutines and programs at a time.
type Lab struct {
	Config
	names
	cgroups string // mount point of cgroup v2

	mu     sync.Mutex
	agents map[string]*grpc.ClientConn // by node, dialled at first use
}

func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		c.Name = "lab"
	}
	if c.Nodes == 0 {
		c.Nodes = 3
	}
	if c.Mode == "" {
		c.Mode = ModeNative
	}
	if !c.IPv4 && !c.IPv6 {
		c.IPv4, c.IPv6 = true, true
	}
	if c.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("folder of the binaries: %w", err)
		}
		c.BinDir = filepath.Dir(self)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	return c, nil
}

// Validate reports every field that cannot be.
func (c Config) Validate() error {
	var problems []error
	if !labName.MatchString(c.Name) {
		problems = append(problems, fmt.Errorf("lab name %q: must be a letter, then letters and digits, at most 20", c.Name))
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		problems = append(problems, fmt.Errorf("nodes %d: must be 1 to %d", c.Nodes, maxNodes))
	}
	switch c.Mode {
	case ModeNative, ModeVXLAN:
		for _, binary := range []string{"tendril", "tendril-agent", "tendril-cni"} {
			if _, err := os.Stat(filepath.Join(c.BinDir, binary)); err != nil {
				problems = append(problems, fmt.Errorf("binary %s: not in %s: build all binaries into one folder", binary, c.BinDir))
			}
		}
	case ModeBare:
	default:
		problems = append(problems, fmt.Errorf("mode %q: must be native, vxlan or bare", c.Mode))
	}
	return errors.Join(problems...)
}

// Up builds a lab and returns when every agent is ready and knows all nodes. Where a step fails, what was built is
// taken away again and the error quotes the log of what failed.
func Up(ctx context.Context, config Config) (*Lab, error) {
	config, err := config.withDefaults()
	if err == nil {
		err = config.Validate()
	}
	if err != nil {
		return nil, err
	}
	l, err := newLab(config)
	if err != nil {
		return nil, err
	}
	if err := l.claim(); err != nil {
		return nil, err
	}
	if err := l.build(ctx); err != nil {
		down := Down(context.WithoutCancel(ctx), config.Name)
		return nil, errors.Join(fmt.Errorf("lab %s: %w", config.Name, err), l.Close(), down)
	}
	return l, nil
}

// Open finds a lab that is up.
func Open(name string) (*Lab, error) {
	config, err := loadRecord[Config](names{name}.state(configFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lab %q: not there: start it with `tendril lab up --lab %s`%s", name, name, others(name))
	}
	if err != nil {
		return nil, fmt.Errorf("lab %q: %w", name, err)
	}
	config.Progress = func(string) {}
	return newLab(config)
}

// List names the labs of this machine, whole ones and remains.
func List() []string {
	var found []string
	paths, _ := filepath.Glob(filepath.Join(stateRoot, "*"))
	for _, path := range paths {
		if name := filepath.Base(path); labName.MatchString(name) {
			found = append(found, name)
		}
	}
	return found
}

func others(name string) string {
	labs := List()
	if len(labs) == 0 {
		return ""
	}
	return fmt.Sprintf(" (there is: %s)", strings.Join(labs, ", "))
}

func newLab(config Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: needs root, for it makes network namespaces, cgroups and BPF programs: use sudo")
	}
	mount, err := cgroupMount()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return &Lab{Config: config, names: names{config.Name}, cgroups: mount, agents: map[string]*grpc.ClientConn{}}, nil
}

// claim takes the lab's name, by making its state folder, or says that it is taken.
func (l *Lab) claim() error {
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	err := os.Mkdir(l.state(), 0o755)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("lab %q: exists: stop it with `tendril lab down --lab %s`, or choose another name with --lab", l.Name, l.Name)
	}
	if err != nil {
		return fmt.Errorf("lab %q: %w", l.Name, err)
	}
	return saveRecord(l.state(configFile), l.Config)
}

// build makes everything, in the order in which a data centre would: wires, machines, store, agents.
func (l *Lab) build(ctx context.Context) error {
	l.Progress(fmt.Sprintf("fabric, %d nodes and an outside host", l.Nodes))
	if err := l.buildNetwork(); err != nil {
		return err
	}
	if l.Mode == ModeBare {
		return l.routeBare()
	}
	if err := mountBPF(); err != nil {
		return err
	}
	if l.NoAgents {
		return nil
	}
	l.Progress("store: embedded etcd and the Publish service")
	if err := l.StartStore(ctx); err != nil {
		return err
	}
	l.Progress(fmt.Sprintf("agents: %d, %s routing", l.Nodes, l.Mode))
	return l.startAgents(ctx)
}

func (l *Lab) buildNetwork() error {
	for _, leaf := range l.leaves() {
		if err := os.MkdirAll(l.cgroupPath(leaf), 0o755); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	if err := buildFabric(l.names); err != nil {
		return err
	}
	if err := joinFabric(l.names, controlPart, Wire{}, fabricAddrs(lastByteControl)); err != nil {
		return err
	}
	if err := buildOutside(l.names); err != nil {
		return err
	}
	for i := 1; i <= l.Nodes; i++ {
		if err := buildNode(l.names, i, l.Wires[nodeName(i)]); err != nil {
			return fmt.Errorf("%s: %w", nodeName(i), err)
		}
	}
	if l.XDP != "" && l.XDP != "off" {
		for _, node := range l.NodeNames() {
			if _, wired := l.Wires[node]; wired {
				continue // has a driver
			}
			if err := prepareXDP(l.names, node); err != nil {
				return err
			}
		}
	}
	for _, part := range append(l.NodeNames(), controlPart, outsidePart) {
		if err := errors.Join(waitUp(l.names, part, uplinkName, false), waitUp(l.names, fabricPart, part, true)); err != nil {
			return err
		}
	}
	return waitUp(l.names, fabricPart, bridgeName, true)
}

// leaves are the cgroups that processes may be born in, before there are pods.
func (l *Lab) leaves() []string {
	leaves := []string{controlPart, outsidePart}
	for _, node := range l.NodeNames() {
		leaves = append(leaves, filepath.Join(node, "host"), filepath.Join(node, "pods"))
	}
	return leaves
}

// startAgents starts all agents at once and waits until each knows all nodes.
func (l *Lab) startAgents(ctx context.Context) error {
	group, starting := errgroup.WithContext(ctx)
	for _, node := range l.NodeNames() {
		group.Go(func() error { return l.StartAgent(starting, node) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return l.WaitConverged(ctx, startPatience)
}

// mountBPF mounts bpffs where the machine has none.
func mountBPF() error {
	const magic = 0xcafe4a11 // BPF_FS_MAGIC, linux/magic.h
	var at unix.Statfs_t
	if err := unix.Statfs(bpfRoot, &at); err != nil {
		return fmt.Errorf("bpffs: %s: %w: is CONFIG_BPF_SYSCALL on and /sys mounted?", bpfRoot, err)
	}
	if at.Type == magic {
		return nil
	}
	if err := unix.Mount("bpf", bpfRoot, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", bpfRoot, err)
	}
	return nil
}

// NodeNames lists the lab's nodes.
func (l *Lab) NodeNames() []string {
	nodes := make([]string, l.Nodes)
	for i := range nodes {
		nodes[i] = nodeName(i + 1)
	}
	return nodes
}

// Close drops the connections to agents. The lab stays up.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	for node, conn := range l.agents {
		err = errors.Join(err, conn.Close())
		delete(l.agents, node)
	}
	return err
}

// Down stops the lab and removes every trace of it.
func (l *Lab) Down(ctx context.Context) error {
	return errors.Join(l.Close(), Down(ctx, l.Name))
}

// Down takes away whatever carries the lab's name, in any state, and may be repeated. The order matters: no process, so
// nothing is made anew; then names, pins and cgroups; last the state folder, which still claims the name until then.
func Down(_ context.Context, name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: must be a letter, then letters and digits, at most 20", name)
	}
	mount, err := cgroupMount()
	if err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	n := names{name}
	cgroup := filepath.Join(mount, n.cgroup())
	err = killCgroup(cgroup, 10*time.Second)
	reap(n)
	err = errors.Join(err, deleteAllNetns(n), os.RemoveAll(n.pins()), removeCgroup(cgroup))
	if err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	return os.RemoveAll(n.state())
}

// reap collects the exit status of processes that this program started, so that no zombie stays.
func reap(n names) {
	processes, _ := loadRecords[Process](n.state(procRecords))
	for _, process := range processes {
		_, _ = syscall.Wait4(process.PID, nil, syscall.WNOHANG, nil)
	}
}

// Leftovers lists what a lab of that name has on this machine: nothing, after Down.
func Leftovers(name string) []string {
	n := names{name}
	left, _ := listNetns(n)
	candidates := []string{n.state(), n.pins()}
	if mount, err := cgroupMount(); err == nil {
		candidates = append(candidates, filepath.Join(mount, n.cgroup()))
	}
	for _, path := range candidates {
		if _, err := os.Stat(path); err == nil {
			left = append(left, path)
		}
	}
	return left
}

func (l *Lab) cgroupPath(parts ...string) string {
	return filepath.Join(l.cgroups, l.cgroup(parts...))
}
