package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	typedv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"tendril.io/tendril/internal/store"
)

// LeaseName is the lease that the leader holds.
const LeaseName = "tendril-operator"

// What other controllers of a cluster use.
const (
	leaseDuration = 15 * time.Second // nobody takes a lease before it has not been renewed for so long
	renewDeadline = 10 * time.Second // who leads by the lease alone stops so long after it was last renewed
	retryPeriod   = 2 * time.Second  // between renewals, and between a follower's looks
	longestGap    = 5 * time.Second  // between two looks that show, together, that nobody has renewed the lease
)

// releaseTime bounds how long an end waits for the API server.
const releaseTime = 2 * time.Second

// Term is the time of one leader, from taking the lease to losing it.
type Term struct {
	Number uint64 // higher than any leader's before; the lease has it less one, as its transitions
	Before uint64 // of the leader before this one; 0: none is known
}

// Election is a replica's part in who leads.
//
// It is not client-go's elector, for two reasons. That one stops leading when the API server is away for ten seconds, and a leader that keeps a store
// of its own had better go on: nobody else can take the lease meanwhile, and agents tell stores of two leaders apart by the term. And there a
// replica that starts again under its old name goes on with the transitions that the lease has, so two terms would have one number.
type Election struct {
	Client    kubernetes.Interface
	Namespace string
	Replica   string // name by which the lease tells this replica from others
	// OwnStore: the leader writes a store that is its own, so it leads until another holds the lease. Else it stops before another can take it: two would
	// write one store.
	OwnStore bool
	Logger   *slog.Logger
}

// Lead waits for the lease and runs while it is held, again and again. It returns when run has ended by itself or the context ends; the lease is
// another's to take from then on.
func (e Election) Lead(ctx context.Context, run func(context.Context, Term) error) error {
	c := &candidate{Election: e, leases: e.Client.CoordinationV1().Leases(e.Namespace)}
	for {
		term, err := c.take(ctx)
		if err != nil {
			return nil // the context has ended
		}
		if err := c.lead(ctx, term, run); !errors.Is(err, errDeposed) {
			return err
		}
		e.Logger.Warn("this replica leads no more", "term", term.Number)
	}
}

// errDeposed says that another leads, or may.
var errDeposed = errors.New("the lease is another's")

// candidate is what a replica knows of the lease. It is for one goroutine.
type candidate struct {
	Election
	leases typedv1.LeaseInterface
	lease  *coordinationv1.Lease // as last seen; nil: never
	// When it was first seen to say so. Only this clock counts: the holder's need not be right.
	seen time.Time
	read time.Time // when a look at it last had an answer
	held time.Time // when this replica last asked for it, and was given it
	// The highest number of transitions that was ever seen: a lease that was deleted has none.
	highest int32
}

// lead runs while the lease is held, and then until run has ended.
func (c *candidate) lead(parent context.Context, term Term, run func(context.Context, Term) error) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	var failure error
	var running sync.WaitGroup
	running.Go(func() {
		defer cancel()
		failure = run(ctx, term)
	})
	deposed := c.hold(ctx)
	cancel()
	running.Wait()
	if deposed && parent.Err() == nil { // run had not ended by itself: how it ended now is no matter
		return errDeposed
	}
	if !deposed {
		c.release()
	}
	return failure
}

// take returns once the lease is held, or with an error once the context has ended.
func (c *candidate) take(ctx context.Context) (Term, error) {
	for {
		term, err := c.try(ctx)
		switch {
		case ctx.Err() != nil:
			return Term{}, ctx.Err()
		case err == nil:
			return term, nil
		case !errors.Is(err, errDeposed):
			c.Logger.Warn("the lease cannot be taken; trying again", "error", err)
		}
		if err := pause(ctx, store.Interval(retryPeriod, 0)); err != nil {
			return Term{}, err
		}
	}
}

// try takes the lease if nobody has it, if its holder has not renewed it for as long as it lasts, or if it is this replica's from before.
func (c *candidate) try(ctx context.Context) (Term, error) {
	ctx, cancel := context.WithTimeout(ctx, renewDeadline)
	defer cancel()
	lease, err := c.leases.Get(ctx, LeaseName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return c.create(ctx)
	}
	if err != nil {
		return Term{}, fmt.Errorf("read lease: %w", err)
	}
	c.see(lease)
	// While nobody answered here, the holder may have had no answer either: it has its time again.
	if time.Since(c.read) > longestGap {
		c.seen = time.Now()
	}
	c.read = time.Now()
	if holder := holderOf(lease); holder != "" && holder != c.Replica && time.Since(c.seen) < c.lasts(lease) {
		return Term{}, errDeposed
	}
	taken := lease.DeepCopy()
	c.claim(taken)
	term := Term{Number: uint64(transitionsOf(taken)) + 1, Before: uint64(transitionsOf(lease)) + 1}
	return term, c.write(ctx, taken, c.update)
}

// create makes the lease where there is none.
func (c *candidate) create(ctx context.Context) (Term, error) {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: LeaseName}}
	c.claim(lease)
	return Term{Number: uint64(transitionsOf(lease)) + 1}, c.write(ctx, lease, c.make)
}

// transitionsBegan is from where the seconds are counted that a number of transitions is at least: they fit into it until 2093.
var transitionsBegan = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// claim makes the lease this replica's, with a number of transitions that it never had. Those of a lease that was deleted, or that came back with an old
// backup, would lead back to terms that agents know to be over; so they are the time as well, where that is more.
func (c *candidate) claim(lease *coordinationv1.Lease) {
	now := time.Now()
	clock := int32(min(max(int64(now.Sub(transitionsBegan)/time.Second), 0), math.MaxInt32-1<<20))
	transitions := max(transitionsOf(lease)+1, c.highest+1, clock)
	lease.Spec.LeaseTransitions = &transitions
	taken := metav1.NewMicroTime(now)
	lease.Spec.AcquireTime = &taken
	c.renewed(lease, c.Replica, leaseDuration)
}

// renewed fills in who holds the lease from now on, and for how long.
func (c *candidate) renewed(lease *coordinationv1.Lease, holder string, lasts time.Duration) {
	now := metav1.NewMicroTime(time.Now())
	seconds := int32(max((lasts+time.Second-1)/time.Second, 1)) // the API server wants one
	lease.Spec.HolderIdentity, lease.Spec.RenewTime, lease.Spec.LeaseDurationSeconds = &holder, &now, &seconds
}

// write sends the lease, which is this replica's once the server has taken it.
func (c *candidate) write(ctx context.Context, lease *coordinationv1.Lease, send func(context.Context, *coordinationv1.Lease) (*coordinationv1.Lease, error)) error {
	began := time.Now()
	written, err := send(ctx, lease)
	if err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	c.see(written)
	c.held = began
	return nil
}

// update is refused if somebody else has written meanwhile. Fields that this version does not know stay.
func (c *candidate) update(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	patch := marshal(map[string]any{"metadata": map[string]any{"resourceVersion": lease.ResourceVersion}, "spec": lease.Spec})
	return c.leases.Patch(ctx, LeaseName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
}

// make is refused if somebody else was faster.
func (c *candidate) make(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	return c.leases.Create(ctx, lease, metav1.CreateOptions{})
}

// see takes note of the lease as it is.
func (c *candidate) see(lease *coordinationv1.Lease) {
	if c.lease == nil || !equality.Semantic.DeepEqual(c.lease.Spec, lease.Spec) {
		c.seen = time.Now()
	}
	c.lease, c.highest = lease, max(c.highest, transitionsOf(lease))
}

// lasts is for how long the lease's holder may be silent.
func (c *candidate) lasts(lease *coordinationv1.Lease) time.Duration {
	if lease.Spec.LeaseDurationSeconds != nil {
		return time.Duration(*lease.Spec.LeaseDurationSeconds) * time.Second
	}
	return leaseDuration
}

// hold renews the lease until the context ends, or until another has it, or may have: then it says so.
func (c *candidate) hold(ctx context.Context) (deposed bool) {
	for {
		wait := store.Interval(retryPeriod, 0)
		end := time.Now().Add(wait + renewDeadline) // who does not answer by then is asked anew
		if !c.OwnStore {
			end = c.held.Add(renewDeadline)
			wait = min(wait, time.Until(end))
		}
		if pause(ctx, wait) != nil {
			return false
		}
		err := c.renew(ctx, end)
		switch {
		case ctx.Err() != nil:
			return false
		case errors.Is(err, errDeposed):
			return true
		case err != nil:
			c.Logger.Warn("the lease is not renewed; trying again", "error", err, "last", time.Since(c.held).Round(time.Second))
		}
		if !c.OwnStore && time.Since(c.held) >= renewDeadline {
			return true
		}
	}
}

// renew says that this replica still leads.
func (c *candidate) renew(ctx context.Context, end time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	mine := c.lease.DeepCopy()
	c.renewed(mine, c.Replica, leaseDuration)
	err := c.write(ctx, mine, c.update)
	if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return err
	}
	// Somebody has written it or deleted it; or this replica has, and was not told.
	now, err := c.leases.Get(ctx, LeaseName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		mine.ObjectMeta = metav1.ObjectMeta{Namespace: c.Namespace, Name: LeaseName}
		return c.write(ctx, mine, c.make)
	case err != nil:
		return fmt.Errorf("read lease: %w", err)
	case holderOf(now) != c.Replica || transitionsOf(now) != transitionsOf(mine):
		c.see(now)
		return errDeposed
	}
	mine.ObjectMeta = now.ObjectMeta
	return c.write(ctx, mine, c.update)
}

// release lets another replica lead at once, as nothing runs here any more. If it fails, the lease ends by itself.
func (c *candidate) release() {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	lease := c.lease.DeepCopy()
	c.renewed(lease, "", 0)
	if err := c.write(ctx, lease, c.update); err != nil {
		c.Logger.Info("the lease is not given back; it ends by itself", "error", err)
	}
}

func holderOf(lease *coordinationv1.Lease) string {
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

func transitionsOf(lease *coordinationv1.Lease) int32 {
	if lease.Spec.LeaseTransitions == nil {
		return 0
	}
	return *lease.Spec.LeaseTransitions
}
