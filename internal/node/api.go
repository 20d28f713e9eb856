package node

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/cilium/statedb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// api answers the command line.
type api struct {
	agentv1.UnimplementedAgentServer
	a *Agent
}

// serveAPI answers on a listener until ctx ends. Streams end with it.
func (a *Agent) serveAPI(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer(grpc.WaitForHandlers(true)) // they read maps that Close takes out of memory
	agentv1.RegisterAgentServer(server, &api{a: a})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(listener) })
	group.Go(func() error {
		<-ctx.Done()
		server.Stop()
		return nil
	})
	return group.Wait()
}

// Status implements the API.
func (s *api) Status(ctx context.Context, _ *agentv1.StatusRequest) (*agentv1.StatusResponse, error) {
	a := s.a
	txn := a.tables.DB.ReadTxn()
	kept := a.store.Status()
	config, _ := a.configuration.InForce()
	reply := &agentv1.StatusResponse{
		Node: a.config.Node, Version: Version, StartedUnixNano: a.started.UnixNano(), Mode: string(a.config.Mode),
		StoreConnected: kept.Connected, StoreAgeMs: kept.Age.Milliseconds(), StoreRevision: kept.Revision, StoreEpoch: kept.Epoch,
		PolicyRevision: a.policies.inForce.Load(), PolicyRevisionWanted: a.policies.latest.Load(),
		Endpoints: uint32(a.tables.Endpoints.NumObjects(txn)), Nodes: uint32(a.tables.Nodes.NumObjects(txn)),
		Policies: uint32(a.tables.Policies.NumObjects(txn)), Services: uint32(a.tables.Services.NumObjects(txn)),
		DatapathVersion: a.datapath.Version(), VerdictEpoch: uint64(a.datapath.VerdictEpoch()),
		Mtu: a.mtus.Route, Problems: s.problems(kept.Problems, a.endpoints.Room()), LbMode: string(config.LBMode),
		Xdp: &agentv1.XDP{Wanted: string(a.config.XDP), Mode: string(a.xdp.mode), Reason: a.xdp.reason},
	}
	reply.Configuration = a.configuration.message()
	reply.KubeProxy = kubeProxyMode(ctx, kubeProxyAddr)
	if kept.Connected {
		s.askSource(ctx, reply)
	}
	if !kept.CertificateUntil.IsZero() {
		reply.CertificateUntilUnix = kept.CertificateUntil.Unix()
	}
	row := a.selfRow()
	for _, addr := range row.Addresses {
		reply.Addresses = append(reply.Addresses, addr.String())
	}
	for _, cidr := range row.PodCIDRs {
		reply.PodCidrs = append(reply.PodCidrs, cidr.String())
	}
	uses, err := a.datapath.MapUse()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	for _, use := range uses {
		reply.Maps = append(reply.Maps, &agentv1.MapUse{Name: use.Name, Entries: use.Entries, Capacity: use.Capacity, Bytes: use.Bytes})
	}
	for _, feature := range features() {
		reply.Features = append(reply.Features, &agentv1.Feature{Name: feature.Name, Available: feature.Available, Detail: feature.Detail})
	}
	return reply, nil
}

const (
	sourcePatience = time.Second
	sourceSilence  = 15 * time.Second // the operator asks the API server something every two seconds
)

// askSource asks the operator when it last heard from the API server.
func (s *api) askSource(ctx context.Context, reply *agentv1.StatusResponse) {
	ctx, cancel := context.WithTimeout(ctx, sourcePatience)
	defer cancel()
	silent, known := s.a.store.Publisher().SourceSilent(ctx)
	if !known {
		return
	}
	reply.ApiServerSilentMs = proto.Int64(silent.Milliseconds())
	if silent > sourceSilence {
		reply.Problems = append(reply.Problems, &agentv1.Problem{
			Object: "Kubernetes API server", Message: "the operator hears nothing from it; what it said before stays in force",
			Remedy: "see whether it runs and the operator's node reaches it, and the operator's log",
		})
	}
}

// Observe implements the API.
func (s *api) Observe(request *agentv1.ObserveRequest, stream grpc.ServerStreamingServer[agentv1.Flow]) error {
	query, err := flow.ParseQuery(request)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return s.a.flows.Observe(stream.Context(), query, s.a.decoder(), stream.Send)
}

// Reload implements the API.
func (s *api) Reload(ctx context.Context, _ *agentv1.ReloadRequest) (*agentv1.ReloadResponse, error) {
	begun := time.Now()
	version, err := s.a.configuration.reload(ctx)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &agentv1.ReloadResponse{DatapathVersion: version, TookNs: time.Since(begun).Nanoseconds()}, nil
}

// ListAddresses implements the API.
func (s *api) ListAddresses(context.Context, *agentv1.ListAddressesRequest) (*agentv1.ListAddressesResponse, error) {
	reply := &agentv1.ListAddressesResponse{}
	for _, address := range s.a.endpoints.Addresses() {
		reply.Addresses = append(reply.Addresses, &agentv1.ListAddressesResponse_Address{
			Ip: address.Addr.String(), Owner: address.Owner, State: string(address.State), Pool: s.pool(address.Addr.String()),
		})
	}
	return reply, nil
}

// ListServices implements the API.
func (s *api) ListServices(_ context.Context, request *agentv1.ListServicesRequest) (*agentv1.ListServicesResponse, error) {
	reply := &agentv1.ListServicesResponse{}
	s.a.services.Read(func(brain *service.Brain) {
		for _, view := range brain.Views(request.GetName()) {
			message := serviceMessage(view)
			node, rival := s.a.announcer.Owner(view.Frontend.Addr())
			message.Announcer, message.Problem = node, serviceProblem(view, s.a.services.health.problem(message.GetName()), rival)
			reply.Services = append(reply.Services, message)
		}
	})
	return reply, nil
}

// serviceProblem is what a person should act on at a frontend: what its service lacks, a health check that nobody answers, and
// somebody else on the link who answers for its address.
func serviceProblem(view service.View, unanswered *agentv1.Problem, rival string) string {
	var all []string
	for _, problem := range view.Problems {
		all = append(all, problem.Message+": "+problem.Remedy)
	}
	if unanswered != nil {
		all = append(all, unanswered.GetMessage()+": "+unanswered.GetRemedy())
	}
	if rival != "" {
		all = append(all, fmt.Sprintf("%s is also answered for by %s on this node's link: take the address away from one of them", view.Frontend.Addr(), rival))
	}
	return strings.Join(all, "; ")
}

func serviceMessage(view service.View) *agentv1.Service {
	message := &agentv1.Service{Name: view.Namespace + "/" + view.Name, Type: view.Type}
	if view.Frontend.IsValid() {
		message.Frontend, message.Protocol = view.Frontend.String(), flow.ProtocolName(uint32(view.Proto))
	}
	message.Port = view.Port
	for _, backend := range view.Backends {
		message.Backends = append(message.Backends, &agentv1.Service_Backend{
			Address: backend.Addr.String(), State: backend.State.String(), Inside: backend.Inside.String(), Outside: backend.Outside.String(),
			Node: backend.Node, Zone: backend.Zone, Weight: backend.Weight,
		})
	}
	return message
}

// ListEgressGateways implements the API.
func (s *api) ListEgressGateways(context.Context, *agentv1.ListEgressGatewaysRequest) (*agentv1.ListEgressGatewaysResponse, error) {
	return &agentv1.ListEgressGatewaysResponse{Gateways: s.a.egress.list()}, nil
}

// ListPolicies implements the API.
func (s *api) ListPolicies(context.Context, *agentv1.ListPoliciesRequest) (*agentv1.ListPoliciesResponse, error) {
	refused := make(map[policy.Key]refusal)
	for _, r := range s.a.policies.Refused() {
		refused[r.Key] = r
	}
	reply := &agentv1.ListPoliciesResponse{}
	txn := s.a.tables.DB.ReadTxn()
	s.a.policies.Read(func(engine *policy.Engine) {
		for row := range s.a.tables.Policies.All(txn) {
			reply.Policies = append(reply.Policies, s.policyMessage(txn, row, engine, refused))
		}
	})
	return reply, nil
}

// keyOf is a policy row's key.
func keyOf(row *table.Policy) policy.Key {
	return policy.Key{Kind: row.Kind, Namespace: row.Namespace, Name: row.Name}
}

// policyMessage says what became of a policy, and what it, or an earlier version that stays in force, does here. The state
// that a trial on this node gives it comes before the rest.
func (s *api) policyMessage(txn statedb.ReadTxn, row *table.Policy, engine *policy.Engine, refused map[policy.Key]refusal) *agentv1.Policy {
	key := keyOf(row)
	use, _ := engine.Use(key)
	message := &agentv1.Policy{
		Kind: row.Kind, Namespace: row.Namespace, Name: row.Name, Revision: row.Revision, State: "in force", Source: row.Source,
		Endpoints: uint32(len(use.Endpoints)), Rules: uint32(use.Rules), Selectors: use.Selectors, Programs: use.Programs,
	}
	for _, id := range use.Endpoints {
		if pod, _, ok := s.a.tables.Endpoints.Get(txn, table.EndpointByID(id)); ok {
			message.Pods = append(message.Pods, pod.Namespace+"/"+pod.Pod)
		}
	}
	slices.Sort(message.Pods)
	r, ok := refused[key]
	switch {
	case ok:
		message.State, message.Message = "refused", r.Message
	case use.Staged:
		message.State = "staged"
	}
	if state := s.a.policies.trial.state(key); state != "" {
		message.State = state
	}
	return message
}

// Counters implements the API.
func (s *api) Counters(context.Context, *agentv1.CountersRequest) (*agentv1.CountersResponse, error) {
	counters, err := s.a.datapath.Counters()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	tallies, err := s.a.datapath.Tallies()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	reply := &agentv1.CountersResponse{Tallies: make(map[string]uint64, len(tallies))}
	for _, counter := range counters {
		reply.Counters = append(reply.Counters, counterMessage(counter))
	}
	for tally, n := range tallies {
		reply.Tallies[tally.String()] = n
	}
	return reply, nil
}
