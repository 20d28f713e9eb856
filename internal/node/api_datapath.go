package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/table"
)

// problems collects what a person should act on, from every part that can have trouble of its own: the store, addresses, and those
// that it asks itself.
func (s *api) problems(stored []store.Problem, room error) []*agentv1.Problem {
	var all []*agentv1.Problem
	for _, p := range stored {
		all = append(all, &agentv1.Problem{Object: p.Object, Message: p.Message, Remedy: p.Remedy})
	}
	if room != nil {
		all = append(all, &agentv1.Problem{
			Object: "addresses of this node", Message: room.Error(), Remedy: "pods that run are not touched; new ones wait until there is an address for them",
		})
	}
	all = append(all, s.a.configuration.problems()...)
	all = append(all, s.policyProblems()...)
	if err := s.a.services.Trouble(); err != nil {
		all = append(all, &agentv1.Problem{
			Object: "services of this node", Message: err.Error(), Remedy: "services stay as they were until this is mended; it is tried again all the time",
		})
	}
	s.a.services.Read(func(brain *service.Brain) {
		for _, p := range brain.Problems() {
			all = append(all, &agentv1.Problem{Object: p.Object, Message: p.Message, Remedy: p.Remedy})
		}
	})
	return append(append(all, s.a.services.health.problems()...), s.endpointProblems()...)
}

// endpointProblems are what was asked for pods of this node and does not hold, in one line however many there are.
func (s *api) endpointProblems() []*agentv1.Problem {
	var first *table.Endpoint
	count := 0
	for row := range s.a.tables.Endpoints.All(s.a.tables.DB.ReadTxn()) {
		if len(row.Notes) == 0 {
			continue
		}
		if count++; first == nil {
			first = row
		}
	}
	if first == nil {
		return nil
	}
	return []*agentv1.Problem{{
		Object: "Pod/" + first.Namespace + "/" + first.Pod, Message: fmt.Sprintf("%s (this and %d more pods)", strings.Join(first.Notes, ", "), count-1),
		Remedy: "take the annotations away, or do not count on them; `tendril endpoint list` names all such pods",
	}}
}

// policyProblems are those of the policy loop: objects that are refused, nodes and endpoints that found no
// place, and the loop itself.
func (s *api) policyProblems() []*agentv1.Problem {
	var all []*agentv1.Problem
	for _, r := range s.a.policies.Refused() {
		all = append(all, &agentv1.Problem{
			Object: r.Key.String(), Message: r.Message,
			Remedy: "correct the object and apply it again; until then the version before it is in force, or, if this agent has seen none, its namespace is isolated",
		})
	}
	objects, loop := s.a.policies.Trouble()
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		all = append(all, &agentv1.Problem{
			Object: name, Message: objects[name].Error(),
			Remedy: "raise the size that the message names and restart the agent, or delete what is gone; until then it is not reached",
		})
	}
	if loop != nil {
		all = append(all, &agentv1.Problem{
			Object: "policies of this node", Message: loop.Error(), Remedy: "what was enforced before is enforced until this is mended; it is tried again all the time",
		})
	}
	return all
}

func counterMessage(counter datapath.Counter) *agentv1.CountersResponse_Counter {
	return &agentv1.CountersResponse_Counter{
		Reason: counter.Reason.String(), Hook: counter.Hook.String(), Packets: counter.Packets, Bytes: counter.Bytes,
		Drop: counter.Reason >= bpf.DropFirst, About: counter.Reason.About(),
	}
}

func (s *api) pool(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return ""
	}
	for _, pool := range s.a.book.Pools() {
		if pool.Contains(addr) {
			return pool.String()
		}
	}
	return ""
}

// ListTemplates implements the API.
func (s *api) ListTemplates(context.Context, *agentv1.ListTemplatesRequest) (*agentv1.ListTemplatesResponse, error) {
	reply := &agentv1.ListTemplatesResponse{}
	for _, template := range s.a.datapath.Templates() {
		message := &agentv1.ListTemplatesResponse_Template{
			Name: template.Name, Instructions: uint32(template.Instructions), Entry: template.Entry.String(),
			Constants: template.Constants, Digest: template.Digest,
		}
		for _, instance := range template.Instances {
			message.Instances = append(message.Instances, &agentv1.ListTemplatesResponse_Instance{
				Endpoint: instance.Endpoint, Name: s.instanceName(instance), ProgramId: instance.ProgramID,
				LoadUs: uint32(instance.LoadTime.Microseconds()),
			})
		}
		reply.Templates = append(reply.Templates, message)
	}
	return reply, nil
}

// instanceName is the pod, or the device of a stub that is no pod's.
func (s *api) instanceName(instance datapath.TemplateInstance) string {
	txn := s.a.tables.DB.ReadTxn()
	if instance.Endpoint == 0 {
		if device, _, ok := s.a.tables.Devices.Get(txn, table.DeviceByIndex(instance.IfIndex)); ok {
			return device.Name
		}
		return ""
	}
	return s.podName(instance.Endpoint)
}

func (s *api) podName(endpoint uint32) string {
	row, _, ok := s.a.tables.Endpoints.Get(s.a.tables.DB.ReadTxn(), table.EndpointByID(endpoint))
	if !ok {
		return ""
	}
	return row.Namespace + "/" + row.Pod
}

// ListMappings implements the API.
func (s *api) ListMappings(_ context.Context, request *agentv1.ListMappingsRequest) (*agentv1.ListMappingsResponse, error) {
	rows, err := wantedRows(request)
	if err != nil {
		return nil, err
	}
	mappings, err := s.a.datapath.Mappings()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	reply := &agentv1.ListMappingsResponse{}
	for _, m := range mappings {
		if !rows.wants(m.Protocol, m.Pod, m.Node, m.Remote) {
			continue
		}
		reply.Mappings = append(reply.Mappings, &agentv1.Mapping{
			Protocol: uint32(m.Protocol), PodIp: m.Pod.Addr().String(), PodPort: uint32(m.Pod.Port()),
			NodeIp: m.Node.Addr().String(), NodePort: uint32(m.Node.Port()),
			RemoteIp: m.Remote.Addr().String(), RemotePort: uint32(m.Remote.Port()),
			AgeNs: m.Age.Nanoseconds(), Owner: cmp.Or(s.podName(m.Endpoint), s.podAt(m.Pod.Addr())),
		})
	}
	return reply, nil
}

// podAt names the pod that has an address, on whichever node: a gateway translates for other nodes' pods. Others have no name here.
func (s *api) podAt(addr netip.Addr) string {
	if row, _, ok := s.a.tables.IPs.Get(s.a.tables.DB.ReadTxn(), table.IPByAddr(addr)); ok {
		return row.Namespace + "/" + row.Pod
	}
	return ""
}

// FlushMappings implements the API.
func (s *api) FlushMappings(_ context.Context, request *agentv1.FlushMappingsRequest) (*agentv1.FlushMappingsResponse, error) {
	addr, err := wantedAddr("pod_ip", request.GetPodIp())
	if err != nil {
		return nil, err
	}
	rows, err := wantedRows(request)
	if err != nil {
		return nil, err
	}
	match := func(m datapath.Mapping) bool {
		return (!addr.IsValid() || m.Pod.Addr() == addr) && rows.wants(m.Protocol, m.Pod, m.Node, m.Remote)
	}
	removed, err := s.a.datapath.FlushMappings(match)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &agentv1.FlushMappingsResponse{Removed: uint32(removed)}, nil
}

// FlushFlows implements the API.
func (s *api) FlushFlows(_ context.Context, request *agentv1.FlushFlowsRequest) (*agentv1.FlushFlowsResponse, error) {
	rows, err := wantedRows(request)
	if err != nil {
		return nil, err
	}
	removed, err := s.a.datapath.FlushFlows(rows.wantsFlow)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &agentv1.FlushFlowsResponse{Removed: uint32(removed)}, nil
}

// wantedAddr reads the address of a request; the invalid address, for none, means everything.
func wantedAddr(field, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, status.Errorf(codes.InvalidArgument, "%s: %q is not an IP address; leave it out for everything", field, text)
	}
	return addr.Unmap(), nil
}

// rowFilter is which rows of a table of the kernel are meant.
type rowFilter struct {
	addr     netip.Addr // of an end; invalid: any
	port     uint16     // of an end, of protocols that have ports; 0: any
	protocol uint8      // 0: any
}

// wantedRows reads the filter of a request; one without fields means everything, and one with a mistake nothing.
func wantedRows(request interface {
	GetIp() string
	GetPort() uint32
	GetProtocol() string
}) (rows rowFilter, err error) {
	if rows.addr, err = wantedAddr("ip", request.GetIp()); err != nil {
		return rowFilter{}, err
	}
	if request.GetPort() > math.MaxUint16 {
		return rowFilter{}, status.Errorf(codes.InvalidArgument, "port: %d is no port; give one from 1 to 65535, or leave it out for everything", request.GetPort())
	}
	rows.port = uint16(request.GetPort())
	if rows.protocol, err = flow.ParseProtocol(request.GetProtocol()); err != nil {
		return rowFilter{}, status.Error(codes.InvalidArgument, err.Error())
	}
	return rows, nil
}

// wants says that a row is meant, by its protocol and its ends. Address and port may be those of different ends.
func (f rowFilter) wants(protocol uint8, ends ...netip.AddrPort) bool {
	hasAddr := func(end netip.AddrPort) bool { return end.Addr() == f.addr }
	hasPort := func(end netip.AddrPort) bool { return end.Port() == f.port }
	return (f.protocol == 0 || protocol == f.protocol) && (!f.addr.IsValid() || slices.ContainsFunc(ends, hasAddr)) &&
		(f.port == 0 || ipproto.HasPorts(protocol) && slices.ContainsFunc(ends, hasPort))
}

// wantsFlow says so of a connection.
func (f rowFilter) wantsFlow(entry *datapath.FlowEntry) bool {
	key := &entry.Key
	return f.wants(key.Protocol, netip.AddrPortFrom(key.Low.Addr(), bpf.Port(key.LowPort)), netip.AddrPortFrom(key.High.Addr(), bpf.Port(key.HighPort)))
}

// ListFlows implements the API.
func (s *api) ListFlows(_ context.Context, request *agentv1.ListFlowsRequest) (*agentv1.ListFlowsResponse, error) {
	rows, err := wantedRows(request)
	if err != nil {
		return nil, err
	}
	reply := &agentv1.ListFlowsResponse{}
	decoder := s.a.decoder()
	for entry, err := range s.a.datapath.Flows() {
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		if !rows.wantsFlow(entry) {
			continue
		}
		reply.Flows = append(reply.Flows, &agentv1.FlowEntry{
			Flow: decoder.Flow(eventOf(&entry.Key, &entry.Flow)), State: stateOf(&entry.Flow), ExpiresNs: entry.Expires.Nanoseconds(),
		})
	}
	return reply, nil
}

// stateOf is a connection's state; an entry that only says to which backend a service's client goes has another life.
func stateOf(entry *bpf.Flow) string {
	if entry.Backend == 0 {
		return entry.State.String()
	}
	return fmt.Sprintf("to %s", netip.AddrPortFrom(entry.Service.Addr(), bpf.Port(entry.ServicePort)))
}

// ListFrontends implements the API.
func (s *api) ListFrontends(_ context.Context, request *agentv1.ListFrontendsRequest) (*agentv1.ListFrontendsResponse, error) {
	rows, err := wantedRows(request)
	if err != nil {
		return nil, err
	}
	frontends, err := s.a.datapath.Frontends(rows.addr)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	reply := &agentv1.ListFrontendsResponse{}
	for _, f := range frontends {
		if !rows.wants(f.Key.Proto, slices.Concat([]netip.AddrPort{netip.AddrPortFrom(f.Key.Addr, f.Key.Port)}, f.Inside, f.Outside)...) {
			continue
		}
		reply.Frontends = append(reply.Frontends, &agentv1.Frontend{
			Address: f.Key.Addr.String(), Port: uint32(f.Key.Port), Protocol: uint32(f.Key.Proto), Flags: f.Flags.String(),
			AffinitySeconds: f.AffinitySeconds, Inside: texts(f.Inside), Outside: texts(f.Outside), Slots: f.Slots,
		})
	}
	return reply, nil
}

// texts is a list as people read it.
func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, 0, len(list))
	for _, item := range list {
		out = append(out, item.String())
	}
	return out
}

// FlushAffinities implements the API.
func (s *api) FlushAffinities(_ context.Context, request *agentv1.FlushAffinitiesRequest) (*agentv1.FlushAffinitiesResponse, error) {
	addr, err := wantedAddr("ip", request.GetIp())
	if err != nil {
		return nil, err
	}
	removed, err := s.a.datapath.FlushAffinities(addr)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &agentv1.FlushAffinitiesResponse{Removed: uint32(removed)}, nil
}

// eventOf says of a connection in the table what its last event would say.
func eventOf(key *bpf.FlowKey, entry *bpf.Flow) *bpf.Event {
	event := &bpf.Event{
		Time: entry.Created, Kind: bpf.EventFlowNew, Protocol: key.Protocol, State: entry.State,
		Source: key.High, SourcePort: key.HighPort, Destination: key.Low, DestinationPort: key.LowPort,
		Service: entry.Service, ServicePort: entry.ServicePort, NATPort: entry.NATPort,
		Forward: entry.Forward, Reverse: entry.Reverse,
		SourcePeer: entry.SourcePeer, DestinationPeer: entry.DestinationPeer,
		SourceEndpoint: entry.SourceEndpoint, DestinationEndpoint: entry.DestinationEndpoint,
		EgressRule: entry.Egress.Rule, EgressAction: entry.Egress.Action,
		IngressRule: entry.Ingress.Rule, IngressAction: entry.Ingress.Action,
		TCPFlags: entry.TCPForward | entry.TCPReverse,
	}
	if entry.Backend != 0 { // a service entry's names are its backend's
		event.Service, event.ServicePort = bpf.Address{}, 0
	}
	if entry.Flags&bpf.FlowLowIsSource != 0 {
		event.Source, event.SourcePort, event.Destination, event.DestinationPort = key.Low, key.LowPort, key.High, key.HighPort
	}
	return event
}

// ListEndpoints implements the API.
func (s *api) ListEndpoints(context.Context, *agentv1.ListEndpointsRequest) (*agentv1.ListEndpointsResponse, error) {
	reply := &agentv1.ListEndpointsResponse{}
	txn := s.a.tables.DB.ReadTxn()
	for row := range s.a.tables.Endpoints.All(txn) {
		info := s.a.policies.party(txn, row.PodUID, row.Namespace, row.Pod, s.a.config.Node, row.ArgLabels)
		message := &agentv1.Endpoint{
			Id: row.ID, Namespace: row.Namespace, Pod: row.Pod, Identity: info.Identity, Labels: info.Labels,
			State: string(row.State), Ifindex: row.IfIndex, Device: row.Device, Peer: row.Peer,
			IngressProgram: row.Ingress, EgressProgram: row.Egress, Chained: row.Chained, Notes: row.Notes,
			IngressIsolators: s.isolators(row.ID, policy.Ingress), EgressIsolators: s.isolators(row.ID, policy.Egress),
		}
		message.Ingress, message.Egress = enforcement(message.GetIngressIsolators()), enforcement(message.GetEgressIsolators())
		for _, addr := range row.Addrs {
			message.Ips = append(message.Ips, addr.String())
		}
		reply.Endpoints = append(reply.Endpoints, message)
	}
	slices.SortFunc(reply.Endpoints, func(a, b *agentv1.Endpoint) int { return int(a.Id) - int(b.Id) })
	return reply, nil
}

// isolators names the policies that isolate an endpoint in a direction.
func (s *api) isolators(endpoint uint32, direction policy.Direction) (names []string) {
	s.a.policies.Read(func(engine *policy.Engine) {
		for _, key := range engine.Isolators(endpoint, direction) {
			names = append(names, key.String())
		}
	})
	return names
}

// enforcement says whether what no rule allows is denied.
func enforcement(isolators []string) string {
	if len(isolators) > 0 {
		return "enforced"
	}
	return "open"
}
