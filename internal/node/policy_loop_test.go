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
	fail      int             // so many publications fail from now on
	refuse    map[string]bool // nodes and pods that cannot be written
	released  []string        // nodes whose numbers were given back
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
	if f.refuse[row.Pod] {
		return errors.New("no device: create the pod's device first")
	}
	if old := f.endpoints[row.ID]; old != nil && old.Generation != row.Generation {
		delete(f.kernel.Subjects, row.ID) // as the datapath does: another pod's record starts with no program
	}
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
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse[row.Name] {
		return errors.New("no number is free")
	}
	f.nodes[row.Name] = row
	return nil
}

func (f *fakeDatapath) DeleteNode(row *table.Node) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.nodes, row.Name)
	return nil
}

func (f *fakeDatapath) ReleaseNode(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = append(f.released, name)
}

// with calls do while the loop does not touch the model.
func (f *fakeDatapath) with(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// judge asks the model about a packet to an endpoint; ACTION_NONE where the endpoint has no program.
func (f *fakeDatapath) judge(endpoint uint32, from string, port uint16) bpf.Action {
	return f.judgeAt(endpoint, policy.Ingress, from, port)
}

// judgeAt asks the model about a packet between an endpoint and a peer.
func (f *fakeDatapath) judgeAt(endpoint uint32, d policy.Direction, peer string, port uint16) bpf.Action {
	f.mu.Lock()
	defer f.mu.Unlock()
	verdict, err := f.kernel.Judge(endpoint, d, netip.MustParseAddr(peer), 6, port)
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
		refuse: map[string]bool{},
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

func remove[Row any](n *node1, from statedb.RWTable[Row], rows ...Row) {
	n.t.Helper()
	txn := n.tables.DB.WriteTxn(from)
	defer txn.Commit()
	for _, row := range rows {
		if _, _, err := from.Delete(txn, row); err != nil {
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

// startWeb is a node with one pod, endpoint 1, which allowClients isolates.
func startWeb(t *testing.T) *node1 {
	t.Helper()
	n := startNode1(t)
	close(n.loaded)
	n.policy(allowClients, 1)
	n.labelled("web", "node1", map[string]string{"app": "web"})
	n.endpoint(1, "web", "10.244.1.5")
	eventually(t, "endpoint becomes ready", func() bool { return n.state(1) == table.EndpointReady })
	return n
}

// eventually waits until holds does, and fails with what after a minute.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
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
	n := startWeb(t)
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

// uncount removes the policy and counts that, in one transaction as the store does.
func (n *node1) uncount(revision uint64) {
	n.t.Helper()
	txn := n.tables.DB.WriteTxn(n.tables.Policies, n.tables.Counters)
	defer txn.Commit()
	if err := n.tables.Policies.DeleteAll(txn); err != nil {
		n.t.Fatal(err)
	}
	if _, _, err := n.tables.Counters.Insert(txn, &table.Counter{Kind: "policies", Revision: revision}); err != nil {
		n.t.Fatal(err)
	}
}

func TestARemovalIsInForceWhenTheKernelHasIt(t *testing.T) {
	n := startWeb(t)
	eventually(t, "the policy is in force", func() bool { return n.loop.inForce.Load() == 1 })
	n.datapath.with(func() { n.datapath.fail = 2 })
	n.uncount(2)
	eventually(t, "the removal is wanted", func() bool { return n.loop.latest.Load() == 2 })
	eventually(t, "the removal is in force", func() bool {
		inForce := n.loop.inForce.Load() == 2
		if got := n.datapath.judge(1, "8.8.8.8", 80); inForce && got == bpf.ActionDeny {
			t.Fatalf("the world is %v although the removal is said to be in force", got)
		}
		return inForce
	})
}

func TestARevisionWithoutARowIsInForceToo(t *testing.T) {
	n := startWeb(t)
	insert(n, n.tables.Counters, &table.Counter{Kind: "policies", Revision: 5})
	eventually(t, "revision 5 is in force", func() bool { return n.loop.inForce.Load() == 5 })
}

func TestAStoreThatCountsFromTheStartIsFollowedDown(t *testing.T) {
	n := startWeb(t)
	insert(n, n.tables.Counters, &table.Counter{Kind: "policies", Revision: 9})
	eventually(t, "revision 9 is in force", func() bool { return n.loop.inForce.Load() == 9 })
	n.uncount(3)
	eventually(t, "revision 3 is in force", func() bool { return n.loop.inForce.Load() == 3 && n.loop.latest.Load() == 3 })
}

func TestAMalformedPolicyIsRefusedAndTheOldOneStays(t *testing.T) {
	n := startWeb(t)
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
	remove(n, n.tables.Endpoints, row)
	eventually(t, "record and address are gone", func() bool {
		n.datapath.mu.Lock()
		defer n.datapath.mu.Unlock()
		_, address := n.datapath.kernel.Rows[netip.MustParsePrefix("10.244.1.5/32")]
		return len(n.datapath.endpoints) == 0 && !address
	})
}

func TestAnIdleLoopPublishesNothing(t *testing.T) {
	n := startWeb(t)
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

const unreadable = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"namespace":"shop","name":"web"},"spec":{"podSelektor":{}}}`

func TestAPolicyThatWasNeverReadIsolatesItsNamespaceOnly(t *testing.T) {
	n := startNode1(t)
	n.policy(unreadable, 1)
	n.labelled("web", "node1", map[string]string{"app": "web"})
	n.endpoint(1, "web", "10.244.1.5")
	insert(n, n.tables.Endpoints, &table.Endpoint{
		ID: 2, Generation: 1, Namespace: "other", Pod: "free", Sandbox: "free", IfIndex: 2, Addrs: addrs("10.244.1.6"),
		State: table.EndpointAttaching, ArgLabels: &table.LabelSet{Cluster: "default", Namespace: "other"},
	})
	close(n.loaded)
	eventually(t, "both endpoints are ready", func() bool { return n.state(1) == table.EndpointReady && n.state(2) == table.EndpointReady })
	if got := n.datapath.judge(1, "8.8.8.8", 80); got != bpf.ActionDeny {
		t.Errorf("a pod that the policy may have isolated is judged %v, want deny", got)
	}
	if got := n.datapath.judge(1, "172.30.0.1", 80); got != bpf.ActionAllow {
		t.Errorf("the node's own probe is judged %v, want allow", got)
	}
	if got := n.datapath.judge(2, "8.8.8.8", 80); got != bpf.ActionAllow {
		t.Errorf("a pod of another namespace is judged %v, want allow", got)
	}
	if refused := n.loop.Refused(); len(refused) != 1 || refused[0].Revision != 1 {
		t.Errorf("refused: %v, want the policy", refused)
	}
	n.policy(allowClients, 2)
	eventually(t, "a version that can be read takes its place", func() bool { return len(n.loop.Refused()) == 0 && n.loop.inForce.Load() == 2 })
	n.policy(unreadable, 3)
	eventually(t, "the next one is refused", func() bool { return len(n.loop.Refused()) == 1 })
	remove(n, n.tables.Policies, &table.Policy{Kind: "NetworkPolicy", Namespace: "shop", Name: "web"})
	eventually(t, "without the policy the pod is open", func() bool { return n.datapath.judge(1, "8.8.8.8", 80) == bpf.ActionAllow })
}

func TestAPolicyThatCallsItselfOtherwiseIsRefused(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	insert(n, n.tables.Policies, &table.Policy{Kind: "NetworkPolicy", Namespace: "shop", Name: "other", Object: []byte(allowClients), Revision: 1})
	eventually(t, "the policy is refused", func() bool { return len(n.loop.Refused()) == 1 })
	if got := n.loop.Refused()[0]; got.Key.Name != "other" {
		t.Errorf("refused %v, want the key that it is stored under", got)
	}
}

func TestAPodThatTakesAnothersNumberIsJudgedLikeAnyOther(t *testing.T) {
	n := startWeb(t)
	n.labelled("web2", "node1", map[string]string{"app": "web"})
	insert(n, n.tables.Endpoints, &table.Endpoint{ // with equal labels, in one step
		ID: 1, Generation: 2, Namespace: "shop", Pod: "web2", PodUID: "uid-web2", Sandbox: "web2", IfIndex: 9,
		Addrs: addrs("10.244.1.6"), State: table.EndpointAttaching,
	})
	eventually(t, "the second is ready", func() bool { return n.state(1) == table.EndpointReady })
	eventually(t, "the second is judged by its policy", func() bool { return n.datapath.judge(1, "8.8.8.8", 80) == bpf.ActionDeny })
}

func TestANodeThatFoundNoPlaceIsAProblemUntilItFindsOne(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	n.datapath.with(func() { n.datapath.refuse["node2"] = true })
	insert(n, n.tables.Nodes, &table.Node{Name: "node2", Addresses: addrs("172.30.0.2")})
	eventually(t, "the node is a problem", func() bool {
		objects, loop := n.loop.Trouble()
		return objects["Node/node2"] != nil && loop == nil
	})
	n.datapath.with(func() { n.datapath.refuse = map[string]bool{} })
	insert(n, n.tables.Nodes, &table.Node{Name: "node3", Addresses: addrs("172.30.0.3")}) // anything that changes
	eventually(t, "both nodes are written and nothing is wrong", func() bool {
		objects, _ := n.loop.Trouble()
		written := 0
		n.datapath.with(func() { written = len(n.datapath.nodes) })
		return len(objects) == 0 && written == 3
	})
}

func TestAnEndpointThatCannotBeWrittenIsAProblemAndHoldsUpNobody(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	n.datapath.with(func() { n.datapath.refuse["web"] = true })
	n.endpoint(1, "web", "10.244.1.5")
	n.endpoint(2, "other", "10.244.1.6")
	eventually(t, "the other is judged", func() bool { return n.state(2) == table.EndpointInit })
	if objects, _ := n.loop.Trouble(); objects["endpoint 1"] == nil {
		t.Errorf("problems %v, want endpoint 1 among them", objects)
	}
	if got := n.state(1); got != table.EndpointAttaching {
		t.Errorf("it is %q though the kernel does not have it", got)
	}
	n.datapath.with(func() { n.datapath.refuse = map[string]bool{} })
	n.endpoint(3, "third", "10.244.1.7")
	eventually(t, "it is tried again", func() bool { return n.state(1) == table.EndpointInit })
}

func TestANodesNumberIsGivenBackWithTheLastRowThatNamesIt(t *testing.T) {
	n := startNode1(t)
	close(n.loaded)
	node := &table.Node{Name: "node2", Addresses: addrs("172.30.0.2")}
	ip := &table.IP{Node: "node2", Addr: netip.MustParseAddr("10.244.2.9"), PodUID: "uid-a", Namespace: "shop", Pod: "a"}
	insert(n, n.tables.Nodes, node)
	insert(n, n.tables.IPs, ip)
	count := func() (known, released int) {
		n.datapath.with(func() { known, released = len(n.datapath.nodes), len(n.datapath.released) })
		return known, released
	}
	eventually(t, "the node is known", func() bool { known, _ := count(); return known == 2 })
	remove(n, n.tables.Nodes, node)
	eventually(t, "the node is gone", func() bool { known, _ := count(); return known == 1 })
	if _, released := count(); released != 0 {
		t.Error("its number may become another node's while an address leads to it")
	}
	remove(n, n.tables.IPs, ip)
	eventually(t, "the number is given back", func() bool { _, released := count(); return released == 1 })
}

func TestALoopThatCannotPublishSaysSo(t *testing.T) {
	n := startNode1(t)
	n.datapath.with(func() { n.datapath.fail = 3 })
	close(n.loaded)
	eventually(t, "the failure is a problem", func() bool { _, loop := n.loop.Trouble(); return loop != nil })
	eventually(t, "it goes with its cause", func() bool { _, loop := n.loop.Trouble(); return loop == nil })
}
