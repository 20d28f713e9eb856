package operator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaseName is the lease that the leader holds.
const LeaseName = "tendril-operator"

// errDeposed ends a replica that lost its lease: it should start anew, as a follower.
var errDeposed = errors.New("leader election: the lease could not be renewed in time")

// Lead waits for the lease, runs while it is held, and returns when run has ended, the context ends or the lease is lost. Replica
// is the name by which the lease tells this one from others.
func Lead(ctx context.Context, client kubernetes.Interface, namespace, replica string, run func(context.Context) error) error {
	parent := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The elector does not wait for what it starts. If that has not begun by the time the elector ends, its context has ended
	// too and it does nothing.
	var running sync.WaitGroup
	var failure error
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: LeaseName},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: replica},
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock,
		Name: LeaseName,
		// What other controllers of a cluster use; the elector jitters RetryPeriod.
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				running.Add(1)
				defer running.Done()
				defer cancel()
				failure = run(ctx)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	elector.Run(ctx)
	deposed := ctx.Err() == nil
	cancel()
	running.Wait()
	if deposed && parent.Err() == nil {
		return errDeposed
	}
	release(lock, replica)
	return failure
}

// releaseTime bounds how long an end waits for the API server.
const releaseTime = 2 * time.Second

// release lets another replica lead at once, as nothing runs here any more; the elector would release before that. If it fails, the lease ends
// by itself.
func release(lock *resourcelock.LeaseLock, replica string) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	record, _, err := lock.Get(ctx)
	if err != nil || record.HolderIdentity != replica {
		return
	}
	record.HolderIdentity, record.LeaseDurationSeconds = "", 1 // the API server wants one
	_ = lock.Update(ctx, *record)
}
