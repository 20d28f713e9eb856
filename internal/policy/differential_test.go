package policy_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
)

// failer is what rapid's tests and ordinary ones have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// node is an engine with the kernel's tables that it feeds.
type node struct {
	engine  *policy.Engine
	numbers *policytest.Numbers
	kernel  *policytest.Kernel
	told    *policytest.Facts
}

func newNode() *node {
	n := &node{numbers: policytest.NewNumbers(), kernel: policytest.NewKernel(), told: policytest.NewFacts()}
	n.engine = policy.New(policy.Config{}, n.numbers)
	return n
}

// flush publishes one delta.
func (n *node) flush(t failer, after func(string)) policy.Delta {
	t.Helper()
	delta, err := n.engine.Flush()
	if err != nil {
		t.Fatalf("flush: %v", err)
	}
	if err := n.kernel.Apply(delta, after); err != nil {
		t.Fatalf("apply: %v", err)
	}
	n.kernel.Forget(n.told)
	n.numbers.Complete()
	return delta
}

// quiet flushes until nothing is left to tidy up.
func (n *node) quiet(t failer) {
	t.Helper()
	for range 8 {
		if !n.engine.Pending() {
			return
		}
		n.flush(t, nil)
	}
	t.Fatalf("the engine still has something to do after 8 flushes")
}

// judge is the compiled form's answer, in the reference's words.
func (n *node) judge(t failer, p policytest.Packet) policytest.Answer {
	t.Helper()
	v, err := n.kernel.Judge(p.Endpoint, p.Direction, p.Peer, p.Protocol, p.Port)
	if err != nil {
		t.Fatalf("judge %+v: %v", p, err)
	}
	return n.answer(t, v)
}

// judgeStaged is its answer with the staged policies.
func (n *node) judgeStaged(t failer, p policytest.Packet) (policytest.Answer, bool) {
	t.Helper()
	v, asked, err := n.kernel.JudgeStaged(p.Endpoint, p.Direction, p.Peer, p.Protocol, p.Port)
	if err != nil {
		t.Fatalf("judge %+v, staged: %v", p, err)
	}
	if !asked {
		return policytest.Answer{}, false
	}
	return n.answer(t, v), true
}

func (n *node) answer(t failer, v bpf.Verdict) policytest.Answer {
	info, ok := n.engine.Rule(v.Rule)
	if !ok {
		t.Fatalf("verdict by rule %d, which nobody knows", v.Rule)
	}
	a := policytest.Answer{Action: v.Action.String(), Key: info.Key, Place: info.Place, ProxyPort: uint16(v.Argument)}
	if info.Key == (policy.Key{}) {
		a.Builtin = info.Name
	}
	return a
}

// agree compares compiled form and reference on every packet worth asking about.
func (n *node) agree(t failer) {
	t.Helper()
	for _, p := range n.told.Packets() {
		if got, want := n.judge(t, p), n.told.Judge(p); got != want {
			t.Fatalf("packet %+v\ncompiled  %+v\nreference %+v", p, got, want)
		}
		got, asked := n.judgeStaged(t, p)
		if want, staged := n.told.JudgeStaged(p); asked != staged || got != want {
			t.Fatalf("packet %+v, staged\ncompiled  %+v, %v\nreference %+v, %v", p, got, asked, want, staged)
		}
	}
}

// table prints what the kernel's tables mean, without the numbers that they happen to use.
func (n *node) table() string {
	selectors := map[uint32]string{}
	for _, s := range n.engine.Selectors() {
		selectors[s.Bit] = s.Text
	}
	var out []string
	for prefix, row := range n.kernel.Rows {
		var bits []string
		for word, set := range n.kernel.Classes[n.kernel.Peers[row.Peer]] {
			for bit := range 64 {
				if set>>bit&1 == 1 {
					bits = append(bits, selectors[uint32(64*word+bit)])
				}
			}
		}
		slices.Sort(bits)
		out = append(out, fmt.Sprintf("%s node=%d endpoint=%d flags=%d: %s", prefix, row.Node, row.Endpoint, row.Flags, strings.Join(bits, " | ")))
	}
	for _, p := range n.engine.Programs() {
		out = append(out, fmt.Sprintf("%s of %s: %d endpoints, %d cells, %d rules, %s %v",
			p.Direction, p.Workload, p.Subjects, p.CellCount, p.Rules, p.Default, p.Isolators))
	}
	for _, c := range n.engine.Classes() {
		var bits []string
		for _, bit := range c.Selectors {
			bits = append(bits, selectors[bit])
		}
		slices.Sort(bits)
		out = append(out, fmt.Sprintf("class of %d peers: %s", c.Peers, strings.Join(bits, " | ")))
	}
	out = append(out, slices.Collect(maps.Values(selectors))...)
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// The compiled form says what the reference says, after every edit.
func TestCompiledFormAgreesWithReference(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode()
		n.told.Seed(rt, n.engine)
		n.flush(rt, nil)
		n.agree(rt)
		for range rapid.IntRange(0, 4).Draw(rt, "edits") {
			n.told.Edit(rt, n.engine)
			n.flush(rt, nil)
			n.agree(rt)
		}
	})
}

// The same facts give the same tables, up to numbers, in whatever order and portions they come.
func TestTablesDoNotDependOnTheWayThatLedToThem(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode()
		n.told.Seed(rt, n.engine)
		for range rapid.IntRange(1, 20).Draw(rt, "edits") {
			n.told.Edit(rt, n.engine)
			if rapid.Bool().Draw(rt, "flush") {
				n.flush(rt, nil)
			}
		}
		n.quiet(rt)
		scratch := newNode()
		if err := n.told.Tell(scratch.engine); err != nil {
			rt.Fatal(err)
		}
		scratch.quiet(rt)
		if diff := cmp.Diff(scratch.table(), n.table()); diff != "" {
			rt.Fatalf("from scratch (-) and step by step (+) differ:\n%s", diff)
		}
		for _, kind := range []policy.Kind{policy.KindPeer, policy.KindClass, policy.KindSelector, policy.KindProgram, policy.KindCells, policy.KindRule} {
			if got, want := n.numbers.Held(kind), scratch.numbers.Held(kind); got != want {
				rt.Fatalf("%d numbers of kind %d are held, want %d", got, kind, want)
			}
		}
	})
}

// An engine that starts again with the numbers of its predecessor gives nothing another number.
func TestRestartRenumbersNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode()
		n.told.Seed(rt, n.engine)
		for range rapid.IntRange(1, 10).Draw(rt, "edits") {
			n.told.Edit(rt, n.engine)
			n.flush(rt, nil)
		}
		n.quiet(rt)
		again := policy.New(policy.Config{}, n.numbers)
		if err := n.told.Tell(again); err != nil {
			rt.Fatal(err)
		}
		delta, err := again.Flush()
		if err != nil {
			rt.Fatal(err)
		}
		fresh := policytest.NewKernel()
		if err := fresh.Apply(delta, nil); err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(n.kernel.Rows, fresh.Rows, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			rt.Fatalf("addresses before (-) and after (+):\n%s", diff)
		}
		if diff := cmp.Diff(n.engine.Peers(), again.Peers()); diff != "" {
			rt.Fatalf("peers before (-) and after (+):\n%s", diff)
		}
		if diff := cmp.Diff(n.engine.Selectors(), again.Selectors()); diff != "" {
			rt.Fatalf("selectors before (-) and after (+):\n%s", diff)
		}
		if diff := cmp.Diff(n.engine.Programs(), again.Programs()); diff != "" {
			rt.Fatalf("programs before (-) and after (+):\n%s", diff)
		}
	})
}

// While the rows of a policy change are written one by one, every packet gets the old answer or the new one.
func TestNoPacketIsJudgedByAMixOfOldAndNew(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode()
		n.told.Seed(rt, n.engine)
		n.flush(rt, nil)
		packets := n.told.Packets()
		packets = rapid.SliceOfN(rapid.SampledFrom(packets), 20, 20).Draw(rt, "packets")
		for range rapid.IntRange(1, 3).Draw(rt, "changes") {
			old := map[policytest.Packet]policytest.Answer{}
			for _, p := range packets {
				old[p] = n.told.Judge(p)
			}
			if rapid.Bool().Draw(rt, "of a group") {
				n.told.EditGroup(rt, n.engine)
			} else {
				next := policytest.DrawPolicy(rt)
				if err := n.engine.SetPolicy(next); err != nil {
					rt.Fatal(err)
				}
				n.told.Policies[next.Key] = next
			}
			n.flush(rt, func(stage string) {
				for _, p := range packets {
					got := n.judge(rt, p)
					if want := n.told.Judge(p); got != old[p] && got != want {
						rt.Fatalf("after a row of %s, packet %+v\ngot %+v\nold %+v\nnew %+v", stage, p, got, old[p], want)
					}
				}
			})
		}
	})
}

// A flush that fails for want of room leaves everything as it was, whatever it was that ran out.
func TestFlushThatDoesNotFitChangesNothing(t *testing.T) {
	kinds := []policy.Kind{policy.KindPeer, policy.KindClass, policy.KindSelector, policy.KindProgram, policy.KindCells, policy.KindRule}
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode()
		n.told.Seed(rt, n.engine)
		n.flush(rt, nil)
		kind := rapid.SampledFrom(kinds).Draw(rt, "kind")
		n.numbers.Room[kind] = uint32(n.numbers.Held(kind) + rapid.IntRange(0, 3).Draw(rt, "room"))
		packets := n.told.Packets()
		before, answers := n.table(), n.answers(rt, packets)
		for range rapid.IntRange(1, 5).Draw(rt, "edits") {
			n.told.Edit(rt, n.engine)
		}
		delta, err := n.engine.Flush()
		if err != nil {
			if got := n.table(); got != before {
				rt.Fatalf("tables after a failed flush:\n%s", cmp.Diff(before, got))
			}
			if diff := cmp.Diff(answers, n.answers(rt, packets)); diff != "" {
				rt.Fatalf("answers after a failed flush:\n%s", diff)
			}
			delete(n.numbers.Room, kind)
			n.numbers.Complete()
			n.flush(rt, nil)
		} else if err := n.kernel.Apply(delta, nil); err != nil {
			rt.Fatal(err)
		}
		n.kernel.Forget(n.told)
		n.numbers.Complete()
		delete(n.numbers.Room, kind)
		n.engine.SetNamespace("blue", n.told.Namespaces["blue"])
		n.retryRefused(rt)
		n.agree(rt)
	})
}

// retryRefused gives refused policies once more, now that there is room, and expects them to be taken.
func (n *node) retryRefused(t failer) {
	for _, r := range n.engine.Refused() {
		if err := n.engine.SetPolicy(n.told.Policies[r.Key]); err != nil {
			t.Fatalf("%v", err)
		}
	}
	n.quiet(t)
	if refused := n.engine.Refused(); len(refused) > 0 {
		t.Fatalf("there is room again, and these are still refused: %v", refused)
	}
}

func (n *node) answers(t failer, packets []policytest.Packet) map[string]policytest.Answer {
	out := map[string]policytest.Answer{}
	for _, p := range packets {
		out[fmt.Sprint(p)] = n.judge(t, p)
	}
	return out
}
