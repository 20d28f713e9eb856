package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
)

// settled says which loops have brought the kernel to where the tables are, once each.
type settled struct {
	policies, services chan struct{}
}

func newSettled() *settled {
	return &settled{make(chan struct{}), make(chan struct{})}
}

func (s *settled) policy()  { close(s.policies) }
func (s *settled) service() { close(s.services) }

// pruner removes, once, what an earlier agent left in the kernel and nobody wants any more. It waits until the tables
// are complete and both loops have taken them to the kernel: nothing is removed before its replacement is there.
//
// It is the only place that holds both loops' locks, the policy loop's first; whoever wants both must keep that order.
type pruner struct {
	policies *policyLoop
	services *serviceLoop
	kernel   pruneTarget
	others   func() datapath.Wanted // what neither loop knows of: nodes, endpoints, uplinks
	release  func() int             // gives back the numbers that nobody has claimed, and counts them
	gone     func()                 // told that backends may have gone while no agent ran
	ready    []<-chan struct{}
	log      *slog.Logger
}

// pruneTarget is the kernel's side of pruning.
type pruneTarget interface {
	Prune(ctx context.Context, want datapath.Wanted) (datapath.Pruned, error)
	Publish(ctx context.Context, delta *policy.Delta) error
	PublishServices(ctx context.Context, delta *service.Delta) error
}

// pruner puts together what the agent's pruning needs.
func (a *Agent) pruner(done *settled) *pruner {
	return &pruner{
		policies: a.policies, services: a.services, kernel: a.datapath, others: a.wantedRows,
		release: func() int { return a.datapath.Numbers().PruneUnclaimed() }, gone: a.resetter.everywhere,
		ready: []<-chan struct{}{a.store.Synced(), done.policies, done.services}, log: a.log,
	}
}

// Bounds of the pause between attempts. Leftovers do no harm while they wait, and an agent that ended for them would.
const (
	pruneBackoffMin = time.Second
	pruneBackoffMax = time.Minute
)

// Run prunes as soon as it may, tries again until that has worked, and ends.
func (p *pruner) Run(ctx context.Context) error {
	for _, ready := range p.ready {
		select {
		case <-ready:
		case <-ctx.Done():
			return nil
		}
	}
	for backoff := pruneBackoffMin; ; backoff = min(2*backoff, pruneBackoffMax) {
		err := p.prune(ctx)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		p.log.Error("prune the datapath; will try again", "error", err)
		if !sleep(ctx, jittered(backoff)) {
			return nil
		}
	}
}

// prune is one attempt. Every step may be repeated.
func (p *pruner) prune(ctx context.Context) error {
	p.policies.mu.Lock()
	defer p.policies.mu.Unlock()
	p.services.mu.Lock()
	defer p.services.mu.Unlock()
	// The tables may have become complete between two rounds of a loop: take what came by then.
	if err := errors.Join(p.policies.catchUp(ctx), p.services.catchUp(ctx)); err != nil {
		return fmt.Errorf("before pruning: %w", err)
	}
	removed, err := p.kernel.Prune(ctx, p.wanted())
	if err != nil {
		return err
	}
	if p.policies.egress != nil {
		if err := p.policies.egress.prune(); err != nil {
			return fmt.Errorf("prune egress gateways: %w", err)
		}
	}
	released := p.release()
	// Released numbers become free with the publication that follows.
	if err := errors.Join(p.kernel.Publish(ctx, &policy.Delta{}), p.kernel.PublishServices(ctx, &service.Delta{})); err != nil {
		return fmt.Errorf("free what nobody claimed: %w", err)
	}
	p.gone()
	p.policies.written = nil // from now on the loop itself removes what goes
	p.log.Info("kernel holds what the tables say and nothing else", "removed", removed, "numbers_released", released)
	return nil
}

// wanted is all that the kernel should hold. Both loops stand still meanwhile.
func (p *pruner) wanted() datapath.Wanted {
	want := p.others()
	want.Addresses, want.Frontends = p.policies.written, make(map[service.FrontendKey]bool)
	want.Guards = make(map[service.GuardRow]bool)
	published := p.services.brain.Snapshot()
	for _, row := range published.Frontends {
		want.Frontends[row.FrontendKey] = true
	}
	for _, row := range published.Guards {
		want.Guards[row] = true
	}
	return want
}

// wantedRows is what the kernel should hold of what is neither policy nor service.
func (a *Agent) wantedRows() datapath.Wanted {
	want := datapath.Wanted{
		Nodes: a.numbering.all(), Endpoints: map[uint32]bool{uint32(bpf.EndpointHost): true}, Uplinks: map[uint32]bool{a.uplink.ifindex: true},
	}
	for row := range a.tables.Endpoints.All(a.tables.DB.ReadTxn()) {
		want.Endpoints[row.ID] = true
	}
	return want
}
