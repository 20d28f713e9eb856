package node

import (
	"maps"
	"slices"
	"time"

	"tendril.io/tendril/internal/policy"
)

// trial decides which version of each host policy the node enforces. A change of what judges the node is first tried: if
// the store does not answer over a new connection within the period, what was confirmed before is put back, and the
// version that cut the node off stays undone until its object changes. Where the store was away already when the
// change came, nobody can say whose fault that is: the change stays, unconfirmed, until the store answers.
//
// It does no I/O and reads no clock.
type trial struct {
	period    time.Duration
	wanted    map[policy.Key]hostPolicy // as the store has it; only policies that select nodes
	confirmed map[policy.Key]hostPolicy // what judged the node when the store was last reached
	trying    map[policy.Key]string     // in force and not confirmed: the version's digest, empty if the policy has gone
	undone    map[policy.Key]string     // rolled back, in the same form
	blames    bool                      // the store was reachable when the change came
	since     time.Time                 // in force since; zero: not yet
}

// hostPolicy is one version of a policy, as far as it selects nodes.
type hostPolicy struct {
	Digest string
	Specs  []policy.Spec
	// As written, for a later start to read again.
	Object   []byte
	Source   string
	Revision uint64
}

func newTrial(period time.Duration) *trial {
	return &trial{
		period: period, wanted: map[policy.Key]hostPolicy{}, confirmed: map[policy.Key]hostPolicy{},
		trying: map[policy.Key]string{}, undone: map[policy.Key]string{},
	}
}

// set notes what the store has of a policy; the zero version is none. A version that is another than the one that was
// rolled back deserves a trial of its own.
func (t *trial) set(key policy.Key, version hostPolicy) {
	if undone, was := t.undone[key]; was && undone != version.Digest {
		delete(t.undone, key)
	}
	if len(version.Specs) == 0 {
		delete(t.wanted, key)
		return
	}
	t.wanted[key] = version
}

// version is what the node should enforce of a policy; the zero version is nothing.
func (t *trial) version(key policy.Key) hostPolicy {
	wanted := t.wanted[key]
	if undone, was := t.undone[key]; was && undone == wanted.Digest {
		return t.confirmed[key]
	}
	return wanted
}

// prepare compares what is about to judge the node with what was confirmed. It reports whether a trial has to begin, or
// to end without a verdict, and so must be noted before it does. reachable: the store answers now.
func (t *trial) prepare(judging []policy.Key, reachable bool) bool {
	trying := map[policy.Key]string{}
	for _, key := range judging {
		if version := t.version(key); version.Digest != t.confirmed[key].Digest {
			trying[key] = version.Digest
		}
	}
	for key := range t.confirmed {
		if !slices.Contains(judging, key) {
			trying[key] = ""
		}
	}
	if maps.Equal(trying, t.trying) {
		return false
	}
	t.trying, t.blames, t.since = trying, reachable, time.Time{}
	return true
}

// begin says that what was prepared is in force.
func (t *trial) begin(now time.Time) {
	if len(t.trying) > 0 && t.since.IsZero() {
		t.since = now
	}
}

// running says whether something in force waits to be confirmed.
func (t *trial) running() bool { return len(t.trying) > 0 && !t.since.IsZero() }

// deadline is when the change in force is rolled back; false: never.
func (t *trial) deadline() (time.Time, bool) { return t.since.Add(t.period), t.running() && t.blames }

// answered says that store and Publish service have answered to what was asked at begun. It reports whether that
// confirms anything.
func (t *trial) answered(begun time.Time) bool {
	if !t.running() || begun.Before(t.since) {
		return false
	}
	for key, digest := range t.trying {
		if digest == "" {
			delete(t.confirmed, key)
		} else {
			t.confirmed[key] = t.version(key)
		}
	}
	t.trying = map[policy.Key]string{}
	return true
}

// expire rolls back what has not been confirmed in time and returns the policies to look at again.
func (t *trial) expire(now time.Time) []policy.Key {
	if deadline, ok := t.deadline(); !ok || now.Before(deadline) {
		return nil
	}
	return t.undo()
}

// undo rolls back what is being tried.
func (t *trial) undo() []policy.Key {
	keys := slices.SortedFunc(maps.Keys(t.trying), policy.Key.Compare)
	maps.Copy(t.undone, t.trying)
	t.trying = map[policy.Key]string{}
	return keys
}

// The states that a trial gives to a policy.
const (
	stateTrial       = "trial"
	stateUnconfirmed = "unconfirmed"
	stateRolledBack  = "rolled back"
)

// state is what the trial makes of a policy; empty: nothing.
func (t *trial) state(key policy.Key) string {
	if undone, was := t.undone[key]; was && undone == t.wanted[key].Digest {
		return stateRolledBack
	}
	switch _, trying := t.trying[key]; {
	case trying && t.blames:
		return stateTrial
	case trying:
		return stateUnconfirmed
	}
	return ""
}
