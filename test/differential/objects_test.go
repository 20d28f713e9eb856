package differential_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"pgregory.net/rapid"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
	"tendril.io/tendril/internal/table"
	"tendril.io/tendril/test/differential/reference"
)

// pairs is how many pairs of a packet and a set of policies each test of this file asks about; `make fuzz` asks for more.
var pairs = flag.Int("pairs", 40_000, "pairs of a packet and a set of policies to compare")

// packetsPerTown of those that a town has, which are about a thousand, are drawn.
const packetsPerTown = 400

// everyTown draws towns, and others in which each turns, until enough pairs have been compared; and says how many there
// were and how fast.
func everyTown(t *testing.T, compare func(*rapid.T, ...*town)) {
	done, towns, start := 0, 0, time.Now()
	for done < *pairs && !t.Failed() {
		rapid.Check(t, func(rt *rapid.T) {
			if done >= *pairs {
				return
			}
			var chain []*town
			m := drawTown(rt)
			for i := range rapid.IntRange(1, 4).Draw(rt, "towns") {
				if i > 0 {
					m = m.change(rt)
				}
				n := newTown(rt, m)
				n.choose(rt)
				chain, done, towns = append(chain, n), done+len(n.packets), towns+1
			}
			compare(rt, chain...)
		})
	}
	took := time.Since(start)
	t.Logf("%d pairs of packets and policies in %d clusters agree, %.0f a second", done, towns, float64(done)/took.Seconds())
}

// choose draws which of all packets to ask about.
func (n *town) choose(t *rapid.T) {
	n.packets = n.questions()
	seed := rapid.Uint64().Draw(t, "packets")
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(n.packets), func(i, j int) { n.packets[i], n.packets[j] = n.packets[j], n.packets[i] })
	n.packets = n.packets[:min(packetsPerTown, len(n.packets))]
}

// same fails where one side of a packet is judged otherwise than the reference judges it.
func same(t *rapid.T, n *town, p reference.Packet, side string, got, want reference.Verdict) {
	if got != want {
		t.Fatalf("%s of %+v\ngot  %+v\nwant %+v\nin the cluster\n%s", side, p, got, want, n)
	}
}

// What objects say is what the compiled tables say: translation and compiler, without the kernel.
func TestObjectsMeanWhatIsCompiled(t *testing.T) {
	everyTown(t, func(rt *rapid.T, towns ...*town) {
		numbers := policytest.NewNumbers()
		engine, model := policy.New(policy.Config{ClassWords: 4}, numbers), policytest.NewKernel()
		var before *town
		for _, n := range towns {
			for _, node := range n.world.Nodes {
				if node.Name == n.world.Local {
					engine.SetSubject(host, policy.Workload{Reserved: identity.Host, Labels: label.SetOf(node.Labels)})
				}
			}
			n.tell(rt, engine, before)
			before = n
			delta := n.flush(rt, engine)
			if err := model.Apply(delta, nil); err != nil {
				rt.Fatal(err)
			}
			numbers.Complete()
			for _, p := range n.packets {
				n.compareModel(rt, engine, model, p)
			}
		}
	})
}

// flush takes the town in, whole.
func (n *town) flush(t *rapid.T, e *policy.Engine) policy.Delta {
	delta, err := e.Flush()
	if err != nil {
		t.Fatal(err)
	}
	if refused := e.Refused(); len(refused) > 0 {
		t.Fatalf("refused: %v\n%s", refused, n)
	}
	return delta
}

// compareModel asks the model of the kernel's tables and the reference what each side that is a pod of this node says.
func (n *town) compareModel(t *rapid.T, engine *policy.Engine, model *policytest.Kernel, p reference.Packet) {
	egress, ingress := n.world.Judge(p)
	for d, side := range []struct {
		self, other netip.Addr
		want        *reference.Verdict
	}{policy.Ingress: {p.Destination, p.Source, ingress}, policy.Egress: {p.Source, p.Destination, egress}} {
		endpoint := n.judge(side.self)
		if endpoint == 0 {
			continue
		}
		v, err := model.Judge(endpoint, policy.Direction(d), side.other, p.Protocol, p.Port)
		if err != nil {
			t.Fatal(err)
		}
		same(t, n, p, []string{"ingress", "egress"}[d], verdict(t, engine, v.Action, v.Rule), *side.want)
	}
}

// What objects say is what the kernel does: everything between a manifest and the shipped programs.
func TestObjectsMeanWhatTheKernelDoes(t *testing.T) {
	k := openKernel(t)
	var before *town
	everyTown(t, func(rt *rapid.T, towns ...*town) {
		for _, n := range towns {
			k.move(rt, n, before)
			before = n
			sent := map[eventKey]reference.Packet{}
			for _, p := range n.packets {
				if speaks(p) && n.owners[p.Source]+n.owners[p.Destination] != 0 {
					sent[k.throw(rt, n, p)] = p
				}
			}
			for key, p := range sent {
				e, ok := k.event(key)
				if !ok {
					rt.Fatalf("packet %+v: programs said nothing of it in\n%s", p, n)
				}
				k.compare(rt, n, p, e)
			}
		}
	})
}

// move makes the node a node of another town.
func (k *kernel) move(t *rapid.T, n, before *town) {
	if _, err := k.datapath.FlushFlows(nil); err != nil {
		t.Fatal(err)
	}
	n.tell(t, k.engine, before)
	for endpoint := range n.subjects {
		row := &table.Endpoint{ID: endpoint, Generation: generation, Namespace: "town", Pod: fmt.Sprint("local", endpoint), IfIndex: 1, MTU: 1500}
		for addr, owner := range n.owners {
			if owner == endpoint {
				row.Addrs = append(row.Addrs, addr)
			}
		}
		if err := k.datapath.WriteEndpoint(row); err != nil {
			t.Fatal(err)
		}
	}
	delta := n.flush(t, k.engine)
	if err := k.datapath.Publish(context.Background(), &delta); err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.events)
}

// speaks says whether a packet opens a flow: of ICMP only requests for an echo do.
func speaks(p reference.Packet) bool {
	return p.Protocol != ipproto.ICMP && p.Protocol != ipproto.ICMPv6 || p.Port == 8 || p.Port == 128
}

// throw sends a packet through the programs of the pod that it comes from, or of the one that it goes to; where both are of
// this node, now by the one and now by the other.
func (k *kernel) throw(t *rapid.T, n *town, p reference.Packet) eventKey {
	k.port = max(k.port+1, 1024)
	data, entry, endpoint := frame(p.Source, p.Destination, p.Protocol, k.port, p.Port), bpf.EntryFromPod, n.owners[p.Source]
	if to := n.owners[p.Destination]; endpoint == 0 || to != 0 && k.port%2 == 0 {
		entry, endpoint = bpf.EntryToPod, n.owners[p.Destination]
	}
	if _, err := k.stubs[entry][endpoint].Run(&ebpf.RunOptions{Data: data, DataOut: k.out}); err != nil {
		t.Fatalf("run %s for %+v: %v", entry, p, err)
	}
	return eventKey{p.Protocol, k.port}
}

// compare asks the reference what an event should say. Nobody's address is dropped before policy is asked; and a packet
// that may not leave does not arrive.
func (k *kernel) compare(t *rapid.T, n *town, p reference.Packet, e bpf.Event) {
	if n.isNobody(p.Source) || n.isNobody(p.Destination) {
		if e.Reason != bpf.DropUnknownSource && e.Reason != bpf.DropUnknownDestination {
			t.Fatalf("packet %+v: got %s, want it dropped as nobody's\n%s", p, e.Reason, n)
		}
		return
	}
	egress, ingress := n.world.Judge(p)
	allowed := true
	if egress != nil && n.owners[p.Source] != 0 {
		same(t, n, p, "egress", verdict(t, k.engine, e.EgressAction, e.EgressRule), *egress)
		allowed = egress.Allow
	}
	if allowed && n.owners[p.Destination] != 0 {
		same(t, n, p, "ingress", verdict(t, k.engine, e.IngressAction, e.IngressRule), *ingress)
		allowed = ingress.Allow
	}
	if dropped := e.Kind == bpf.EventDrop; dropped == allowed {
		t.Fatalf("packet %+v: event %s (%s), want allowed %v\n%s", p, e.Kind, e.Reason, allowed, n)
	}
}

// isNobody says whether an address is of the pods' ranges and no pod's.
func (n *town) isNobody(addr netip.Addr) bool {
	_, known := n.addresses[exact(addr)]
	for _, r := range n.world.PodRanges {
		if !known && r.Contains(addr) {
			return true
		}
	}
	return false
}
