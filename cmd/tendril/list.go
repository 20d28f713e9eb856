package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// newEndpointCommand lists pods.
func newEndpointCommand(a *app) *cobra.Command {
	return group("endpoint", "List pods as the agents of their nodes have them", &cobra.Command{
		Use:   "list",
		Short: "List pods with identity, state and whether policy restricts them",
		Long: `List pods with identity, state and whether policy restricts them.

Without --node all nodes of the lab are asked.`,
		Example: `  tendril endpoint list
  tendril --node node1 endpoint list`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return listEndpoints(cmd, a) },
	})
}

// listEndpoints asks one agent or all, and prints what they say as one list. An agent that does not answer is told after
// that.
func listEndpoints(cmd *cobra.Command, a *app) error {
	sockets, err := a.agentSockets()
	if err != nil {
		return err
	}
	answers, failed := askAll(cmd.Context(), sockets, askTimeout, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListEndpointsResponse, error) {
		return agent.ListEndpoints(ctx, &agentv1.ListEndpointsRequest{})
	}, nil)
	if len(answers) == 0 {
		return failed
	}
	v := newView(cmd.OutOrStdout())
	if a.json() {
		merged := &agentv1.ListEndpointsResponse{}
		for _, answer := range answers {
			merged.Endpoints = append(merged.Endpoints, answer.response.GetEndpoints()...)
		}
		return errors.Join(v.json(merged), failed)
	}
	showEndpoints(v, answers)
	failed = errors.Join(v.flush(), failed)
	showNotes(v, answers)
	return failed
}

// showEndpoints prints a line for each pod. An ID means something on its own node only, which is named where there are
// several.
func showEndpoints(v *view, answers []nodeAnswer[*agentv1.ListEndpointsResponse]) {
	header := []string{"ID", "POD", "ADDRESSES", "STATE", "INGRESS", "EGRESS", "IDENTITY", "LABELS", "DEVICE"}
	if len(answers) > 1 {
		header = append([]string{"NODE"}, header...)
	}
	v.header(header...)
	for _, answer := range answers {
		for _, e := range answer.response.GetEndpoints() {
			row := []string{number(e.GetId()), e.GetNamespace() + "/" + e.GetPod(), strings.Join(e.GetIps(), " "), v.stateText(e.GetState()),
				restriction(e.GetIngress(), e.GetIngressIsolators()), restriction(e.GetEgress(), e.GetEgressIsolators()),
				shortIdentity(e.GetIdentity()), strings.Join(e.GetLabels(), ","), e.GetDevice()}
			if len(answers) > 1 {
				row = append([]string{answer.node}, row...)
			}
			v.row(row...)
		}
	}
}

// showNotes prints what was asked for pods and does not hold.
func showNotes(v *view, answers []nodeAnswer[*agentv1.ListEndpointsResponse]) {
	for _, answer := range answers {
		for _, e := range answer.response.GetEndpoints() {
			if len(e.GetNotes()) > 0 {
				v.line("%s/%s: %s", e.GetNamespace(), e.GetPod(), strings.Join(e.GetNotes(), ", "))
			}
		}
	}
}

// restriction says whether policy restricts a direction, and which policies isolate the pod in it.
func restriction(state string, isolators []string) string {
	if len(isolators) == 0 {
		return state
	}
	return state + " by " + strings.Join(isolators, ", ")
}

// shortIdentity shortens a label-set hash to what tells sets apart; -o json has it whole.
func shortIdentity(identity string) string {
	const enough = 8
	if strings.HasPrefix(identity, "reserved:") || len(identity) <= enough {
		return identity
	}
	return identity[:enough]
}

// newIPAMCommand lists addresses.
func newIPAMCommand(a *app) *cobra.Command {
	return group("ipam", "List addresses and their owners", answer(a, &cobra.Command{
		Use:     "list",
		Short:   "List every address that the node has given out, with its owner",
		Example: `  tendril --node node1 ipam list`,
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListAddressesResponse, error) {
		return agent.ListAddresses(ctx, &agentv1.ListAddressesRequest{})
	}, func(v *view, r *agentv1.ListAddressesResponse) {
		v.header("ADDRESS", "OWNER", "STATE", "POOL")
		for _, address := range r.GetAddresses() {
			v.row(address.GetIp(), address.GetOwner(), address.GetState(), address.GetPool())
		}
	}))
}

// newEgressCommand lists egress gateways.
func newEgressCommand(a *app) *cobra.Command {
	return group("egress", "List egress gateways", answer(a, &cobra.Command{
		Use:     "list",
		Short:   "List egress gateways: which of the node's pods leave by which nodes, and who of those is alive",
		Example: `  tendril --node node1 egress list`,
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListEgressGatewaysResponse, error) {
		return agent.ListEgressGateways(ctx, &agentv1.ListEgressGatewaysRequest{})
	}, showEgress))
}

// showEgress prints a line for each node of each gateway.
func showEgress(v *view, r *agentv1.ListEgressGatewaysResponse) {
	v.header("GATEWAY", "PODS", "DESTINATIONS", "EXCEPT", "NODE", "STATE", "ADDRESSES", "PROBLEM")
	for _, g := range r.GetGateways() {
		nodes := g.GetNodes()
		if len(nodes) == 0 {
			nodes = []*agentv1.EgressGateway_Node{{Problem: "no node is one of its gateways: what it covers is dropped"}}
		}
		for _, n := range nodes {
			v.row(g.GetName(), strings.Join(g.GetPods(), " "), strings.Join(g.GetDestinations(), " "), strings.Join(g.GetExceptions(), " "),
				n.GetName(), v.stateText(n.GetState()), strings.Join(n.GetAddresses(), " "), v.wrong.Render(n.GetProblem()))
		}
	}
}

// newServiceCommand lists services.
func newServiceCommand(a *app) *cobra.Command {
	return group("service", "List services and their backends",
		newServiceListCommand(a), newServiceGetCommand(a), newServiceBackendsCommand(a))
}

// newServiceListCommand lists frontends, since a service may have one a family and port.
func newServiceListCommand(a *app) *cobra.Command {
	return answer(a, &cobra.Command{
		Use:     "list",
		Short:   "List services by frontend",
		Example: `  tendril service list`,
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListServicesResponse, error) {
		return agent.ListServices(ctx, &agentv1.ListServicesRequest{})
	}, showServices)
}

// showServices prints a line for each frontend.
func showServices(v *view, r *agentv1.ListServicesResponse) {
	v.header("SERVICE", "TYPE", "FRONTEND", "PROTOCOL", "BACKENDS", "PROBLEM")
	for _, s := range r.GetServices() {
		v.row(s.GetName(), s.GetType(), s.GetFrontend(), s.GetProtocol(), fmt.Sprint(len(chosenBackends(s))), v.wrong.Render(s.GetProblem()))
	}
}

// oneService asks for the frontends of one service, or of all if no name is given.
func oneService(ctx context.Context, agent agentv1.AgentClient, name string) (*agentv1.ListServicesResponse, error) {
	if name != "" && !strings.Contains(name, "/") {
		return nil, fmt.Errorf("service %s: name it with its namespace, as in shop/%s", name, name)
	}
	found, err := agent.ListServices(ctx, &agentv1.ListServicesRequest{Name: name})
	if err != nil || name == "" {
		return found, err
	}
	// An agent from before there was a name to ask for answers with all.
	found.Services = slices.DeleteFunc(found.GetServices(), func(s *agentv1.Service) bool { return s.GetName() != name })
	if len(found.Services) == 0 {
		return nil, fmt.Errorf("service %s: the agent has none of that name: see `tendril service list`", name)
	}
	return found, nil
}

// newServiceGetCommand shows one service whole.
func newServiceGetCommand(a *app) *cobra.Command {
	var name string
	return answer(a, &cobra.Command{
		Use:     "get NAMESPACE/NAME",
		Short:   "Show the frontends of one service with their backends",
		Example: `  tendril service get shop/web`,
		Args:    argument(&name, "service", false),
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListServicesResponse, error) {
		return oneService(ctx, agent, name)
	}, func(v *view, r *agentv1.ListServicesResponse) {
		for _, s := range r.GetServices() {
			v.row("service", s.GetName()+" ("+s.GetType()+")")
			v.row("frontend", strings.TrimSpace(s.GetFrontend()+" "+s.GetProtocol()))
			if s.GetAnnouncer() != "" {
				v.row("announced by", s.GetAnnouncer())
			}
			if s.GetProblem() != "" {
				v.row("problem", v.wrong.Render(s.GetProblem()))
			}
			for _, backend := range chosenBackends(s) {
				v.row("backend", backend.GetAddress())
			}
		}
	})
}

// chosenBackends are those that some client is led to.
func chosenBackends(s *agentv1.Service) []*agentv1.Service_Backend {
	var chosen []*agentv1.Service_Backend
	for _, backend := range s.GetBackends() {
		if backend.GetInside() == backendChosen || backend.GetOutside() == backendChosen {
			chosen = append(chosen, backend)
		}
	}
	return chosen
}

// backendChosen is what an agent says of a backend that clients are led to.
const backendChosen = "chosen"

// newServiceBackendsCommand lists a line a backend, for counting and searching.
func newServiceBackendsCommand(a *app) *cobra.Command {
	var name string
	var only backendFilter
	cmd := answer(a, &cobra.Command{
		Use:   "backends [NAMESPACE/NAME]",
		Short: "List the backends of every frontend, and why clients are not led to some",
		Long: `List the backends of every frontend, and why clients are not led to some.

INSIDE is for clients of the node, OUTSIDE for packets that arrive; a frontend for clients inside only has none. What is said:

  chosen        new connections come to it
  not ready     by its conditions
  draining      another one is ready
  local policy  it is on another node, and the service's traffic policy is Local
  nearer node   trafficDistribution: another one is on the node
  nearer zone   trafficDistribution: another one is in its zone
  no room       a table is full: see ` + "`tendril service list`" + `

STATE unlisted is what no slice has any more, where there was no room for the change.`,
		Example: `  tendril service backends
  tendril service backends shop/web --state draining
  tendril --node node1 service backends --backend-node node2`,
		Args: argument(&name, "service", true),
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListServicesResponse, error) {
		if err := only.validate(); err != nil {
			return nil, err
		}
		found, err := oneService(ctx, agent, name)
		for _, s := range found.GetServices() {
			s.Backends = slices.DeleteFunc(s.GetBackends(), only.leavesOut)
		}
		return found, err
	}, showBackends)
	cmd.Flags().StringVar(&only.node, "backend-node", "", "only backends on this node")
	cmd.Flags().StringVar(&only.state, "state", "", "only backends in this state: "+strings.Join(backendStates(), ", "))
	return cmd
}

// backendFilter is which backends to list.
type backendFilter struct{ node, state string }

// backendStates are those that agents name.
func backendStates() []string {
	return []string{"ready", "draining", "not ready", "terminating", "unlisted"}
}

// validate refuses a state that no backend can be in, rather than to list none.
func (f backendFilter) validate() error {
	if f.state != "" && !slices.Contains(backendStates(), f.state) {
		return fmt.Errorf("--state %q: must be one of %s", f.state, strings.Join(backendStates(), ", "))
	}
	return nil
}

// leavesOut says whether a backend is not asked for.
func (f backendFilter) leavesOut(b *agentv1.Service_Backend) bool {
	return f.node != "" && b.GetNode() != f.node || f.state != "" && b.GetState() != f.state
}

// showBackends prints a line for each backend of a frontend.
func showBackends(v *view, r *agentv1.ListServicesResponse) {
	v.header("SERVICE", "PORT", "FRONTEND", "PROTOCOL", "BACKEND", "STATE", "INSIDE", "OUTSIDE", "NODE", "ZONE", "WEIGHT")
	for _, s := range r.GetServices() {
		for _, b := range s.GetBackends() {
			v.row(s.GetName(), s.GetPort(), s.GetFrontend(), s.GetProtocol(), b.GetAddress(), v.stateText(b.GetState()),
				b.GetInside(), b.GetOutside(), b.GetNode(), b.GetZone(), number(b.GetWeight()))
		}
	}
}
