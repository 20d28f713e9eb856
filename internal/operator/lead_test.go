package operator

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	fakekube "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// elections are an API server that has one lease, with revisions as the real one, and the replicas before it.
type elections struct {
	t        *testing.T
	ownStore bool

	mu       sync.Mutex
	lease    *coordinationv1.Lease
	revision int
	away     map[string]bool   // by replica: its requests fail
	lost     map[string]bool   // by replica: its next write arrives, and the answer does not
	leads    map[string]uint64 // by replica: the term in which it leads now; 0: it does not
	terms    []Term            // that were led, in the order of their beginnings
}

// newElections is for within a bubble of synctest: all times are as in real life, and pass at once.
func newElections(t *testing.T, ownStore bool) *elections {
	return &elections{t: t, ownStore: ownStore, away: map[string]bool{}, lost: map[string]bool{}, leads: map[string]uint64{}}
}

// client is a replica's way to the server.
func (e *elections) client(replica string) *fakekube.Clientset {
	client := fakekube.NewClientset()
	client.PrependReactor("*", "leases", func(action clienttesting.Action) (bool, runtime.Object, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.away[replica] {
			return true, nil, errAway
		}
		lease, err := e.answer(action)
		if action.GetVerb() != "get" && e.lost[replica] {
			e.lost[replica] = false
			return true, nil, errAway
		}
		return true, lease, err
	})
	return client
}

func (e *elections) answer(action clienttesting.Action) (runtime.Object, error) {
	resource := schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}
	var sent *coordinationv1.Lease
	switch writing := action.(type) {
	case clienttesting.CreateAction:
		sent = writing.GetObject().(*coordinationv1.Lease)
	case clienttesting.PatchAction:
		sent = e.patched(writing.GetPatch())
	}
	switch verb := action.GetVerb(); {
	case verb == "create" && e.lease != nil:
		return nil, apierrors.NewAlreadyExists(resource, LeaseName)
	case verb != "create" && e.lease == nil:
		return nil, apierrors.NewNotFound(resource, LeaseName)
	case verb == "update":
		e.t.Error("the whole lease is put in the place of what is there")
	case verb == "patch" && sent.ResourceVersion != e.lease.ResourceVersion:
		return nil, apierrors.NewConflict(resource, LeaseName, errors.New("it has changed"))
	case verb == "create":
		sent.UID = types.UID(strconv.Itoa(e.revision + 1))
	}
	if sent != nil {
		e.revision++
		e.lease = sent.DeepCopy()
		e.lease.ResourceVersion = strconv.Itoa(e.revision)
	}
	return e.lease.DeepCopy(), nil
}

// patched is the lease with a merge patch, whose revision it has.
func (e *elections) patched(patch []byte) *coordinationv1.Lease {
	if e.lease == nil {
		return nil
	}
	lease := e.lease.DeepCopy()
	lease.ResourceVersion = ""
	if err := json.Unmarshal(patch, lease); err != nil {
		e.t.Error(err)
	}
	return lease
}

// begin starts a replica, which leads when it may; it ends with the function returned.
func (e *elections) begin(replica string) (end func()) {
	ctx, cancel := context.WithCancel(e.t.Context())
	election := Election{Client: e.client(replica), Namespace: "kube-system", Replica: replica, OwnStore: e.ownStore, Logger: slog.New(slog.DiscardHandler)}
	done := make(chan error, 1)
	go func() {
		done <- election.Lead(ctx, func(ctx context.Context, term Term) error {
			e.note(replica, term)
			<-ctx.Done()
			time.Sleep(100 * time.Millisecond) // it ends what it is at
			e.mu.Lock()
			defer e.mu.Unlock()
			e.leads[replica] = 0
			return nil
		})
	}()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			e.t.Errorf("%s: %v", replica, err)
		}
	})
}

// note takes down that a replica leads, and wants no term twice and none lower than one before.
func (e *elections) note(replica string, term Term) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, other := range e.terms {
		if other.Number >= term.Number {
			e.t.Errorf("%s leads in term %d, and term %d was before", replica, term.Number, other.Number)
		}
	}
	e.leads[replica] = term.Number
	e.terms = append(e.terms, term)
}

// cut takes the server away from a replica, or brings it back.
func (e *elections) cut(replica string, away bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.away[replica] = away
}

// after lets time pass, and wants those replicas to lead and no others.
func (e *elections) after(d time.Duration, what string, want ...string) {
	e.t.Helper()
	time.Sleep(d)
	e.mu.Lock()
	defer e.mu.Unlock()
	wanted := map[string]bool{}
	for _, replica := range want {
		wanted[replica] = true
	}
	for replica := range e.leads {
		if got := e.leads[replica] != 0; got != wanted[replica] {
			e.t.Errorf("%s: %s leads: got %t, want %t", what, replica, got, wanted[replica])
		}
		delete(wanted, replica)
	}
	for replica := range wanted {
		e.t.Errorf("%s: %s has never led", what, replica)
	}
}

// bothWays runs a test for leaders with stores of their own, and for those before one outside.
func bothWays(t *testing.T, test func(e *elections)) {
	for name, ownStore := range map[string]bool{"own store": true, "store outside": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(newElections(t, ownStore)) })
		})
	}
}

func TestALeaderThatEndsInOrderIsFollowedByAnotherAtOnce(t *testing.T) {
	bothWays(t, func(e *elections) {
		end1 := e.begin("r1")
		e.after(time.Second, "alone", "r1")
		defer e.begin("r2")()
		e.after(time.Minute, "beside another", "r1")
		go end1()
		e.after(50*time.Millisecond, "while r1 ends what it is at", "r1")
		if e.lease.Spec.HolderIdentity == nil || *e.lease.Spec.HolderIdentity != "r1" {
			e.t.Errorf("r1 has not ended, and gave the lease back")
		}
		e.after(3*time.Second, "after its end", "r2")
		if got := e.terms[1].Before; got != e.terms[0].Number {
			e.t.Errorf("the term before the second: got %d, want %d", got, e.terms[0].Number)
		}
		end1()
	})
}

func TestALeaderThatIsKilledIsFollowedWhenItsLeaseHasEnded(t *testing.T) {
	bothWays(t, func(e *elections) {
		end1 := e.begin("r1")
		e.after(time.Second, "alone", "r1")
		defer e.begin("r2")()
		e.after(time.Minute, "beside another", "r1")
		e.cut("r1", true)
		end1() // it cannot give back the lease
		e.after(leaseDuration-3*time.Second, "while the lease lasts")
		e.after(9*time.Second, "when it has ended", "r2") // two looks more than the lease, of 2.5 s at most
	})
}

func TestALeaderThatStartsAgainUnderItsNameHasAnotherTerm(t *testing.T) {
	bothWays(t, func(e *elections) {
		end := e.begin("r1")
		e.after(time.Second, "at first", "r1")
		e.cut("r1", true)
		end()
		e.cut("r1", false)
		defer e.begin("r1")()
		e.after(time.Second, "again, without waiting for its own lease", "r1")
		if len(e.terms) != 2 || e.terms[1].Before != e.terms[0].Number {
			e.t.Errorf("terms: %v, want two, and the second to follow on the first", e.terms)
		}
	})
}

func TestALeaderWithItsOwnStoreGoesOnWhileTheServerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElections(t, true)
		defer e.begin("r1")()
		e.after(time.Second, "alone", "r1")
		defer e.begin("r2")()
		for _, replica := range []string{"r1", "r2"} {
			e.cut(replica, true)
		}
		e.after(10*time.Minute, "without a server", "r1")
		e.cut("r1", false)
		e.after(5*time.Second, "the server is back for r1", "r1")
		e.cut("r2", false)
		e.after(time.Minute, "the server is back for all", "r1")
		if len(e.terms) != 1 {
			e.t.Errorf("terms: %v, want one", e.terms)
		}
	})
}

// Who hears of the server first is no matter: the leader has had no chance to renew its lease, as long as the others have seen.
func TestALeaderKeepsALeaseThatNobodyCouldRenew(t *testing.T) {
	for _, absence := range []time.Duration{8 * time.Second, 16 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			e := newElections(t, true)
			defer e.begin("r1")()
			e.after(time.Second, "alone", "r1")
			defer e.begin("r2")()
			e.after(time.Minute, "beside another", "r1")
			e.cut("r1", true)
			e.cut("r2", true)
			e.after(absence, "without a server", "r1")
			e.cut("r2", false)
			e.after(4*time.Second, "the server is back for r2", "r1")
			e.cut("r1", false)
			e.after(time.Minute, "the server is back for all", "r1")
			if len(e.terms) != 1 {
				e.t.Errorf("away for %v: terms %v, want one", absence, e.terms)
			}
		})
	}
}

func TestALeaderBeforeAStoreOutsideStopsBeforeAnotherCanLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElections(t, false)
		defer e.begin("r1")()
		e.after(time.Second, "alone", "r1")
		defer e.begin("r2")()
		e.after(time.Minute, "beside another", "r1")
		e.cut("r1", true)
		e.after(renewDeadline-3*time.Second, "within the time to renew", "r1")
		e.after(3*time.Second+200*time.Millisecond, "when that has passed")
		e.after(11*time.Second, "when the lease has ended", "r2")
		e.cut("r1", false)
		e.after(time.Minute, "the server is back for r1", "r2")
	})
}

func TestALeaderStopsWhenItLearnsThatAnotherLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElections(t, true)
		defer e.begin("r1")()
		e.after(time.Second, "alone", "r1")
		end2 := e.begin("r2")
		e.after(time.Minute, "beside another", "r1")
		e.cut("r1", true)
		e.after(25*time.Second, "the server is away for r1 alone", "r1", "r2")
		e.cut("r1", false)
		e.after(5*time.Second, "it is back", "r2")
		end2()
		e.after(3*time.Second, "r2 has ended", "r1")
		if len(e.terms) != 3 || e.terms[2].Before != e.terms[1].Number {
			e.t.Errorf("terms: %v, want three", e.terms)
		}
	})
}

func TestALeaseThatWasDeletedLeadsToNoEarlierTerm(t *testing.T) {
	bothWays(t, func(e *elections) {
		end := e.begin("r1")
		e.after(time.Second, "alone", "r1")
		e.mu.Lock()
		e.lease = nil
		e.mu.Unlock()
		e.after(5*time.Second, "the lease is made again", "r1")
		if e.lease == nil || *e.lease.Spec.HolderIdentity != "r1" || uint64(*e.lease.Spec.LeaseTransitions)+1 != e.terms[0].Number {
			e.t.Errorf("the lease is %v, want that of r1 in the same term", e.lease)
		}
		defer e.begin("r2")()
		e.after(5*time.Second, "with another, that has seen it", "r1")
		e.cut("r1", true)
		end()
		e.mu.Lock()
		e.lease = nil
		e.mu.Unlock()
		e.after(3*time.Second, "deleted again", "r2") // note compares the terms
	})
}

func TestALeaseThatNobodyRemembersBeginsByTheClock(t *testing.T) {
	c := candidate{Election: Election{Replica: "r1"}}
	lease := &coordinationv1.Lease{}
	c.claim(lease)
	want := time.Since(transitionsBegan) / time.Second
	if got := time.Duration(*lease.Spec.LeaseTransitions); got < want-60 || got > want {
		t.Errorf("transitions: got %d, want %d", got, want)
	}
	far := int32(1 << 30)
	lease.Spec.LeaseTransitions = &far
	c.claim(lease)
	if got := *lease.Spec.LeaseTransitions; got != far+1 {
		t.Errorf("transitions after %d: got %d", far, got)
	}
}

func TestAWriteWhoseAnswerIsLostDeposesNobody(t *testing.T) {
	bothWays(t, func(e *elections) {
		defer e.begin("r1")()
		e.after(time.Second, "alone", "r1")
		e.mu.Lock()
		e.lost["r1"] = true
		e.mu.Unlock()
		e.after(time.Minute, "after a lost answer", "r1")
		if e.lost["r1"] || len(e.terms) != 1 {
			e.t.Errorf("terms: %v, want one; the answer is still to lose: %t", e.terms, e.lost["r1"])
		}
	})
}

func TestWhatEndsByItselfEndsTheLeaderAndGivesTheLeaseBack(t *testing.T) {
	bothWays(t, func(e *elections) {
		election := Election{Client: e.client("r1"), Namespace: "kube-system", Replica: "r1", OwnStore: e.ownStore, Logger: slog.New(slog.DiscardHandler)}
		err := election.Lead(e.t.Context(), func(context.Context, Term) error { return errAway })
		if !errors.Is(err, errAway) || *e.lease.Spec.HolderIdentity != "" {
			e.t.Errorf("got %v, and the lease is %q's", err, *e.lease.Spec.HolderIdentity)
		}
	})
}
