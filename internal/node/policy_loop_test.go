package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/statedb"
	"go.uber.org/goleak"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
	"tendril.io/tendril/internal/table"
)

// fakeDatapath applies deltas to a model of the kernel's tables, and fails when told to.
type fakeDatapath struct {
	mu        sync.Mutex
	kernel    *policytest.Kernel
	endpoints map[uint32]*table.Endpoint
	nodes     map[string]*table.Node
	fail      int // so many publications fail from now on
	published int
}

func (f *fakeDatapath) Publish(_ context.Context, delta *policy.Delta) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail > 0 {
		f.fail--
		return errors.New("map full")
	}
	f.published++
	return f.kernel.Apply(*delta, nil)
}

func (f *fakeDatapath) WriteEndpoint(row *table.Endpoint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endpoints[row.ID] = row
	return nil
}

func (f *fakeDatapath) DeleteEndpoint(id uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.endpoints, id)
	delete(f.kernel.Subjects, id)
	return nil
}

func (f *fakeDatapath) SetNode(row *table.Node) error {
	f.nodes[row.Name] = row
	return nil
}

func (f *fakeDatapath) DeleteNode(row *table.Node) error {
	delete(f.nodes, row.Name)
	return nil
}

// judge asks the model about a packet to an endpoint; ACTION_NONE where the endpoint has no program.
func (f *fakeDatapath) judge(endpoint uint32, from string, port uint16) bpf.Action {
	f.mu.Lock()
	defer f.mu.Unlock()
	verdict, err := f.kernel.Judge(endpoint, policy.Ingress, netip.MustParseAddr(from), 6, port)
	if err != nil {
		return bpf.ActionNone
	}
	return verdict.Action
}

// node1 is a node under test with the policy loop running over real tables.
type node1 struct {
	t        *testing.T
	tables   *table.Tables
	datapath *fakeDatapath
	loop     *policyLoop
	loaded   chan struct{}
}

func startNode1(t *testing.T) *node1 {
	t.Helper()
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	n := &node1{t: t, tables: tables, loaded: make(chan struct{}), datapath: &fakeDatapath{
		kernel: policytest.NewKernel(), endpoints: map[uint32]*table.Endpoint{}, nodes: map[string]*table.Node{},
	}}
	numbers := policytest.NewNumbers()
	nodes := &numbering{numbers: numbers, known: map[string]uint32{}}
	facts := newFacts(tables, Config{Node: "node1", Cluster: "default"}, nodes.number)
	n.loop = newPolicyLoop(tables, facts, policy.New(policy.Config{}, numbers), n.datapath, n.datapath, slog.New(slog.DiscardHandler))
	n.loop.setSelf(&table.Node{Name: "node1", Addresses: addrs("172.30.0.1"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.loop.Run(ctx, n.loaded, func() {}) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, goleak.IgnoreCurrent())
	})
	return n
}

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func insert[Row any](n *node1, into statedb.RWTable[Row], rows ...Row) {
	n.t.Helper()
	txn := n.tables.DB.WriteTxn(into)
	defer txn.Commit()
	for _, row := range rows {
		if _, _, err := into.Insert(txn, row); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *node1) endpoint(id uint32, pod, ip string) *table.Endpoint {
	row := &table.Endpoint{
		ID: id, Generation: 1, Namespace: "shop", Pod: pod, PodUID: "uid-" + pod, Sandbox: pod, IfIndex: id,
		Addrs: addrs(ip), State: table.EndpointAttaching,
	}
	insert(n, n.tables.Endpoints, row)
	return row
}

// labelled tells what the operator says of a pod.
func (n *node1) labelled(pod, node string, labels map[string]string) {
	set := &table.LabelSet{Cluster: "default", Namespace: "shop", Labels: labels}
	set.Hash = identity.Of("default", "shop", "", label.SetOf(labels))
	insert(n, n.tables.LabelSets, set)
	insert(n, n.tables.Pods, &table.Pod{Node: node, Namespace: "shop", Name: pod, UID: "uid-" + pod, Labels: set.Hash})
}

// allowClients is a NetworkPolicy that lets pods with role=client reach port 80 of pods with app=web.
const allowClients = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"namespace":"shop","name":"web"},
"spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress"],
"ingress":[{"from":[{"podSelector":{"matchLabels":{"role":"client"}}}],"ports":[{"port":80}]}]}}`

func (n *node1) policy(object string, revision uint64) {
	insert(n, n.tables.Policies, &table.Policy{Kind: "NetworkPolicy", Namespace: "shop", Name: "web", Object: []byte(object), Revision: revision})
}

// eventually waits until holds does, and fails with what after two seconds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 2 s: %s", what)
		}
	}
}

func (n *node1) state(id uint32) table.EndpointState {
	row, _, ok := n.tables.Endpoints.Get(n.tables.DB.ReadTxn(), table.EndpointByID(id))
	if !ok {
		return ""
	}
	return row.State
}

func TestAnEndpointIsNotJudgedBeforePoliciesAreKnown(t *testing.T) {
	n := startNode1(t)
	n.endpoint(1, "web", "10.244.1.5")
	n.labelled("web", "node1", map[string]string{"app": "web"})
	time.Sleep(50 * time.Millisecond)
	if got := n.state(1); got != table.EndpointAttaching {
		t.Fatalf("endpoint is %q before the store was loaded: a pod without its policies would be open", got)
	}
	n.policy(allowClients, 1)
	close(n.loaded)
	eventually(t, "endpoint becomes ready", func() bool { return n.state(1) == table.EndpointReady })
	if got := n.datapath.judge(1, "8.8.8.8", 80); got != bpf.ActionDeny {
		t.Errorf("the first program judges the world as %v, want deny", got)
	}
}

func TestAPodIsInitUntilItsLabelsArriveAndChangesInPlace(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	n.policy(allowClients, 1)
	n.endpoint(1, "web", "10.244.1.5")
	eventually(t, "endpoint is judged as reserved:init", func() bool { return n.state(1) == table.EndpointInit })
	n.labelled("web", "node1", map[string]string{"app": "web"})
	eventually(t, "endpoint becomes ready", func() bool { return n.state(1) == table.EndpointReady })
	eventually(t, "its policy isolates it", func() bool { return n.datapath.judge(1, "8.8.8.8", 80) == bpf.ActionDeny })
}

func TestAPodOfAnotherNodeIsKnownByItsLabels(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	n.policy(allowClients, 1)
	n.labelled("web", "node1", map[string]string{"app": "web"})
	n.endpoint(1, "web", "10.244.1.5")
	insert(n, n.tables.Nodes, &table.Node{Name: "node2", Addresses: addrs("172.30.0.2"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}})
	insert(n, n.tables.IPs, &table.IP{Node: "node2", Addr: netip.MustParseAddr("10.244.2.9"), PodUID: "uid-client", Namespace: "shop", Pod: "client"})
	eventually(t, "an address without labels is denied", func() bool { return n.datapath.judge(1, "10.244.2.9", 80) == bpf.ActionDeny })
	n.labelled("client", "node2", map[string]string{"role": "client"})
	eventually(t, "the client is allowed", func() bool { return n.datapath.judge(1, "10.244.2.9", 80) == bpf.ActionAllow })
	if got := n.datapath.judge(1, "10.244.2.9", 443); got != bpf.ActionDeny {
		t.Errorf("port 443 is %v, want deny", got)
	}
	if got := n.datapath.judge(1, "10.244.2.10", 80); got != bpf.ActionDeny {
		t.Errorf("an address of the pod CIDR that nobody owns is %v, want deny", got)
	}
}

func TestAPublicationThatFailsIsRepeatedAndNothingIsLost(t *testing.T) {
	n := startNode1(t)
	n.datapath.fail = 2
	close(n.loaded)
	n.policy(allowClients, 7)
	n.labelled("web", "node1", map[string]string{"app": "web"})
	n.endpoint(1, "web", "10.244.1.5")
	eventually(t, "endpoint becomes ready in spite of two failures", func() bool { return n.state(1) == table.EndpointReady })
	eventually(t, "revision 7 is in force", func() bool { return n.loop.inForce.Load() == 7 })
	if got := n.datapath.judge(1, "8.8.8.8", 80); got != bpf.ActionDeny {
		t.Errorf("the world is %v, want deny", got)
	}
}

func TestAMalformedPolicyIsRefusedAndTheOldOneStays(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	n.policy(allowClients, 1)
	n.labelled("web", "node1", map[string]string{"app": "web"})
	n.endpoint(1, "web", "10.244.1.5")
	eventually(t, "endpoint becomes ready", func() bool { return n.state(1) == table.EndpointReady })
	n.policy(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"namespace":"shop","name":"web"},"spec":{"podSelektor":{}}}`, 2)
	eventually(t, "the policy is listed as refused", func() bool { return len(n.loop.Refused()) == 1 })
	if got := n.datapath.judge(1, "8.8.8.8", 80); got != bpf.ActionDeny {
		t.Errorf("the world is %v after a malformed update, want deny as before", got)
	}
	n.policy(allowClients, 3)
	eventually(t, "a correct version clears the refusal", func() bool { return len(n.loop.Refused()) == 0 })
}

func TestAnEndpointThatLeavesTakesItsRecordAndAddressesAlong(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	n.labelled("web", "node1", map[string]string{"app": "web"})
	row := n.endpoint(1, "web", "10.244.1.5")
	eventually(t, "endpoint becomes ready", func() bool { return n.state(1) == table.EndpointReady })
	txn := n.tables.DB.WriteTxn(n.tables.Endpoints)
	if _, _, err := n.tables.Endpoints.Delete(txn, row); err != nil {
		t.Fatal(err)
	}
	txn.Commit()
	eventually(t, "record and address are gone", func() bool {
		n.datapath.mu.Lock()
		defer n.datapath.mu.Unlock()
		_, address := n.datapath.kernel.Rows[netip.MustParsePrefix("10.244.1.5/32")]
		return len(n.datapath.endpoints) == 0 && !address
	})
}

func TestAnIdleLoopPublishesNothing(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	n.labelled("web", "node1", map[string]string{"app": "web"})
	n.endpoint(1, "web", "10.244.1.5")
	eventually(t, "endpoint becomes ready", func() bool { return n.state(1) == table.EndpointReady })
	time.Sleep(100 * time.Millisecond) // its own marking of the row comes round once
	n.datapath.mu.Lock()
	before := n.datapath.published
	n.datapath.mu.Unlock()
	time.Sleep(200 * time.Millisecond)
	n.datapath.mu.Lock()
	defer n.datapath.mu.Unlock()
	if n.datapath.published != before {
		t.Errorf("%d publications while nothing changed", n.datapath.published-before)
	}
}
