package node

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/statedb"
	"google.golang.org/grpc/status"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// simulatePairs asks about everybody in the cluster: all pods are in every agent's tables, and all policies.
func (s *api) simulatePairs(ctx context.Context, request *agentv1.SimulateRequest, change policy.Change, reply *agentv1.SimulateResponse) error {
	residents := s.residents()
	for _, r := range residents {
		if r.Workload.Reserved != identity.RemoteNode {
			reply.Pods++
		}
	}
	var simulation *policy.Simulation
	s.a.policies.Read(func(engine *policy.Engine) {
		for i := range residents {
			residents[i].APIServer = engine.Party(residents[i].Addrs[0]).APIServer
		}
		simulation = engine.ClusterSimulation(residents)
	})
	if err := s.run(simulation, change, request, reply); err != nil {
		return err
	}
	number := map[*policy.Crowd]uint32{}
	for i, crowd := range simulation.Crowds() {
		number[crowd] = uint32(i)
		reply.Crowds = append(reply.Crowds, &agentv1.Crowd{Kind: string(crowd.Kind), Members: crowd.Members, Text: crowd.Text})
	}
	for _, from := range simulation.Crowds() {
		if ctx.Err() != nil {
			return status.FromContextError(ctx.Err()).Err()
		}
		for _, pair := range simulation.Changes(from, request.GetRules()) {
			message := pairMessage(pair)
			message.From, message.To = number[pair.From], number[pair.To]
			if n := len(reply.GetPairs()); n == 0 || reply.Pairs[n-1].GetFrom() != message.GetFrom() || reply.Pairs[n-1].GetTo() != message.GetTo() {
				reply.Changed += pair.Count() // once for all its ports
			}
			reply.Pairs = append(reply.Pairs, message)
		}
	}
	return nil
}

func pairMessage(pair policy.PairChange) *agentv1.SimulatedPair {
	message := &agentv1.SimulatedPair{
		AllBut: pair.Ports.AllBut, PortsText: pair.Ports.String(), Now: verdictMessage(pair.Now), Then: verdictMessage(pair.Then),
	}
	for _, span := range pair.Ports.Ports {
		message.Ports = append(message.Ports, &agentv1.PortSpan{Protocol: uint32(span.Protocol), First: uint32(span.First), Last: uint32(span.Last)})
	}
	for _, port := range pair.To.Serves {
		if pair.Ports.Contains(port.Protocol, port.Port) {
			message.Serves = append(message.Serves, fmt.Sprintf("%s %d/%s", port.Name, port.Port, ipproto.ManifestName(port.Protocol)))
		}
	}
	return message
}

// residents lists the cluster's pods with their addresses, and its nodes, by name.
func (s *api) residents() []policy.Resident {
	txn := s.a.tables.DB.ReadTxn()
	facts := s.a.policies.facts
	serving := s.serving()
	found := map[string]*policy.Resident{}
	join := func(name string, addr netip.Addr, workload func() policy.Workload) {
		r := found[name]
		if r == nil {
			r = &policy.Resident{Name: name, Workload: workload()}
			r.Serves = slices.Clone(r.Workload.NamedPorts)
			found[name] = r
		}
		r.Addrs = append(r.Addrs, addr)
		r.Serves = append(r.Serves, serving[addr]...)
	}
	for row := range s.a.tables.Endpoints.All(txn) {
		for _, addr := range row.Addrs {
			if row.State != table.EndpointLeaving {
				join(row.Namespace+"/"+row.Pod, addr, func() policy.Workload { return facts.endpoint(txn, row) })
			}
		}
	}
	for row := range s.a.tables.IPs.All(txn) {
		if row.Node != s.a.config.Node { // of our own the endpoints tell
			join(row.Namespace+"/"+row.Pod, row.Addr, func() policy.Workload {
				return facts.workload(txn, row.PodUID, row.Namespace, row.Pod, nil, nil)
			})
		}
	}
	s.nodeResidents(txn, func(name string, addr netip.Addr, w policy.Workload) {
		join(name, addr, func() policy.Workload { return w })
	})
	out := make([]policy.Resident, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, *found[name])
	}
	return out
}

// nodeResidents gives each address of each node, with what policies know of it.
func (s *api) nodeResidents(txn statedb.ReadTxn, join func(name string, addr netip.Addr, w policy.Workload)) {
	s.a.policies.Read(func(engine *policy.Engine) {
		add := func(name string, addrs []netip.Addr) {
			for _, addr := range addrs {
				w := policy.Workload{Reserved: identity.RemoteNode}
				if known := engine.Party(addr).Workload; known != nil {
					w.Labels = known.Labels
				}
				join(name, addr, w)
			}
		}
		for _, at := range s.a.policies.facts.ownAddresses() {
			add(s.a.config.Node, []netip.Addr{at})
		}
		for row := range s.a.tables.Nodes.All(txn) {
			if row.Name != s.a.config.Node {
				add(row.Name, row.Addresses)
			}
		}
	})
}

// serving lists the ports at which addresses serve as backends, under the names of the services.
func (s *api) serving() map[netip.Addr][]policy.NamedPort {
	found := map[netip.Addr][]policy.NamedPort{}
	s.a.services.Read(func(brain *service.Brain) {
		for _, view := range brain.Views("") {
			for _, backend := range view.Backends {
				if !backend.Chosen() {
					continue
				}
				port := policy.NamedPort{Name: "service " + view.Namespace + "/" + view.Name, Protocol: view.Proto, Port: backend.Addr.Port()}
				found[backend.Addr.Addr()] = append(found[backend.Addr.Addr()], port)
			}
		}
	})
	return found
}
