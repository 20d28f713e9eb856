package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/policy/policytest"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/table"
)

// apiOf answers for a node whose services stand still.
func apiOf(t *testing.T, n *node1) *api {
	t.Helper()
	brain, err := service.New(service.Config{NodeName: "node1"}, policytest.NewNumbers())
	if err != nil {
		t.Fatal(err)
	}
	return &api{a: &Agent{
		config: Config{Node: "node1", Cluster: "default"}, configuration: newConfiguration(Config{}),
		tables: n.tables, policies: n.loop, services: &serviceLoop{tables: n.tables, brain: brain, gone: func([]uint32) {}, log: slog.New(slog.DiscardHandler)},
	}}
}

func TestExplainAnswersByPodAddressAndIdentity(t *testing.T) {
	n := startWeb(t)
	n.labelled("client", "node2", map[string]string{"role": "client"})
	insert(n, n.tables.IPs, &table.IP{Node: "node2", Addr: netip.MustParseAddr("10.244.2.9"), PodUID: "uid-client", Namespace: "shop", Pod: "client"})
	eventually(t, "the client's address is known", func() bool {
		known := false
		n.datapath.with(func() { _, known = n.datapath.kernel.Rows[netip.MustParsePrefix("10.244.2.9/32")] })
		return known
	})
	s := apiOf(t, n)
	for _, test := range []struct {
		from, to string
		port     uint32
		verdict  string
		summary  string
	}{
		{"shop/client", "shop/web", 80, "allowed", "allowed by every side"},
		{"10.244.2.9", "10.244.1.5", 80, "allowed", "allowed by every side"},
		{"::ffff:10.244.2.9", "shop/web", 443, "denied", "builtin/default-deny"},
		{"reserved:world", "shop/web", 80, "denied", "denied by the ingress of"},
		{"172.30.0.1", "shop/web", 9, "allowed", "allowed by every side"},
	} {
		reply, err := s.Explain(t.Context(), &agentv1.ExplainRequest{From: test.from, To: test.to, Port: test.port, Protocol: 6})
		if err != nil {
			t.Errorf("%s to %s: %v", test.from, test.to, err)
			continue
		}
		if reply.GetVerdict() != test.verdict || !strings.Contains(reply.GetSummary(), test.summary) {
			t.Errorf("%s to %s port %d: %s, %q; want %s, %q", test.from, test.to, test.port, reply.GetVerdict(), reply.GetSummary(), test.verdict, test.summary)
		}
		if len(reply.GetProofs()) != 2 || reply.GetProofs()[0].GetVerdict().GetAction() != "none" {
			t.Errorf("%s to %s: proofs %v, want one a side and none claimed for the side that is not here", test.from, test.to, reply.GetProofs())
		}
		if host := reply.GetProofs()[1].GetSteps()[0]; host.GetRuleName() != "builtin/local-host" || host.GetPorts() != "any port" {
			t.Errorf("%s to %s: the first rule is %v, want builtin/local-host at any port", test.from, test.to, host)
		}
	}
}

func TestExplainSaysWhatItCannotAnswer(t *testing.T) {
	s := apiOf(t, startWeb(t))
	s.a.services.brain.SetService(table.Service{
		Namespace: "shop", Name: "web", Type: "ClusterIP", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.80")},
		Ports: []table.ServicePort{{Port: 80, Protocol: 6}},
	})
	s.a.services.brain.Flush()
	for _, test := range []struct {
		request *agentv1.ExplainRequest
		code    codes.Code
		want    string
	}{
		{&agentv1.ExplainRequest{From: "web", To: "shop/web"}, codes.NotFound, `from: "web" is neither namespace/pod`},
		{&agentv1.ExplainRequest{From: "shop/web", To: "shop/nobody"}, codes.NotFound, `to: no pod "shop/nobody" in the cluster`},
		{&agentv1.ExplainRequest{From: "shop/web", To: "10.0.0.1", Port: 70000}, codes.InvalidArgument, "port 70000"},
		{&agentv1.ExplainRequest{From: "shop/web", To: "10.0.0.1", Protocol: 300}, codes.InvalidArgument, "protocol 300"},
		{&agentv1.ExplainRequest{From: "shop/web", To: "10.96.0.80", Port: 80, Protocol: 6}, codes.FailedPrecondition, "10.96.0.80 at port 80 is service shop/web: policy judges the backend"},
		{&agentv1.ExplainRequest{From: "8.8.8.8", To: "10.0.0.1"}, codes.FailedPrecondition, "ask the agent of a node that has one of them"},
	} {
		_, err := s.Explain(t.Context(), test.request)
		if status.Code(err) != test.code || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s to %s: %v, want %s with %q", test.request.GetFrom(), test.request.GetTo(), err, test.code, test.want)
		}
	}
}

func TestPoliciesAreListedWithWhatBecameOfThem(t *testing.T) {
	n := startWeb(t)
	insert(n, n.tables.Policies, &table.Policy{Kind: "NetworkPolicy", Namespace: "shop", Name: "bad", Object: []byte("{"), Revision: 2})
	eventually(t, "the bad one is refused", func() bool { return len(n.loop.Refused()) == 1 })
	reply, err := apiOf(t, n).ListPolicies(t.Context(), &agentv1.ListPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range reply.GetPolicies() {
		got[p.GetName()] = p.GetState()
		if p.GetName() == "web" && p.GetEndpoints() != 1 || p.GetName() == "bad" && p.GetMessage() == "" {
			t.Errorf("%v: want the endpoints that it selects, and the reason of a refusal", p)
		}
	}
	if got["web"] != "in force" || got["bad"] != "refused" {
		t.Errorf("states %v", got)
	}
}

func TestEveryPartsTroubleIsAProblemWithARemedy(t *testing.T) {
	n := startWeb(t)
	n.datapath.with(func() { n.datapath.refuse["node2"] = true; n.datapath.refuse["full"] = true })
	insert(n, n.tables.Nodes, &table.Node{Name: "node2", Addresses: addrs("172.30.0.2")})
	n.endpoint(7, "full", "10.244.1.7")
	n.policy(`{"kind":"NetworkPolicy"`, 2)
	eventually(t, "all three are noticed", func() bool {
		objects, _ := n.loop.Trouble()
		return len(objects) == 2 && len(n.loop.Refused()) == 1
	})
	insert(n, n.tables.Endpoints, &table.Endpoint{ID: 9, IfIndex: 9, Namespace: "shop", Pod: "asks", Addrs: addrs("10.244.1.19"), Notes: []string{"too much"}})
	s := apiOf(t, n)
	s.a.services.trouble = status.Error(codes.Internal, "map slots is full")
	got := map[string]bool{}
	for _, p := range s.problems([]store.Problem{{Object: "key", Message: "m", Remedy: "r"}}, errors.New("no free address")) {
		got[p.GetObject()] = p.GetMessage() != "" && p.GetRemedy() != ""
	}
	for _, want := range []string{"key", "addresses of this node", "NetworkPolicy/shop/web", "Node/node2", "endpoint 7", "services of this node", "Pod/shop/asks"} {
		if !got[want] {
			t.Errorf("problems %v, want %s with message and remedy", got, want)
		}
	}
}

func TestEndpointsAreListedByNumberWithWhatJudgesThem(t *testing.T) {
	n := startWeb(t)
	n.endpoint(3, "fresh", "10.244.1.9")
	eventually(t, "the fresh one is judged", func() bool { return n.state(3) == table.EndpointInit })
	reply, err := apiOf(t, n).ListEndpoints(t.Context(), &agentv1.ListEndpointsRequest{})
	if err != nil || len(reply.GetEndpoints()) != 2 {
		t.Fatalf("%v, %v: want two endpoints", reply, err)
	}
	web, fresh := reply.GetEndpoints()[0], reply.GetEndpoints()[1]
	if web.GetPod() != "web" || web.GetIngress() != "enforced" || web.GetEgress() != "open" || web.GetIngressProgram() == 0 || len(web.GetLabels()) != 1 {
		t.Errorf("web: %v", web)
	}
	if fresh.GetIdentity() != "reserved:init" || fresh.GetIngress() != "open" || fresh.GetIps()[0] != "10.244.1.9" {
		t.Errorf("fresh: %v", fresh)
	}
}

func TestTablesThatBrainsHoldArePrintedLikeAnyOther(t *testing.T) {
	n := startWeb(t)
	s := apiOf(t, n)
	for table, want := range map[string]string{
		"selectors": "role=client", "peers": "shop app=web", "policy_programs": "NetworkPolicy/shop/web", "addresses": "10.244.1.5/32",
		"endpoints": "web", "classes": "", "frontends": "",
	} {
		reply, err := s.ShowTable(t.Context(), &agentv1.ShowTableRequest{Table: table})
		if err != nil {
			t.Errorf("%s: %v", table, err)
			continue
		}
		var text []string
		for _, row := range reply.GetRows() {
			if len(row.GetCells()) != len(reply.GetHeader()) {
				t.Errorf("%s: row %v under header %v", table, row.GetCells(), reply.GetHeader())
			}
			text = append(text, row.GetCells()...)
		}
		if !strings.Contains(strings.Join(text, " "), want) {
			t.Errorf("%s: %v, want %q among it", table, text, want)
		}
	}
	_, err := s.ShowTable(t.Context(), &agentv1.ShowTableRequest{Table: "sellectors"})
	if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "frontends") {
		t.Errorf("unknown table: %v, want the names of those there are", err)
	}
}

func TestWhatToFlushIsAnAddressOrEverything(t *testing.T) {
	for text, want := range map[string]string{"": "invalid IP", "10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "fd00::1": "fd00::1"} {
		if got, err := wantedAddr("ip", text); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"web", "10.0.0.0/24", "fe80::1%eth0"} {
		if _, err := wantedAddr("ip", text); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v, want a refusal: everything would be flushed", text, err)
		}
	}
}

func TestRowsAreChosenByAddressPortAndProtocol(t *testing.T) {
	pod, remote := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("198.51.100.1:80")
	for _, c := range []struct {
		name     string
		filter   *agentv1.ListFlowsRequest
		protocol uint8
		want     bool
	}{
		{"everything", &agentv1.ListFlowsRequest{}, 6, true},
		{"an address of either end", &agentv1.ListFlowsRequest{Ip: "198.51.100.1"}, 6, true},
		{"another's address", &agentv1.ListFlowsRequest{Ip: "198.51.100.2"}, 6, false},
		{"a port of either end", &agentv1.ListFlowsRequest{Port: 80}, 6, true},
		{"another port", &agentv1.ListFlowsRequest{Port: 8080}, 6, false},
		{"the number of an echo is no port", &agentv1.ListFlowsRequest{Port: 40000}, 1, false},
		{"the protocol by name", &agentv1.ListFlowsRequest{Protocol: "tcp"}, 6, true},
		{"another protocol", &agentv1.ListFlowsRequest{Protocol: "17"}, 6, false},
		{"all three", &agentv1.ListFlowsRequest{Ip: "10.0.0.1", Port: 80, Protocol: "TCP"}, 6, true},
		{"two of three", &agentv1.ListFlowsRequest{Ip: "10.0.0.1", Port: 80, Protocol: "udp"}, 6, false},
	} {
		rows, err := wantedRows(c.filter)
		if got := rows.wants(c.protocol, pod, remote); err != nil || got != c.want {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	for _, wrong := range []*agentv1.FlushFlowsRequest{{Ip: "web"}, {Port: 65536}, {Protocol: "http"}} {
		if _, err := wantedRows(wrong); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v, want a refusal: everything would be flushed", wrong, err)
		}
	}
}

func TestExplainSaysWhatStagedPoliciesWouldDo(t *testing.T) {
	n := startWeb(t)
	s := apiOf(t, n)
	staged := func() *agentv1.Judgement {
		reply, err := s.Explain(t.Context(), &agentv1.ExplainRequest{From: "172.30.0.1", To: "shop/web", Port: 80, Protocol: 6})
		if err != nil {
			t.Fatal(err)
		}
		return reply.GetProofs()[1].GetStaged()
	}
	if got := staged(); got != nil {
		t.Errorf("got %v without a staged policy, want nothing", got)
	}
	insert(n, n.tables.Policies, &table.Policy{Kind: "CiliumNetworkPolicy", Namespace: "shop", Name: "later", Revision: 2, Object: []byte(
		`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"namespace":"shop","name":"later","annotations":{"tendril.io/stage":"true"}},
"spec":{"endpointSelector":{},"ingressDeny":[{"fromEntities":["world"]}],"ingress":[{"fromEntities":["host"]}]}}`)})
	eventually(t, "the staged policy is asked", func() bool { return staged() != nil })
	reply, err := s.Explain(t.Context(), &agentv1.ExplainRequest{From: "reserved:world", To: "shop/web", Port: 80, Protocol: 6})
	if err != nil {
		t.Fatal(err)
	}
	got := reply.GetProofs()[1].GetStaged()
	if got.GetAction() != "deny" || got.GetPlace() != "spec.ingressDeny[0]" || !strings.Contains(got.GetRuleName(), "shop/later") || got.GetRule() == 0 {
		t.Errorf("got %v, want a denial by the staged rule", got)
	}
}
