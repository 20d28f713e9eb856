package operator

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/store"
)

// reference names an object of the API server.
type reference struct {
	kind schema.GroupVersionKind
	name string // namespace/name, or name
}

func (r reference) String() string { return r.kind.Kind + " " + r.name }

// mirror is what the store holds of each object. It is for one goroutine.
type mirror struct {
	cluster string
	// Records of each object, by key.
	objects map[reference]map[string]proto.Message
	// How many objects a key's record is of: pods share label sets, so a set goes with the last of them.
	holders map[string]int
	// Addresses of the services' own status that the operator wrote there, by key.
	granted map[string][]*storev1.Grant
	// How many pods have each identity, and the sets of those that pods have begun to have since they were last taken; nil: ceased.
	bearers map[types.NamespacedName]int
	turned  map[types.NamespacedName]*storev1.LabelSet
}

func newMirror(cluster string) *mirror {
	return &mirror{
		cluster: cluster, objects: map[reference]map[string]proto.Message{}, holders: map[string]int{}, granted: map[string][]*storev1.Grant{},
		bearers: map[types.NamespacedName]int{}, turned: map[types.NamespacedName]*storev1.LabelSet{},
	}
}

// update takes an object's state, nil if it is gone, and adds what must be written to the writes; there nil removes a key. An
// error says why an object cannot be honoured: what the store has of it stays, but for a policy, see kube.RefusedPolicy.
func (m *mirror) update(r reference, object *unstructured.Unstructured, writes map[string]proto.Message) error {
	records, err := m.records(object)
	if err != nil {
		refused, isPolicy := kube.RefusedPolicy(r.kind.Kind, object.GetNamespace(), object.GetName(), sent(object))
		if !isPolicy {
			return fmt.Errorf("%s: %w", r, err)
		}
		records, err = []kube.Record{refused}, fmt.Errorf("%s: handed to agents, which enforce the version before it: %w", r, err)
	}
	before := m.objects[r]
	after := make(map[string]proto.Message, len(records))
	for _, record := range records {
		after[record.Key] = record.Value
		m.grant(record.Key, object)
		old, had := before[record.Key]
		if !had {
			m.holders[record.Key]++
		}
		if shared := m.holders[record.Key] > 1; !had && !shared || had && !proto.Equal(old, record.Value) {
			writes[record.Key] = record.Value
		}
	}
	for key := range before {
		if _, stays := after[key]; !stays {
			m.release(key, writes)
		}
	}
	m.turn(before, after)
	if m.objects[r] = after; len(after) == 0 {
		delete(m.objects, r)
	}
	return err
}

// turn takes note of who a pod was by its records, and who it is.
func (m *mirror) turn(before, after map[string]proto.Message) {
	var nobody types.NamespacedName
	was, _ := identityIn(before)
	is, set := identityIn(after)
	if was == is {
		return
	}
	if is != nobody {
		if m.bearers[is]++; m.bearers[is] == 1 {
			m.turned[is] = set
		}
	}
	if was != nobody {
		if m.bearers[was]--; m.bearers[was] == 0 {
			delete(m.bearers, was)
			m.turned[was] = nil
		}
	}
}

// identityIn is the identity of the pod that records are of, and the set of labels that it is the hash of; zero if they are of no pod,
// or of one in its node's network, which is its node to everybody.
func identityIn(records map[string]proto.Message) (name types.NamespacedName, set *storev1.LabelSet) {
	for key, value := range records {
		switch value := value.(type) {
		case *storev1.LabelSet:
			name, set = types.NamespacedName{Namespace: value.GetNamespace(), Name: strings.TrimPrefix(key, "labels/")}, value
		case *storev1.Pod:
			if value.GetHostNetwork() {
				return types.NamespacedName{}, nil
			}
		}
	}
	return name, set
}

// release takes one holder of a key away.
func (m *mirror) release(key string, writes map[string]proto.Message) {
	if m.holders[key]--; m.holders[key] == 0 {
		delete(m.holders, key)
		delete(m.granted, key)
		writes[key] = nil
	}
}

// sent is an object as its author sent it, without what trimming put there.
func sent(object *unstructured.Unstructured) map[string]any {
	fields := maps.Clone(object.Object)
	for _, ours := range []string{grantedField, podPoolField, enforcedField} {
		delete(fields, ours)
	}
	return fields
}

// grant notes which addresses a Service's status has from us.
func (m *mirror) grant(key string, object *unstructured.Unstructured) {
	delete(m.granted, key)
	for _, text := range grantedTo(object) {
		if addr, err := netip.ParseAddr(text); err == nil {
			m.granted[key] = append(m.granted[key], &storev1.Grant{Address: addr.AsSlice()})
		}
	}
}

// written is a record as it goes to the store. A service comes with the addresses that its status says it was given: the
// store has its own account of them, and takes this one only if it lost it.
func (m *mirror) written(key string, value proto.Message) store.Record {
	service, ok := value.(*storev1.Service)
	if ok && service.GetLoadBalancer() != nil && m.granted[key] != nil {
		service = proto.CloneOf(service)
		service.LoadBalancer.Grants = m.granted[key]
		value = service
	}
	return store.Record{Key: key, Value: value}
}

// records translates an object. Objects that concern no node have none.
func (m *mirror) records(object *unstructured.Unstructured) ([]kube.Record, error) {
	if object == nil || !concernsNodes(object) {
		return nil, nil
	}
	text, err := json.Marshal(sent(object))
	if err != nil {
		return nil, err
	}
	decoded, err := kube.DecodeServed(text)
	if err != nil {
		return nil, err
	}
	return kube.Records([]*kube.Object{decoded}, m.cluster)
}

// concernsNodes leaves out pods that have no node yet or have ended for good, which have no address; slices of nobody's or of
// names instead of addresses, which lead nowhere; and Services whose labels say that another proxy serves them or none does,
// whatever their value (API reference of Service, well-known labels).
func concernsNodes(object *unstructured.Unstructured) bool {
	switch object.GetKind() {
	case "Pod":
		node, _, _ := unstructured.NestedString(object.Object, "spec", "nodeName")
		phase, _, _ := unstructured.NestedString(object.Object, "status", "phase")
		return node != "" && phase != "Succeeded" && phase != "Failed"
	case "Service":
		_, others := object.GetLabels()["service.kubernetes.io/service-proxy-name"]
		_, headless := object.GetLabels()[corev1.IsHeadlessService]
		return !others && !headless
	case "EndpointSlice":
		family, _, _ := unstructured.NestedString(object.Object, "addressType")
		return family != "FQDN" && object.GetLabels()["kubernetes.io/service-name"] != ""
	}
	return true
}

// all lists every record.
func (m *mirror) all() []store.Record {
	records := make([]store.Record, 0, len(m.holders))
	listed := make(map[string]bool, len(m.holders))
	for _, object := range m.objects {
		for key, value := range object {
			if !listed[key] {
				listed[key] = true
				records = append(records, m.written(key, value))
			}
		}
	}
	return records
}
