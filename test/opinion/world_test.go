package opinion

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

// clusterName is part of every pod's identity.
const clusterName = "lab"

// world is a cluster as one node sees it on which all pods run: manifests in, compiled tables out. It lives through all
// cases of a test, so that what one case leaves behind would show in the next.
type world struct {
	engine  *policy.Engine
	numbers *policytest.Numbers
	tables  *policytest.Kernel
	pods    map[string]*worldPod // by namespace/name
	owners  map[netip.Addr]uint32
	made    int
}

// worldPod is a pod of the node.
type worldPod struct {
	endpoint uint32
	addrs    [2]netip.Addr // IPv4, IPv6
}

func newWorld() *world {
	numbers := policytest.NewNumbers()
	return &world{
		engine: policy.New(policy.Config{}, numbers), numbers: numbers, tables: policytest.NewKernel(),
		pods: map[string]*worldPod{}, owners: map[netip.Addr]uint32{},
	}
}

// manifestOf writes an object as a client would send it.
func manifestOf(apiVersion, kind string, object runtime.Object) ([]byte, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, err
	}
	fields["apiVersion"], fields["kind"] = apiVersion, kind
	delete(fields, "status") // of the server's making
	return json.Marshal(fields)
}

// apply takes a manifest in, by the records that the store would hold.
func (w *world) apply(manifest []byte) error {
	objects, err := kube.Decode("manifest", manifest)
	if err != nil {
		return err
	}
	records, err := kube.Records(objects, clusterName)
	if err != nil {
		return err
	}
	sets := map[string]*storev1.LabelSet{}
	for _, record := range records {
		if set, ok := record.Value.(*storev1.LabelSet); ok {
			sets[strings.TrimPrefix(record.Key, "labels/")] = set
		}
	}
	for _, record := range records {
		switch value := record.Value.(type) {
		case *storev1.Namespace:
			w.engine.SetNamespace(record.Object.Name, value.Labels)
		case *storev1.Pod:
			err = w.podRecord(record.Object, value, sets[identity.ID(value.Labels).String()])
		case *storev1.Policy:
			err = w.policyRecord(record.Object.Kind, value)
		}
		if err != nil {
			return err
		}
	}
	return w.flush()
}

func (w *world) policyRecord(kind string, record *storev1.Policy) error {
	p, err := kube.ParsePolicy(kind, record.Object, record.Source)
	if err != nil {
		return err
	}
	return w.engine.SetPolicy(p)
}

// podRecord gives a pod addresses when it is new. Addresses lie in two ranges and far enough apart that a range around one
// pod holds some of the others.
func (w *world) podRecord(object *kube.Object, record *storev1.Pod, set *storev1.LabelSet) error {
	if set == nil {
		return fmt.Errorf("%s: its label set is not among the records", object)
	}
	name := object.Namespace + "/" + object.Name
	p, known := w.pods[name]
	if !known {
		w.made++
		p = &worldPod{endpoint: uint32(w.made)}
		p.addrs[0] = netip.AddrFrom4([4]byte{10, 42, byte(w.made % 2), byte(7 * w.made)})
		p.addrs[1] = netip.AddrFrom16([16]byte{0xfd, 0x42, 13: byte(w.made % 2), 15: byte(7 * w.made)})
		w.pods[name] = p
	}
	if record.HostNetwork {
		w.setNode(p)
		return nil
	}
	workload := policy.Workload{
		Cluster: set.Cluster, Namespace: set.Namespace, ServiceAccount: set.ServiceAccount, Labels: label.SetOf(set.Labels),
	}
	for _, port := range record.NamedPorts {
		workload.NamedPorts = append(workload.NamedPorts, policy.NamedPort{Name: port.Name, Protocol: uint8(port.Protocol), Port: uint16(port.Port)})
	}
	fact := policy.AddressFact{
		Workload: &workload, Endpoint: p.endpoint, Flags: uint32(bpf.AddressFlagLocalPod | bpf.AddressFlagCluster),
	}
	w.engine.SetSubject(p.endpoint, workload)
	for _, addr := range p.addrs {
		w.owners[addr] = p.endpoint
		w.engine.SetAddress(netip.PrefixFrom(addr, addr.BitLen()), fact)
	}
	return nil
}

// setNode makes a pod one that stands on the network of another node: policies see the node, by the node's labels.
func (w *world) setNode(p *worldPod) {
	node := policy.Workload{Reserved: identity.RemoteNode, Labels: label.SetOf(map[string]string{"kubernetes.io/os": "linux"})}
	for _, addr := range p.addrs {
		w.engine.SetAddress(netip.PrefixFrom(addr, addr.BitLen()), policy.AddressFact{
			Workload: &node, Flags: uint32(bpf.AddressFlagRemoteNode | bpf.AddressFlagCluster),
		})
	}
}

// setPod makes a pod, or gives it other labels. Those of its namespace are known already.
func (w *world) setPod(pod *corev1.Pod, _ map[string]string) ([2]netip.Addr, error) {
	manifest, err := manifestOf("v1", "Pod", pod)
	if err == nil {
		err = w.apply(manifest)
	}
	if err != nil {
		return [2]netip.Addr{}, err
	}
	return w.pods[pod.Namespace+"/"+pod.Name].addrs, nil
}

// removePod takes a pod away, and its endpoint with it.
func (w *world) removePod(namespace, name string) error {
	p, known := w.pods[namespace+"/"+name]
	if !known {
		return fmt.Errorf("pod %s/%s: not there", namespace, name)
	}
	delete(w.pods, namespace+"/"+name)
	w.engine.DeleteSubject(p.endpoint)
	for _, addr := range p.addrs {
		delete(w.owners, addr)
		w.engine.DeleteAddress(netip.PrefixFrom(addr, addr.BitLen()))
	}
	delete(w.tables.Subjects, p.endpoint)
	return w.flush()
}

func (w *world) removeNamespace(name string) error {
	w.engine.DeleteNamespace(name)
	return w.flush()
}

func (w *world) removePolicy(kind, namespace, name string) error {
	w.engine.DeletePolicy(policy.Key{Kind: kind, Namespace: namespace, Name: name})
	return w.flush()
}

// flush compiles what has changed and brings it into the tables. Refused policies are an error: every case is valid.
func (w *world) flush() error {
	delta, err := w.engine.Flush()
	if err != nil {
		return err
	}
	if err := w.tables.Apply(delta, nil); err != nil {
		return err
	}
	w.numbers.Complete()
	for _, refusal := range w.engine.Refused() {
		err = errors.Join(err, fmt.Errorf("policy %v is refused: %w", refusal.Key, refusal.Reason))
	}
	return err
}

// verdict is what the two ends of a connection say of it.
type verdict struct{ egress, ingress bool }

func (v verdict) passes() bool { return v.egress && v.ingress }

// judge reads the verdict on a packet from the tables: the egress of whoever sends it, the ingress of whoever gets it.
// Somebody who is no pod of the node imposes nothing.
func (w *world) judge(from, to netip.Addr, protocol uint8, port uint16) (verdict, error) {
	v := verdict{egress: true, ingress: true}
	var err, wrong error
	if endpoint, ok := w.owners[from]; ok {
		v.egress, err = w.allows(endpoint, policy.Egress, to, protocol, port)
	}
	if endpoint, ok := w.owners[to]; ok {
		v.ingress, wrong = w.allows(endpoint, policy.Ingress, from, protocol, port)
	}
	return v, errors.Join(err, wrong)
}

func (w *world) allows(endpoint uint32, direction policy.Direction, peer netip.Addr, protocol uint8, port uint16) (bool, error) {
	v, err := w.tables.Judge(endpoint, direction, peer, protocol, port)
	return v.Action == bpf.ActionAllow, err
}

// protocolNumber is that of a name as Kubernetes or agnhost spell it.
func protocolNumber(name string) (uint8, error) {
	number, known := map[string]uint8{"TCP": ipproto.TCP, "UDP": ipproto.UDP, "SCTP": ipproto.SCTP}[strings.ToUpper(name)]
	if !known {
		return 0, fmt.Errorf("protocol %q: is none that the cases use", name)
	}
	return number, nil
}
