package datapath

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
)

// Feature is something that a kernel may or may not have, found by trying it.
type Feature struct {
	Name      string
	Needed    bool // without it there is no datapath
	Available bool
	Detail    string // what lacks, or what is used instead
}

// featureProbe tries one feature; an error says why it is not there.
type featureProbe struct {
	name   string
	needed bool
	why    string // what it is for, or what stands in for it
	try    func() error
}

func probes() []featureProbe {
	return []featureProbe{
		{"ring-buffer", true, "events", mapProbe(ebpf.RingBuf)},
		{"mmapable-array", true, "policy and service arenas", tryMmapableArray},
		{"socket-storage", true, "services at the socket", mapProbe(ebpf.SkStorage)},
		{"cgroup-sock-addr", true, "services at the socket", programProbe(ebpf.CGroupSockAddr)},
		{"syscall-program", true, "expiry of connections", programProbe(ebpf.Syscall)},
		{"bounded-loops", true, "policy evaluation", features.HaveBoundedLoops},
		{"helper-loop", true, "policy evaluation", helperProbe(ebpf.SchedCLS, asm.FnLoop)},
		{"helper-check-mtu", true, "packet too big", helperProbe(ebpf.SchedCLS, asm.FnCheckMtu)},
		{"helper-redirect-peer", true, "delivery to pods", helperProbe(ebpf.SchedCLS, asm.FnRedirectPeer)},
		{"helper-redirect-neigh", true, "delivery to next hops", helperProbe(ebpf.SchedCLS, asm.FnRedirectNeigh)},
		{"helper-netns-cookie", true, "telling the host from its pods", helperProbe(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie)},
		{"kfunc-sock-destroy", false, "without it sock_diag (sock-diag-destroy) ends clients at the socket whose backend is gone", trySocketDestroy},
		{"tcx", false, "without it uplinks are attached with clsact", tryTCX},
		{"netkit", false, "without it pods have veth pairs", tryNetkit},
		{"membarrier", false, "without it grace periods are waited for with a map update", tryMembarrier},
	}
}

func mapProbe(t ebpf.MapType) func() error {
	return func() error { return features.HaveMapType(t) }
}

func programProbe(t ebpf.ProgramType) func() error {
	return func() error { return features.HaveProgramType(t) }
}

func helperProbe(t ebpf.ProgramType, helper asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(t, helper) }
}

func tryMmapableArray() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: mmapable})
	if err != nil {
		return err
	}
	defer m.Close()
	a, err := mapArena("probe", m)
	if err != nil {
		return err
	}
	return a.close()
}

// mmapable is BPF_F_MMAPABLE (linux/bpf.h).
const mmapable = 1 << 10

// trySocketDestroy looks for the function by which sockets are ended (kernel 6.5).
func trySocketDestroy() error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var function *btf.Func
	return kernel.TypeByName("bpf_sock_destroy", &function)
}

// tryTCX attaches to a device that cannot be: a kernel with TCX misses the device, one without it the attach type.
func tryTCX() error { return tryAttach(ebpf.AttachTCXIngress, link.AttachTCX) }

func tryNetkit() error {
	return tryAttach(ebpf.AttachNetkitPeer, func(o link.TCXOptions) (link.Link, error) {
		return link.AttachNetkit(link.NetkitOptions{Interface: o.Interface, Program: o.Program, Attach: o.Attach})
	})
}

func tryAttach(at ebpf.AttachType, attach func(link.TCXOptions) (link.Link, error)) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, AttachType: at, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer program.Close()
	l, err := attach(link.TCXOptions{Interface: math.MaxInt32, Program: program, Attach: at})
	if err == nil {
		return errors.Join(errors.New("a device that cannot be was attached to"), l.Close())
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	return nil
}

func tryMembarrier() error {
	if !haveMembarrier() {
		return errors.New("membarrier(MEMBARRIER_CMD_GLOBAL) is refused")
	}
	return nil
}

// Features tries every feature on the running kernel.
func Features() []Feature {
	var out []Feature
	for _, probe := range probes() {
		out = append(out, probe.feature())
	}
	return out
}

func (p featureProbe) feature() Feature {
	f := Feature{Name: p.name, Needed: p.needed, Available: true, Detail: p.why}
	if err := p.try(); err != nil {
		f.Available = false
		f.Detail = fmt.Sprintf("%s: %v", p.why, err)
	}
	return f
}

// FeatureError says that the kernel lacks what the datapath needs.
type FeatureError struct {
	Name string
	For  string
	Err  error
}

// Error names the feature and the remedy.
func (e *FeatureError) Error() string {
	if errors.Is(e.Err, ebpf.ErrNotSupported) {
		return fmt.Sprintf("kernel feature %s (for %s) is missing: run Linux 6.1 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_CLS_BPF", e.Name, e.For)
	}
	return fmt.Sprintf("kernel feature %s (for %s) cannot be tried: run as root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON): %v", e.Name, e.For, e.Err)
}

// Unwrap is what the kernel answered.
func (e *FeatureError) Unwrap() error { return e.Err }

// RequireFeatures fails on the first needed feature that the kernel lacks.
func RequireFeatures() error { return require(probes()) }

func require(probes []featureProbe) error {
	for _, probe := range probes {
		if !probe.needed {
			continue
		}
		if err := probe.try(); err != nil {
			return &FeatureError{Name: probe.name, For: probe.why, Err: err}
		}
	}
	return nil
}
