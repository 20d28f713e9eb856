package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/store"
)

// PodSpec says which pod to make.
type PodSpec struct {
	Node           string            `json:"node"`
	Namespace      string            `json:"namespace"` // default "default"
	Name           string            `json:"name"`
	Labels         map[string]string `json:"labels,omitempty"`
	ServiceAccount string            `json:"service_account"` // default "default"
	NamedPorts     []NamedPort       `json:"named_ports,omitempty"`
	HostPorts      []cni.PortMapping `json:"host_ports,omitempty"`
	// NamespaceLabels are the namespace's own, besides kubernetes.io/metadata.name. The last pod's hold.
	NamespaceLabels map[string]string `json:"namespace_labels,omitempty"`
	// NoRecord is for a pod that comes while the store is away: its record is written when StartStore brings the store
	// back, and until then its labels come with the CNI call alone.
	NoRecord bool `json:"no_record,omitempty"`
}

// NamedPort is a container port with a name.
type NamedPort struct {
	Name     string `json:"name"`
	Port     uint16 `json:"port"`
	Protocol uint8  `json:"protocol"` // IP protocol number
}

// Pod is a pod of the lab: a place with addresses.
type Pod struct {
	PodSpec
	Place   Place         `json:"place"`
	UID     string        `json:"uid"`
	Sandbox string        `json:"sandbox"`
	Addrs   []netip.Addr  `json:"addrs"` // IPv4 first
	Took    time.Duration `json:"took"`  // by the CNI plugin's ADD

	lab *Lab
}

// AddPod makes a pod: its record in the store, its cgroup and namespace, then the CNI plugin's ADD. Where a step fails,
// nothing of the pod stays.
func (l *Lab) AddPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	pod, err := l.newPod(spec)
	if err != nil {
		return nil, err
	}
	// The cgroup is the claim: making it fails where another program has it.
	if err := os.Mkdir(pod.Place.Cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("pod %s: %w: remove it first, or choose another name", pod.FullName(), err)
	}
	if err := pod.make(ctx); err != nil {
		err = fmt.Errorf("pod %s: %w%s", pod.FullName(), err, quote(l.AgentLog(pod.Node), 6))
		return nil, errors.Join(err, l.RemovePod(context.WithoutCancel(ctx), pod))
	}
	return pod, saveRecord(l.podRecord(pod.Namespace, pod.Name), pod)
}

func (l *Lab) newPod(spec PodSpec) (*Pod, error) {
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	if spec.ServiceAccount == "" {
		spec.ServiceAccount = "default"
	}
	if !podName.MatchString(spec.Name) || !podName.MatchString(spec.Namespace) {
		return nil, fmt.Errorf("pod %s/%s: names must be of lower-case letters, digits and dashes, at most 63", spec.Namespace, spec.Name)
	}
	if _, err := l.Node(spec.Node); err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", spec.Namespace, spec.Name, err)
	}
	if _, err := label.NewSet(spec.Labels); err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", spec.Namespace, spec.Name, err)
	}
	part := podPart(spec.Namespace, spec.Name)
	pod := &Pod{PodSpec: spec, UID: randomHex(16), Sandbox: randomHex(32), lab: l}
	pod.Place = Place{
		Name:   pod.FullName(),
		Netns:  l.netnsPath(l.podNetns(spec.Namespace, spec.Name)),
		Cgroup: l.cgroupPath(spec.Node, "pods", part),
	}
	return pod, nil
}

// make does what operator, kubelet and container runtime would, in their order.
func (p *Pod) make(ctx context.Context) error {
	if err := createNetns(p.Place.Netns); err != nil {
		return err
	}
	if p.lab.Mode == ModeBare {
		return p.wireBare()
	}
	if !p.NoRecord {
		if err := p.lab.applyRecords(ctx, p.records()); err != nil {
			return err
		}
	}
	begin := time.Now()
	result, err := p.callCNI(ctx, cni.Add)
	p.Took = time.Since(begin)
	if err != nil {
		return err
	}
	p.Addrs, err = parseResult(result)
	return err
}

func (l *Lab) applyRecords(ctx context.Context, records []store.Record) error {
	return l.withWriter(func(w *store.Writer) error {
		_, err := w.Apply(ctx, records)
		return err
	})
}

// RemovePod ends a pod's processes and takes it away; what is not there is fine.
func (l *Lab) RemovePod(ctx context.Context, pod *Pod) error {
	err := killCgroup(pod.Place.Cgroup, 5*time.Second)
	if l.Mode != ModeBare {
		_, del := pod.callCNI(ctx, cni.Del)
		err = errors.Join(err, del)
		if !pod.NoRecord {
			key := store.PodKey(pod.Node, pod.Namespace, pod.Name).String()
			err = errors.Join(err, l.applyRecords(ctx, []store.Record{{Key: key}}))
		}
	} else {
		err = errors.Join(err, pod.unwireBare())
	}
	err = errors.Join(err, deleteNetns(pod.Place.Netns), removeCgroup(pod.Place.Cgroup))
	if err != nil {
		return fmt.Errorf("remove pod %s: %w", pod.FullName(), err)
	}
	return ignoreMissing(os.Remove(l.podRecord(pod.Namespace, pod.Name)))
}

// callCNI executes the CNI plugin on the pod's node, as a container runtime does (CNI 1.1.0, section 2).
func (p *Pod) callCNI(ctx context.Context, command cni.Command) (string, error) {
	place, err := p.lab.Node(p.Node)
	if err != nil {
		return "", err
	}
	config, err := json.Marshal(p.cniConfig())
	if err != nil {
		return "", err
	}
	out, err := place.execInput(ctx, []string{
		"CNI_COMMAND=" + string(command),
		"CNI_CONTAINERID=" + p.Sandbox,
		"CNI_NETNS=" + p.Place.Netns,
		"CNI_IFNAME=eth0",
		"CNI_PATH=" + p.lab.BinDir,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + p.Namespace + ";K8S_POD_NAME=" + p.Name +
			";K8S_POD_INFRA_CONTAINER_ID=" + p.Sandbox + ";K8S_POD_UID=" + p.UID,
	}, config, filepath.Join(p.lab.BinDir, "tendril-cni"))
	if err != nil {
		return out, fmt.Errorf("CNI %s: %w%s", command, err, quote(out, 8))
	}
	return out, nil
}

// NetworkConfig is what a runtime on a node would find in the folder of networks: which plugin, and where its agent is.
func (l *Lab) NetworkConfig(node string) cni.Config {
	return cni.Config{
		CNIVersion: "1.1.0",
		Name:       "tendril",
		Type:       "tendril-cni",
		Socket:     l.state(node, "cni.sock"),
		DataDir:    l.state(node, "state"),
	}
}

func (p *Pod) cniConfig() cni.Config {
	config := p.lab.NetworkConfig(p.Node)
	labels := p.Labels
	if labels == nil {
		labels = map[string]string{} // nil would mean that an operator knows them
	}
	config.RuntimeConfig.PortMappings = p.HostPorts
	config.RuntimeConfig.Tendril = &cni.PodArgs{Labels: labels, ServiceAccount: p.ServiceAccount}
	for _, port := range p.NamedPorts {
		config.RuntimeConfig.Tendril.NamedPorts = append(config.RuntimeConfig.Tendril.NamedPorts, port.String())
	}
	return config
}

// String is the port as the CNI's configuration spells it, http:80/tcp.
func (p NamedPort) String() string {
	protocol := ipproto.Name(p.Protocol)
	return p.Name + ":" + strconv.Itoa(int(p.Port)) + "/" + protocol
}

// parseResult reads the addresses from what ADD printed (CNI 1.1.0, section 5), IPv4 first.
func parseResult(raw string) ([]netip.Addr, error) {
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal([]byte(raw), &result); err != nil {
		return nil, fmt.Errorf("CNI ADD: result is not JSON: %w%s", err, quote(raw, 5))
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("CNI ADD: the result has no address%s", quote(raw, 5))
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}

// FullName is namespace/name.
func (p *Pod) FullName() string { return p.Namespace + "/" + p.Name }

// Addr is the pod's address of a family, 4 or 6; it is not valid where the pod has none.
func (p *Pod) Addr(family int) netip.Addr {
	for _, addr := range p.Addrs {
		if addr.Is4() == (family == 4) {
			return addr
		}
	}
	return netip.Addr{}
}

// Exec runs a program in the pod to its end and returns what it printed.
func (p *Pod) Exec(ctx context.Context, argv ...string) (string, error) {
	return p.Place.Exec(ctx, argv...)
}

// Start starts a program in the pod that goes on in the background.
func (p *Pod) Start(argv ...string) (*Process, error) {
	return p.lab.Start(p.Place, "", argv...)
}

// Pods lists the lab's pods by namespace and name.
func (l *Lab) Pods() ([]*Pod, error) {
	pods, err := loadRecords[*Pod](l.state(podRecords))
	for _, pod := range pods {
		pod.lab = l
	}
	return pods, err
}

// Pod finds a pod by namespace/name, or by name alone where only one namespace has it.
func (l *Lab) Pod(name string) (*Pod, error) {
	pods, err := l.Pods()
	if err != nil {
		return nil, err
	}
	var found []*Pod
	for _, pod := range pods {
		if pod.FullName() == name || pod.Name == name {
			found = append(found, pod)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("pod %q: lab %s has no such pod", name, l.Name)
	}
	var full []string
	for _, pod := range found {
		full = append(full, pod.FullName())
	}
	return nil, fmt.Errorf("pod %q: lab %s has several, say which: %s", name, l.Name, strings.Join(full, ", "))
}

func (l *Lab) podRecord(namespace, name string) string {
	return l.state(podRecords, podPart(namespace, name)+".json")
}

func randomHex(bytes int) string {
	raw := make([]byte, bytes)
	_, _ = rand.Read(raw) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(raw)
}
