package store

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/table"
)

// newMessage returns an empty record of a kind, nil for kinds without one.
func newMessage(kind Kind) proto.Message {
	switch kind {
	case KindEpoch:
		return &storev1.Epoch{}
	case KindSynced, KindCounter: // a counter is a Synced whose revision counts
		return &storev1.Synced{}
	case KindNode:
		return &storev1.Node{}
	case KindAlive:
		return &storev1.Alive{}
	case KindPod:
		return &storev1.Pod{}
	case KindIP:
		return &storev1.IP{}
	case KindLabels:
		return &storev1.LabelSet{}
	case KindNamespace:
		return &storev1.Namespace{}
	case KindNodeLabels:
		return &storev1.NodeLabels{}
	case KindCIDRGroup:
		return &storev1.CIDRGroup{}
	case KindPool:
		return &storev1.LoadBalancerPool{}
	case KindEgress:
		return &storev1.EgressGateway{}
	case KindService:
		return &storev1.Service{}
	case KindEndpoints:
		return &storev1.Endpoints{}
	case KindPolicy:
		return &storev1.Policy{}
	case KindAck:
		return &storev1.Ack{}
	}
	return nil
}

// checkMessage refuses a record of another kind than its key says.
func checkMessage(key Key, record proto.Message) error {
	want := newMessage(key.Kind)
	if want == nil || record == nil {
		return fmt.Errorf("key %q: no record", key)
	}
	// By name: two Go types may stand for one record.
	got, wanted := record.ProtoReflect().Descriptor().FullName(), want.ProtoReflect().Descriptor().FullName()
	if got != wanted {
		return fmt.Errorf("key %q: record is a %s, want a %s", key, got, wanted)
	}
	return nil
}

// CheckValue says why readers would keep a value out: it does not decode, or the record cannot be a row.
func CheckValue(key Key, value []byte) error {
	message := newMessage(key.Kind)
	// Else nil would be decoded into.
	if message == nil {
		return fmt.Errorf("key %q: %w", key, errUnknownKind)
	}
	if err := proto.Unmarshal(value, message); err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	return checkRow(key, message)
}

// checkRow refuses a record that cannot be a row. Kinds that become none, or that any record can be, pass.
func checkRow(key Key, record proto.Message) (err error) {
	switch m := record.(type) {
	case *storev1.Node:
		_, err = nodeRow(key, m)
	case *storev1.IP:
		_, err = ipRow(key, m)
	case *storev1.Pod:
		_, err = podRow(key, m)
	case *storev1.CIDRGroup:
		_, err = cidrGroupRow(key, m)
	case *storev1.LoadBalancerPool:
		_, err = poolOf(key, m)
	case *storev1.EgressGateway:
		_, err = egressRow(key, m)
	case *storev1.Service:
		_, err = serviceRow(key, m)
	case *storev1.Endpoints:
		_, err = backendsRow(key, m)
	case *storev1.Policy:
		_, err = policyRow(key, m)
	}
	if err != nil {
		return fmt.Errorf("key %q: %w", key, err)
	}
	return nil
}

// The functions below turn a record into a row. They refuse what no part of the agent could act on, naming the
// field; the caller names the key.

func nodeRow(key Key, m *storev1.Node) (*table.Node, error) {
	row := &table.Node{
		Name: key.First, Zone: m.GetZone(), BootID: m.GetBootId(),
		MinVersion: m.GetMinVersion(), MaxVersion: m.GetMaxVersion(),
	}
	var err error
	if row.Addresses, err = addrs("addresses", m.GetAddresses()); err != nil {
		return nil, err
	}
	if row.Routers, err = addrs("router_addresses", m.GetRouterAddresses()); err != nil {
		return nil, err
	}
	if row.Healths, err = addrs("health_addresses", m.GetHealthAddresses()); err != nil {
		return nil, err
	}
	// A node of a cluster without tunnels has none.
	if len(m.GetTunnel()) > 0 {
		if row.Tunnel, err = addr("tunnel", m.GetTunnel()); err != nil {
			return nil, err
		}
	}
	row.PodCIDRs, err = prefixes("pod_cidrs", m.GetPodCidrs())
	return row, err
}

func podRow(key Key, m *storev1.Pod) (*table.Pod, error) {
	row := &table.Pod{
		Node: key.First, Namespace: key.Second, Name: key.Third,
		UID: m.GetUid(), HostNetwork: m.GetHostNetwork(),
	}
	var err error
	if row.Labels, err = labelsHash(m.GetLabels()); err != nil {
		return nil, err
	}
	for _, p := range m.GetNamedPorts() {
		port, err := namedPort("named_ports", p.GetName(), p.GetPort(), p.GetProtocol())
		if err != nil {
			return nil, err
		}
		row.NamedPorts = append(row.NamedPorts, port)
	}
	return row, nil
}

// labelsHash is the key of a label set. A pod without one would have no identity; to guess it would be to open a door.
func labelsHash(bytes []byte) (hash [16]byte, err error) {
	if len(bytes) != len(hash) {
		return hash, fmt.Errorf("labels has %d bytes, want %d", len(bytes), len(hash))
	}
	return [16]byte(bytes), nil
}

func ipRow(key Key, m *storev1.IP) (*table.IP, error) {
	// The address is in the key, where nobody can have it twice on a node.
	at, err := netip.ParseAddr(key.Second)
	if err != nil {
		return nil, err
	}
	return &table.IP{
		Node: key.First, Addr: at, PodUID: m.GetPodUid(), Sandbox: m.GetSandbox(),
		Namespace: m.GetNamespace(), Pod: m.GetPod(),
	}, nil
}

func labelSetRow(key Key, m *storev1.LabelSet) (*table.LabelSet, error) {
	hash, err := parseHash(key.First)
	if err != nil {
		return nil, err
	}
	return &table.LabelSet{
		Hash: hash, Cluster: m.GetCluster(), Namespace: m.GetNamespace(),
		ServiceAccount: m.GetServiceAccount(), Labels: maps.Clone(m.GetLabels()),
	}, nil
}

func namespaceRow(key Key, m *storev1.Namespace) (*table.Namespace, error) {
	return &table.Namespace{Name: key.First, Labels: maps.Clone(m.GetLabels())}, nil
}

func nodeLabelsRow(key Key, m *storev1.NodeLabels) (*table.NodeLabels, error) {
	return &table.NodeLabels{Node: key.First, Labels: maps.Clone(m.GetLabels())}, nil
}

func aliveRow(key Key, m *storev1.Alive) (*table.Alive, error) {
	return &table.Alive{Node: key.First, BootID: m.GetBootId(), Started: m.GetStartedUnix()}, nil
}

func cidrGroupRow(key Key, m *storev1.CIDRGroup) (*table.CIDRGroup, error) {
	row := &table.CIDRGroup{Name: key.First, Labels: maps.Clone(m.GetLabels())}
	var err error
	row.Prefixes, err = prefixes("prefixes", m.GetPrefixes())
	return row, err
}

func egressRow(key Key, m *storev1.EgressGateway) (*table.EgressGateway, error) {
	row := &table.EgressGateway{Name: key.First}
	var err error
	if row.Pods, err = selector("pod_selector", label.ScopePod, m.GetPodSelector()); err != nil {
		return nil, err
	}
	if row.Namespaces, err = selector("namespace_selector", label.ScopeNamespace, m.GetNamespaceSelector()); err != nil {
		return nil, err
	}
	if row.Destinations, err = prefixes("destinations", m.GetDestinations()); err != nil {
		return nil, err
	}
	if row.Exceptions, err = prefixes("exceptions", m.GetExceptions()); err != nil {
		return nil, err
	}
	for _, n := range m.GetNodes() {
		nodes := table.EgressNodes{Node: n.GetNode()}
		if nodes.Selector, err = selector("nodes.node_selector", label.ScopeNode, n.GetNodeSelector()); err != nil {
			return nil, err
		}
		if nodes.Addrs, err = addrs("nodes.addresses", n.GetAddresses()); err != nil {
			return nil, err
		}
		row.Nodes = append(row.Nodes, nodes)
	}
	return row, nil
}

func serviceRow(key Key, m *storev1.Service) (*table.Service, error) {
	row := &table.Service{
		Namespace: key.First, Name: key.Second, AffinitySeconds: m.GetAffinitySeconds(),
		InternalLocal: m.GetInternalLocal(), ExternalLocal: m.GetExternalLocal(),
		TrafficDistribution: m.GetTrafficDistribution(), PublishNotReady: m.GetPublishNotReady(), Algorithm: m.GetAlgorithm(), Forwarding: m.GetForwarding(),
		Labels: maps.Clone(m.GetLabels()),
	}
	var err error
	if row.Type, err = serviceType(m.GetType()); err != nil {
		return nil, err
	}
	if row.HealthCheckNodePort, err = port("health_check_node_port", m.GetHealthCheckNodePort()); err != nil {
		return nil, err
	}
	if row.ClusterIPs, err = addrs("cluster_ips", m.GetClusterIps()); err != nil {
		return nil, err
	}
	if row.ExternalIPs, err = addrs("external_ips", m.GetExternalIps()); err != nil {
		return nil, err
	}
	if row.LoadBalancerIPs, err = addrs("load_balancer_ips", m.GetLoadBalancerIps()); err != nil {
		return nil, err
	}
	if err = lookAtGrants(row, m.GetLoadBalancer()); err != nil {
		return nil, err
	}
	if row.SourceRanges, err = prefixes("source_ranges", m.GetSourceRanges()); err != nil {
		return nil, err
	}
	row.Ports, err = servicePorts(m.GetPorts())
	return row, err
}

// lookAtGrants adds what pools gave a service to the addresses that it was given otherwise, and why it goes without.
func lookAtGrants(row *table.Service, m *storev1.LoadBalancer) error {
	for _, grant := range m.GetGrants() {
		given, err := addr("load_balancer.grants", grant.GetAddress())
		if err != nil {
			return err
		}
		row.LoadBalancerIPs = append(row.LoadBalancerIPs, given)
	}
	if _, err := addrs("load_balancer.wishes", m.GetWishes()); err != nil {
		return err
	}
	for _, s := range m.GetShortfalls() {
		row.Shortfalls = append(row.Shortfalls, table.Shortfall{Message: s.GetMessage(), Remedy: s.GetRemedy()})
	}
	return nil
}

// serviceType names a type as manifests do. A type of a newer version is an error: served as something else, the service
// might be open to whom it was not meant for.
func serviceType(t storev1.Service_Type) (string, error) {
	switch t {
	case storev1.Service_CLUSTER_IP:
		return "ClusterIP", nil
	case storev1.Service_NODE_PORT:
		return "NodePort", nil
	case storev1.Service_LOAD_BALANCER:
		return "LoadBalancer", nil
	case storev1.Service_EXTERNAL_NAME:
		return "ExternalName", nil
	}
	return "", fmt.Errorf("type %d is not known to this version", t)
}

// servicePorts keeps the order of the manifest.
func servicePorts(ports []*storev1.ServicePort) (rows []table.ServicePort, err error) {
	for _, p := range ports {
		named, err := namedPort("ports", p.GetName(), p.GetPort(), p.GetProtocol())
		if err != nil {
			return nil, err
		}
		nodePort, err := port("ports.node_port", p.GetNodePort())
		if err != nil {
			return nil, err
		}
		rows = append(rows, table.ServicePort{
			Name: named.Name, Protocol: named.Protocol, Port: named.Port, NodePort: nodePort,
		})
	}
	return rows, nil
}

func backendsRow(key Key, m *storev1.Endpoints) (*table.Backends, error) {
	row := &table.Backends{Namespace: key.First, Service: key.Second, Slice: key.Third, Weight: m.GetWeight()}
	if row.Weight > table.MaxWeight {
		return nil, fmt.Errorf("weight: %d is more than %d", row.Weight, table.MaxWeight)
	}
	for _, p := range m.GetPorts() {
		port, err := namedPort("ports", p.GetName(), p.GetPort(), p.GetProtocol())
		if err != nil {
			return nil, err
		}
		row.Ports = append(row.Ports, port)
	}
	for _, b := range m.GetBackends() {
		at, err := addrs("backends.addresses", b.GetAddresses())
		if err != nil {
			return nil, err
		}
		row.Backends = append(row.Backends, table.Backend{
			Addrs: at, Node: b.GetNode(), Zone: b.GetZone(), Pod: b.GetPod(), HintZones: b.GetHintZones(),
			Ready: b.GetReady(), Serving: b.GetServing(), Terminating: b.GetTerminating(),
		})
	}
	return row, nil
}

func counterRow(key Key, m *storev1.Synced) (*table.Counter, error) {
	return &table.Counter{Kind: key.First, Revision: m.GetRevision()}, nil
}

func policyRow(key Key, m *storev1.Policy) (*table.Policy, error) {
	if len(m.GetObject()) == 0 {
		// Nothing says what it allows; as a row it would isolate its pods or not, by chance.
		return nil, errors.New("object is empty")
	}
	namespace := key.Second
	if namespace == noNamespace {
		namespace = ""
	}
	return &table.Policy{
		Kind: key.First, Namespace: namespace, Name: key.Third,
		// As it is written: what it means is judged by who enforces it, so that a newer version's fields are not lost here.
		Object: m.GetObject(), Revision: m.GetRevision(), Source: m.GetSource(),
	}, nil
}

// addr reads 4 or 16 bytes; an IPv4-mapped address is one spelled wrongly.
func addr(field string, bytes []byte) (netip.Addr, error) {
	at, ok := netip.AddrFromSlice(bytes)
	if !ok {
		return at, fmt.Errorf("%s has an address of %d bytes, want 4 or 16", field, len(bytes))
	}
	if at.Is4In6() {
		return at, fmt.Errorf("%s has the IPv4-mapped address %s, want its 4 bytes", field, at)
	}
	return at, nil
}

// addrs and prefixes read lists; one bad element refuses the record.
func addrs(field string, list [][]byte) (result []netip.Addr, err error) {
	for _, bytes := range list {
		at, err := addr(field, bytes)
		if err != nil {
			return nil, err
		}
		result = append(result, at)
	}
	return result, nil
}

func prefixes(field string, list []string) (result []netip.Prefix, err error) {
	for _, text := range list {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		// Whoever wrote it may have meant a host or a net: only one spelling of each.
		if prefix != prefix.Masked() {
			return nil, fmt.Errorf("%s: prefix %s has bits beyond its length, want %s", field, prefix, prefix.Masked())
		}
		result = append(result, prefix)
	}
	return result, nil
}

// port reads a port or the absence of one, 0.
func port(field string, number uint32) (uint16, error) {
	if number > 65535 {
		return 0, fmt.Errorf("%s: %d is not a port", field, number)
	}
	return uint16(number), nil
}

// namedPort reads a port of a service, a slice or a pod; a port may be nameless.
func namedPort(field, name string, number, protocol uint32) (table.NamedPort, error) {
	checked, err := port(field, number)
	if err != nil {
		return table.NamedPort{}, err
	}
	if protocol > 255 {
		return table.NamedPort{}, fmt.Errorf("%s: %d is not an IP protocol", field, protocol)
	}
	return table.NamedPort{Name: name, Port: checked, Protocol: uint8(protocol)}, nil
}
