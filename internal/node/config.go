package node

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/store"
)

// Mode says how pods of other nodes are reached.
type Mode string

// The modes.
const (
	ModeNative Mode = "native" // by routes of the underlay
	ModeVXLAN  Mode = "vxlan"  // through the overlay device
)

// LBMode says which way a backend of another node answers a client outside the cluster.
type LBMode string

// The ways.
const (
	LBModeSNAT LBMode = "snat" // through this node, under whose address it was asked
	LBModeDSR  LBMode = "dsr"  // straight from its own node, in the service's name
)

// XDP says whether service packets that need no decision leave before the kernel has made packets of them.
type XDP string

// The choices.
const (
	XDPOff     XDP = "off"
	XDPAuto    XDP = "auto"    // native where the uplink's driver offers it, and segments do not pass it in one piece
	XDPNative  XDP = "native"  // by the driver, or the agent does not start
	XDPGeneric XDP = "generic" // by the kernel in the driver's place: for tests
)

// Config is the agent's configuration, a JSON file. The zero value of a field is its default unless it says
// "required". The tag change says when a change of the file counts (effect).
type Config struct {
	// Node is this node's name, as other records know it. Required.
	Node string `json:"node" change:"restart"`
	// Cluster names the cluster; it is part of every identity. Default "default".
	Cluster string `json:"cluster,omitempty" change:"restart"`
	// Store lists the addresses where the store is read, host:port: of etcd, or of operators, of which the leader's answers. Required.
	Store []string `json:"store" change:"live"`
	// Publish lists the addresses of the Publish service, host:port; the agent goes to whichever answers. Required.
	Publish []string `json:"publish" change:"live"`
	// StoreCA, StoreCert and StoreKey are PEM files: authorities that vouch for store and Publish service, this node's certificate, which
	// has its name, and the key. They are read anew at every connection. All three or none; none: no TLS.
	StoreCA   string `json:"store_ca,omitempty" change:"restart"`
	StoreCert string `json:"store_cert,omitempty" change:"restart"`
	StoreKey  string `json:"store_key,omitempty" change:"restart"`
	// StoreToken is a file with a token of this agent's pod. With it the agent has its certificate issued and renewed by the operator, and
	// keeps it in state_dir; then store_cert and store_key are left out.
	StoreToken string `json:"store_token,omitempty" change:"restart"`
	// PodCIDRs are the prefixes that pods of this node get addresses from, at most one a family. Default: what the operator has
	// written for this node, which the agent waits for.
	PodCIDRs []netip.Prefix `json:"pod_cidrs,omitempty" change:"restart"`
	// Mode is native (default) or vxlan.
	Mode Mode `json:"mode,omitempty" change:"restart"`
	// Uplink is the outward device. Default: the device of the default route.
	Uplink string `json:"uplink,omitempty" change:"restart"`
	// Zone is the node's topology zone; empty: what its label topology.kubernetes.io/zone says.
	Zone string `json:"zone,omitempty" change:"live"`
	// BPFRoot is this node's folder in bpffs. Default /sys/fs/bpf/tendril.
	BPFRoot string `json:"bpf_root,omitempty" change:"restart"`
	// Cgroup is the cgroup v2 folder whose processes get socket-level services. Empty: none do.
	Cgroup string `json:"cgroup,omitempty" change:"restart"`
	// RunDir holds agent.sock, cni.sock and what must not outlive a boot: a folder that a reboot empties. Default /run/tendril.
	RunDir string `json:"run_dir,omitempty" change:"restart"`
	// StateDir holds what must outlive a restart: endpoints, the journal, the last snapshot. Default /var/lib/tendril.
	StateDir string `json:"state_dir,omitempty" change:"restart"`
	// CNIBinDir is where the container runtime looks for CNI plugins: `tendril-agent install` copies tendril-cni there. Empty: it
	// copies nothing.
	CNIBinDir string `json:"cni_bin_dir,omitempty" change:"restart"`
	// CNIConfDir is where it looks for the network's configuration. The agent writes ours there once it can serve pods. Empty: it
	// does not.
	CNIConfDir string `json:"cni_conf_dir,omitempty" change:"restart"`
	// ReadyAddr is the address, host:port, of an HTTP server whose answer is 200 while the kernel enforces the policies and services
	// that the agent knows of, else 503. Empty: there is none.
	ReadyAddr string `json:"ready_addr,omitempty" change:"restart"`
	// Masquerade gives what leaves the cluster this node's address.
	Masquerade bool `json:"masquerade,omitempty" change:"reload"`
	// NoMasquerade are destinations outside the cluster that keep the pod's address.
	NoMasquerade []netip.Prefix `json:"no_masquerade,omitempty" change:"live"`
	// NodePortAddresses are prefixes of those of this node's addresses at which node ports answer. Default: all that its devices have,
	// but for loopback and link-local ones.
	NodePortAddresses []netip.Prefix `json:"node_port_addresses,omitempty" change:"live"`
	// FlowRecords makes the datapath report connections, not only drops.
	FlowRecords bool `json:"flow_records,omitempty" change:"reload"`
	// FlowHistory is how many flow records are kept in memory. Default 16384.
	FlowHistory int `json:"flow_history,omitempty" change:"live"`
	// DenyLocalHost removes the built-in rule that lets the node reach its own pods.
	DenyLocalHost bool `json:"deny_local_host,omitempty" change:"live"`
	// HalfOpenLimit is how many half-open connections a pod may have. Default 8192.
	HalfOpenLimit uint32 `json:"half_open_limit,omitempty" change:"reload"`
	// OutsideHalfOpenLimit is how many half-open connections all clients outside the cluster may have together. Default: an eighth of
	// the flows map, 65536 unless configured. One that is asked of a service takes two entries.
	OutsideHalfOpenLimit uint32 `json:"outside_half_open_limit,omitempty" change:"reload"`
	// VNI is the overlay's network identifier. Default 7471.
	VNI uint32 `json:"vni,omitempty" change:"restart"`
	// TunnelPort is the overlay's UDP port. Default 8472.
	TunnelPort uint16 `json:"tunnel_port,omitempty" change:"restart"`
	// HostTrialSeconds is how long a change of what judges the node itself may keep it from the store before it is rolled
	// back. Default 10.
	HostTrialSeconds uint32 `json:"host_trial_seconds,omitempty" change:"live"`
	// AliveLeaseSeconds is how long the cluster takes this node for alive after its last heartbeat; there are four in that time.
	// Default: what suits the cluster's size, 40 for a few nodes.
	AliveLeaseSeconds uint32 `json:"alive_lease_seconds,omitempty" change:"live"`
	// AnnounceExternalIPs has services' externalIPs answered for on the link, like load balancers' addresses. The same on all nodes.
	// Default off: whoever may write a Service could take any free address of the link.
	AnnounceExternalIPs bool `json:"announce_external_ips,omitempty" change:"live"`
	// LBMode says how clients outside the cluster are answered by backends of other nodes: snat (default) or dsr.
	LBMode LBMode `json:"lb_mode,omitempty" change:"live"`
	// XDP is off, auto (default), native or generic, on the uplink.
	XDP XDP `json:"xdp,omitempty" change:"restart"`
	// MaglevSize is the number of slots of a Maglev table, a prime and the same on every node of the cluster: others would
	// lead a connection elsewhere. Default 4093.
	MaglevSize uint32 `json:"maglev_size,omitempty" change:"restart"`
	// MapSizes overrides how many entries a BPF map has, by the map's name.
	MapSizes map[string]uint32 `json:"map_sizes,omitempty" change:"restart"`

	origin origin
}

// origin is where a configuration was read. An agent goes on to follow the file; without a path there is none.
type origin struct {
	path   string
	node   string // in place of the file's
	digest string // SHA-256 of the file, in hex
}

// Load reads a configuration file, fills in defaults and validates. A node that is given is this node's name, in place of the
// file's: nodes may then share one file.
func Load(path, node string) (Config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	config, err := decode(raw)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	config.origin = origin{path, node, fmt.Sprintf("%x", sha256.Sum256(raw))}
	if node != "" {
		config.Node = node
	}
	config = config.withDefaults()
	if err := config.Validate(); err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return config, nil
}

func (c Config) withDefaults() Config {
	setDefault(&c.Cluster, "default")
	setDefault(&c.Mode, ModeNative)
	setDefault(&c.LBMode, LBModeSNAT)
	setDefault(&c.XDP, XDPAuto)
	setDefault(&c.BPFRoot, "/sys/fs/bpf/tendril")
	setDefault(&c.RunDir, "/run/tendril")
	setDefault(&c.StateDir, "/var/lib/tendril")
	setDefault(&c.FlowHistory, 16384)
	setDefault(&c.HalfOpenLimit, 8192)
	setDefault(&c.VNI, 7471)
	setDefault(&c.TunnelPort, 8472)
	setDefault(&c.HostTrialSeconds, 10)
	if c.StoreToken != "" {
		setDefault(&c.StoreCert, filepath.Join(c.StateDir, certificateFile))
		setDefault(&c.StoreKey, c.StoreCert)
	}
	return c
}

// certificateFile has the certificate that was issued to this node, and its key.
const certificateFile = "certificate.pem"

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate reports every mistake at once, by field.
func (c Config) Validate() error {
	var problems []error
	bad := func(field, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if c.Node == "" {
		bad("node", "required: the name under which other nodes know this one")
	}
	if len(c.Store) == 0 {
		bad("store", "required: at least one host:port of the cluster's etcd")
	}
	if len(c.Publish) == 0 {
		bad("publish", "required: at least one host:port of the Publish service")
	}
	for field, addrs := range map[string][]string{"store": c.Store, "publish": c.Publish} {
		for _, addr := range addrs {
			if _, _, err := net.SplitHostPort(addr); err != nil {
				bad(field, "%q is not host:port", addr)
			}
		}
	}
	if err := c.storeFiles().Validate(); err != nil {
		bad("store_ca, store_cert, store_key", "%v", err)
	}
	if c.StoreToken != "" && c.StoreCert != filepath.Join(c.StateDir, certificateFile) {
		bad("store_cert", "with store_token the certificate is issued and kept in state_dir: leave out store_cert and store_key, or store_token")
	}
	if c.Mode != ModeNative && c.Mode != ModeVXLAN {
		bad("mode", "%q is neither native nor vxlan", c.Mode)
	}
	if c.LBMode != LBModeSNAT && c.LBMode != LBModeDSR {
		bad("lb_mode", "%q is neither snat nor dsr", c.LBMode)
	}
	if !slices.Contains([]XDP{XDPOff, XDPAuto, XDPNative, XDPGeneric}, c.XDP) {
		bad("xdp", "%q is none of off, auto, native and generic", c.XDP)
	}
	for field, path := range map[string]string{"bpf_root": c.BPFRoot, "run_dir": c.RunDir, "state_dir": c.StateDir} {
		if !filepath.IsAbs(path) {
			bad(field, "%q is not an absolute path", path)
		}
	}
	for field, path := range map[string]string{"cni_bin_dir": c.CNIBinDir, "cni_conf_dir": c.CNIConfDir} {
		if path != "" && !filepath.IsAbs(path) {
			bad(field, "%q is not an absolute path", path)
		}
	}
	if _, _, err := net.SplitHostPort(c.ReadyAddr); c.ReadyAddr != "" && err != nil {
		bad("ready_addr", "%v: give host:port", err)
	}
	if c.RunDir == c.StateDir && c.RunDir != "" {
		bad("state_dir", "%q is run_dir too; give each a folder of its own", c.StateDir)
	}
	if err := (service.Config{MaglevSize: c.MaglevSize}).Validate(); err != nil {
		bad("maglev_size", "%v", err)
	}
	if c.FlowHistory < 0 || c.FlowHistory > maxFlowHistory {
		bad("flow_history", "%d is not within 0 to %d; leave it out for the default", c.FlowHistory, maxFlowHistory)
	}
	if s := c.AliveLeaseSeconds; s > 0 && (s < minAliveLease || s > maxAliveLease) {
		bad("alive_lease_seconds", "%d is not within %d to %d; leave it out for what suits the cluster's size", s, minAliveLease, maxAliveLease)
	}
	if c.VNI > maxVNI {
		bad("vni", "%d does not fit 24 bits (RFC 7348): use at most %d", c.VNI, maxVNI)
	}
	if size, ok := c.MapSizes["endpoints"]; ok && size <= hostEndpoint {
		bad("map_sizes.endpoints", "%d has no place for the node's own record; use at least %d", size, hostEndpoint+1)
	}
	for i, prefix := range c.NoMasquerade {
		if err := validatePrefix(prefix); err != nil {
			bad(fmt.Sprintf("no_masquerade[%d]", i), "%v", err)
		}
	}
	for i, prefix := range c.NodePortAddresses {
		if err := validatePrefix(prefix); err != nil {
			bad(fmt.Sprintf("node_port_addresses[%d]", i), "%v", err)
		}
	}
	problems = append(problems, c.validatePodCIDRs()...)
	return errors.Join(problems...)
}

// storeFiles is who this node is to the store.
func (c Config) storeFiles() store.Files {
	return store.Files{CA: c.StoreCA, Cert: c.StoreCert, Key: c.StoreKey}
}

// What a node may ask for in seconds: etcd grants no less than one and a half election timeouts, and nobody waits for more than an hour.
const (
	minAliveLease = 5
	maxAliveLease = 3600
)

// maxFlowHistory is about 600 MiB of records.
const maxFlowHistory = 1 << 22

// maxVNI is the largest network identifier that a VXLAN header holds.
const maxVNI = 1<<24 - 1

// validatePrefix wants the one form that prefixes have in tables and tries.
func validatePrefix(prefix netip.Prefix) error {
	switch {
	case !prefix.IsValid(): // JSON's ""
		return errors.New("an empty string is no prefix; leave it out")
	case prefix.Addr().Is4In6():
		return fmt.Errorf("%s is IPv4 in IPv6's form; write %s", prefix, prefix.Addr().Unmap())
	case prefix != prefix.Masked():
		return fmt.Errorf("%s has host bits set; write %s", prefix, prefix.Masked())
	}
	return nil
}

func (c Config) validatePodCIDRs() []error {
	var problems []error
	var seen [2]bool
	for i, prefix := range c.PodCIDRs {
		family := 0
		if prefix.Addr().Is6() {
			family = 1
		}
		err := validatePrefix(prefix)
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("pod_cidrs[%d]: %w", i, err))
		case prefix.Addr().BitLen()-prefix.Bits() < 3:
			problems = append(problems, fmt.Errorf("pod_cidrs[%d]: %s has no room for pods; use /29 or /125 or larger", i, prefix))
		case seen[family]:
			problems = append(problems, fmt.Errorf("pod_cidrs[%d]: %s is a second prefix of its family; one is supported", i, prefix))
		}
		seen[family] = true
	}
	return problems
}
