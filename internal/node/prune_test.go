package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"

	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/policy/policytest"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

// fakeKernel is the kernel as pruning sees it, failing so many times.
type fakeKernel struct {
	fakeDatapath
	log      []string
	failures int
	wanted   datapath.Wanted
}

func (f *fakeKernel) Prune(_ context.Context, want datapath.Wanted) (datapath.Pruned, error) {
	f.log, f.wanted = append(f.log, "prune"), want
	if f.failures > 0 {
		f.failures--
		return datapath.Pruned{}, errors.New("map addresses: interrupted")
	}
	return datapath.Pruned{}, nil
}

func (f *fakeKernel) PublishServices(context.Context, *service.Delta) error {
	f.log = append(f.log, "publish services")
	return nil
}

// testPruner is over two loops whose tables hold this node.
func testPruner(t *testing.T, kernel *fakeKernel) *pruner {
	t.Helper()
	facts := testFacts(t, Config{})
	numbers := policytest.NewNumbers()
	kernel.kernel, kernel.nodes = policytest.NewKernel(), map[string]*table.Node{}
	log := slog.New(slog.DiscardHandler)
	policies := newPolicyLoop(facts.tables, facts, policy.New(policy.Config{}, numbers), kernel, kernel, log)
	policies.setSelf(&table.Node{Name: "node1", Addresses: addrs("172.30.0.1")})
	brain, err := service.New(service.Config{NodeName: "node1"}, numbers)
	if err != nil {
		t.Fatal(err)
	}
	return &pruner{
		policies: policies, kernel: kernel, log: log, gone: func() {},
		services: &serviceLoop{tables: facts.tables, publisher: kernel, brain: brain, gone: func([]uint32) {}, log: log},
		others:   func() datapath.Wanted { return datapath.Wanted{Nodes: map[uint32]bool{1: true}} },
		release:  func() int { kernel.log = append(kernel.log, "release"); return 0 },
	}
}

func TestPruningWaitsForEveryPartAndIsTriedUntilItWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kernel := &fakeKernel{failures: 3}
		p := testPruner(t, kernel)
		ready := []chan struct{}{make(chan struct{}), make(chan struct{}), make(chan struct{})}
		for _, each := range ready {
			p.ready = append(p.ready, each)
		}
		done := make(chan error, 1)
		go func() { done <- p.Run(t.Context()) }()
		for _, each := range ready {
			synctest.Wait()
			if len(kernel.log) > 0 {
				t.Fatal("pruned before every part was ready: a replacement may not be there yet")
			}
			close(each)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(kernel.log) != 6 || kernel.log[3] != "prune" || kernel.log[4] != "release" {
			t.Errorf("steps %v: want three prunes that fail, one that works, then numbers given back", kernel.log)
		}
		for _, want := range []string{"172.30.0.1/32", "0.0.0.0/0", "::/0"} {
			if !kernel.wanted.Addresses[netip.MustParsePrefix(want)] {
				t.Errorf("the last attempt wants %v, want %s among them as in the first", kernel.wanted.Addresses, want)
			}
		}
		if p.policies.written != nil {
			t.Error("what was written is still noted, though nothing will be pruned again")
		}
	})
}

func TestAnAgentThatEndsWhilePruningFailsEndsCleanly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kernel := &fakeKernel{failures: 1 << 30}
		p := testPruner(t, kernel)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		synctest.Wait()
		stop()
		if err := <-done; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}
