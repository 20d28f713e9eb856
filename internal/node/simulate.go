package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// A simulation goes through three stages, which touch neither the kernel nor the store:
//
//  1. the request's manifests become a change of policies, all or none (parseChange);
//  2. two engines are made over the facts of this moment, with and without the change (internal/policy, simulate.go);
//  3. both judge what the flow records tell (history.go), or all pairs of the cluster (simulate_pairs.go).

// Simulate implements the API.
func (s *api) Simulate(ctx context.Context, request *agentv1.SimulateRequest) (*agentv1.SimulateResponse, error) {
	change, err := parseChange(request.GetChanges())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "node %s: nothing was simulated:\n%v", s.a.config.Node, err)
	}
	reply := &agentv1.SimulateResponse{Node: s.a.config.Node}
	if request.GetAllPairs() {
		err = s.simulatePairs(ctx, request, change, reply)
	} else {
		err = s.simulateFlows(ctx, request, change, reply)
	}
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// parseChange translates the request's policies; the error holds everything wrong with them. A staged one is simulated
// as if it were in force: that it would change nothing now is known without asking.
func parseChange(changes []*agentv1.PolicyChange) (policy.Change, error) {
	var change policy.Change
	var wrong []error
	for _, c := range changes {
		key := policy.Key{Kind: c.GetKind(), Namespace: c.GetNamespace(), Name: c.GetName()}
		if len(c.GetObject()) == 0 {
			change.Delete = append(change.Delete, key)
			continue
		}
		p, err := kube.ParsePolicy(c.GetKind(), c.GetObject(), c.GetSource())
		if err == nil && p.Key != key {
			err = fmt.Errorf("policy %s: the object calls itself %s", key, p.Key)
		}
		p.Staged = false
		change.Set, wrong = append(change.Set, p), append(wrong, err)
	}
	return change, errors.Join(wrong...)
}

// run makes a simulation's engines and says what becomes of each policy.
func (s *api) run(simulation *policy.Simulation, change policy.Change, request *agentv1.SimulateRequest, reply *agentv1.SimulateResponse) error {
	if err := simulation.Run(change); err != nil {
		return status.Errorf(codes.InvalidArgument, "node %s: nothing was simulated:\n%v", s.a.config.Node, err)
	}
	txn := s.a.tables.DB.ReadTxn()
	for _, c := range request.GetChanges() {
		key := policy.Key{Kind: c.GetKind(), Namespace: c.GetNamespace(), Name: c.GetName()}
		before, after := simulation.Selected(key)
		message := &agentv1.SimulatedPolicy{
			Kind: c.GetKind(), Namespace: c.GetNamespace(), Name: c.GetName(), Change: "added", Endpoints: uint32(after),
		}
		row, _, known := s.a.tables.Policies.Get(txn, table.PolicyByKey(key.Kind, key.Namespace, key.Name))
		switch {
		case len(c.GetObject()) == 0:
			message.Change, message.Endpoints = "deleted", uint32(before)
		case known && bytes.Equal(row.Object, c.GetObject()):
			message.Change = "unchanged"
		case known:
			message.Change = "replaced"
		}
		if p, err := kube.ParsePolicy(c.GetKind(), c.GetObject(), c.GetSource()); err == nil {
			message.Staged = p.Staged
		}
		reply.Policies = append(reply.Policies, message)
	}
	return nil
}

// simulateFlows replays the flow records of this node.
func (s *api) simulateFlows(ctx context.Context, request *agentv1.SimulateRequest, change policy.Change, reply *agentv1.SimulateResponse) error {
	seen := newHistory(request.GetSinceUnixNano())
	if err := seen.read(ctx, s.a.flows, s.a.decoder().BootUnixNano); err != nil {
		return err
	}
	flows := seen.flows()
	reply.Records, reply.Lost, reply.OldestUnixNano, reply.Unjudged = seen.records, seen.lost, seen.oldest, seen.unjudged
	ends := make([][2]policy.Party, len(flows))
	var simulation *policy.Simulation
	s.a.policies.Read(func(engine *policy.Engine) {
		simulation = engine.Simulation()
		for i, f := range flows {
			ends[i] = [2]policy.Party{endOf(engine, f.source), endOf(engine, f.destination)}
		}
	})
	if err := s.run(simulation, change, request, reply); err != nil {
		return err
	}
	for i, f := range flows {
		if ctx.Err() != nil {
			return status.FromContextError(ctx.Err()).Err()
		}
		if f.isDeparted(ends[i]) {
			reply.Departed++
			continue
		}
		now, then := simulation.Judge(ends[i][0], ends[i][1], f.protocol, f.port)
		if !now[0].Judged && !now[1].Judged {
			reply.Departed++
			continue
		}
		reply.Replayed++
		changes := policy.Differ(now, then, request.GetRules())
		if changes {
			reply.Changed++
		}
		if changes || request.GetUnchanged() {
			reply.Flows = append(reply.Flows, s.flowMessage(f, now, then, changes))
		}
	}
	return nil
}

// endOf says who is at an address, as records call it: the node's own have an endpoint, too, which host policies judge.
func endOf(engine *policy.Engine, addr netip.Addr) policy.Party {
	party := engine.Party(addr)
	host := party.Reserved == identity.Host || party.Workload != nil && party.Workload.Reserved == identity.Host
	if host && party.Endpoint == 0 {
		party.Endpoint = uint32(bpf.EndpointHost)
	}
	return party
}

// flowMessage names both ends of a flow, as a record would.
func (s *api) flowMessage(f *pastFlow, now, then [2]policy.Judgement, changes bool) *agentv1.SimulatedFlow {
	names := resolver{s.a}
	message := &agentv1.SimulatedFlow{
		Source:      partyMessage(names.Party(f.source, f.sourcePeer, 0), f.source),
		Destination: partyMessage(names.Party(f.destination, f.destinationPeer, 0), f.destination),
		Protocol:    uint32(f.protocol), Now: verdictMessage(now), Then: verdictMessage(then), Changes: changes,
		Count: f.count, FirstUnixNano: f.first, LastUnixNano: f.last, Nodes: []string{s.a.config.Node},
	}
	message.Destination.Port = uint32(f.port)
	return message
}

func partyMessage(info flow.PartyInfo, addr netip.Addr) *agentv1.Party {
	return &agentv1.Party{
		Ip: addr.String(), Namespace: info.Namespace, Pod: info.Pod, Labels: info.Labels, Identity: info.Identity, Node: info.Node,
	}
}

// verdictMessage says what becomes of a flow, and who decides it.
func verdictMessage(sides [2]policy.Judgement) *agentv1.SimulatedVerdict {
	action, decides := policy.Decide(sides)
	return &agentv1.SimulatedVerdict{
		Verdict: verdictName(action), Decides: decides, Egress: judgementMessage(sides[0]), Ingress: judgementMessage(sides[1]),
	}
}

func verdictName(action policy.Action) string {
	switch action {
	case policy.Deny:
		return "denied"
	case policy.Redirect:
		return "redirected"
	}
	return "allowed"
}

func judgementMessage(j policy.Judgement) *agentv1.Judgement {
	if !j.Judged {
		return &agentv1.Judgement{Action: "none"}
	}
	return &agentv1.Judgement{Action: j.Action.String(), RuleName: ruleName(j.Rule), Place: j.Rule.Place, Source: j.Rule.Source}
}
