package node

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// Explain implements the API.
func (s *api) Explain(_ context.Context, request *agentv1.ExplainRequest) (*agentv1.ExplainResponse, error) {
	if request.GetPort() > 65535 || request.GetProtocol() > 255 {
		return nil, status.Errorf(codes.InvalidArgument, "port %d, protocol %d: out of range", request.GetPort(), request.GetProtocol())
	}
	from, err := s.party(request.GetFrom())
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "from: %v", err)
	}
	to, err := s.party(request.GetTo())
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "to: %v", err)
	}
	if from.Endpoint == 0 && to.Endpoint == 0 {
		return nil, status.Errorf(codes.FailedPrecondition,
			"neither %s nor %s is a pod of node %s, or that node: ask the agent of a node that has one of them", request.GetFrom(), request.GetTo(), s.a.config.Node)
	}
	if name := s.frontend(to, request); name != "" {
		return nil, status.Errorf(codes.FailedPrecondition,
			"%s at port %d is service %s: policy judges the backend that is chosen, not the service: name one, see `tendril service get %s`",
			request.GetTo(), request.GetPort(), name, name)
	}
	var proofs []policy.Proof
	s.a.policies.Read(func(engine *policy.Engine) {
		proofs = engine.Explain(from, to, uint8(request.GetProtocol()), uint16(request.GetPort()))
	})
	reply := &agentv1.ExplainResponse{Verdict: "allowed"}
	for _, proof := range proofs {
		reply.Proofs = append(reply.Proofs, proofMessage(proof))
		if proof.Judged && proof.Action == policy.Deny && reply.Verdict == "allowed" {
			reply.Verdict = "denied"
			reply.Summary = fmt.Sprintf("denied by the %s of %s: %s", proof.Direction.String(), proof.Endpoint, proof.Rule.Name)
		}
	}
	if reply.Summary == "" {
		reply.Summary = "allowed by every side that is a pod of this node"
	}
	return reply, nil
}

// frontend names the service that answers at a party's address, of which no pod or node is the owner; empty: none does.
func (s *api) frontend(to policy.Party, request *agentv1.ExplainRequest) string {
	if !to.Address.IsValid() || to.Workload != nil || to.Endpoint != 0 || to.Reserved != identity.World {
		return ""
	}
	return resolver{s.a}.Service(netip.AddrPortFrom(to.Address, uint16(request.GetPort())), uint8(request.GetProtocol()))
}

// party finds who is meant: namespace/pod, an address, or a reserved identity.
func (s *api) party(text string) (policy.Party, error) {
	if reserved, err := identity.ParseReserved(text); err == nil {
		party := policy.Party{Reserved: reserved, Name: text}
		s.judgeHost(&party, reserved == identity.Host)
		return party, nil
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return s.partyAt(addr.Unmap()), nil
	}
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" {
		return policy.Party{}, fmt.Errorf("%q is neither namespace/pod, an address, nor a reserved identity such as reserved:world", text)
	}
	txn := s.a.tables.DB.ReadTxn()
	if row, _, ok := s.a.tables.Endpoints.Get(txn, table.EndpointByPod(namespace, name)); ok && len(row.Addrs) > 0 {
		party := s.partyAt(row.Addrs[0])
		party.Name = text
		return party, nil
	}
	pod, _, ok := s.a.tables.Pods.Get(txn, table.PodByName(namespace, name))
	if !ok {
		return policy.Party{}, fmt.Errorf("no pod %q in the cluster: `tendril db show pods` lists them", text)
	}
	workload := s.a.policies.facts.workload(txn, pod.UID, namespace, name, nil, nil)
	party := policy.Party{Workload: &workload, Name: text}
	if ip, _, ok := s.a.tables.IPs.Get(txn, table.IPByPodUID(pod.UID)); ok {
		party.Address = ip.Addr
	}
	return party, nil
}

// partyAt describes the owner of an address, by the pod's name if there is one.
func (s *api) partyAt(addr netip.Addr) (party policy.Party) {
	s.a.policies.Read(func(engine *policy.Engine) { party = engine.Party(addr) })
	party.Name = addr.String()
	txn := s.a.tables.DB.ReadTxn()
	if row, _, ok := s.a.tables.Endpoints.Get(txn, table.EndpointByIP(addr)); ok {
		party.Name = row.Namespace + "/" + row.Pod
	} else if row, _, ok := s.a.tables.IPs.Get(txn, table.IPByAddr(addr)); ok {
		party.Name = row.Namespace + "/" + row.Pod
	}
	s.judgeHost(&party, bpf.AddressFlag(party.Flags)&bpf.AddressFlagHost != 0)
	return party
}

// judgeHost makes a party that is the node an endpoint, while a policy selects it.
func (s *api) judgeHost(party *policy.Party, host bool) {
	s.a.policies.Read(func(engine *policy.Engine) {
		if host && engine.Judged(hostEndpoint) != [2]bool{} {
			party.Endpoint = hostEndpoint
		}
	})
}

func proofMessage(proof policy.Proof) *agentv1.Proof {
	message := &agentv1.Proof{
		Direction: proof.Direction.String(), Endpoint: proof.Endpoint, Peer: proof.Peer, Nearest: proof.Nearest,
		Verdict: &agentv1.Judgement{Action: "none"},
	}
	if proof.Judged {
		message.Verdict = judgementMessage(policy.Judgement{Judged: true, Action: proof.Action, Rule: proof.Rule})
		message.Verdict.Rule = proof.Rule.Rule
	}
	if proof.Staged != nil {
		message.Staged = judgementMessage(*proof.Staged)
		message.Staged.Rule = proof.Staged.Rule.Rule
	}
	for _, key := range proof.Isolators {
		message.Isolators = append(message.Isolators, key.String())
	}
	for _, step := range proof.Steps {
		message.Steps = append(message.Steps, &agentv1.Step{
			Rank: step.Rank, RuleName: ruleName(step.Rule), Place: step.Rule.Place, Source: step.Rule.Source, Selector: step.Selector,
			Action: step.Action.String(), Matched: step.Matched, Why: step.Why, Ports: step.Ports,
		})
	}
	return message
}
