package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/statedb"
	"github.com/google/renameio/v2"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/table"
)

// hostEndpoint is the node's own number among endpoints.
const hostEndpoint = uint32(bpf.EndpointHost)

// hostSide is the policy loop's view of the node itself as an endpoint.
type hostSide struct {
	stale     bool              // its labels are to be looked up again
	row       policy.SubjectRow // as the engine last gave it
	shown     bool              // the kernel was told what the row says
	published policy.SubjectRow // the row that the kernel was told
	note      string            // file that trials are noted in; empty: nowhere
	reachable func() bool       // whether the store answers now
	tried     chan struct{}     // a trial has begun
}

func (h *hostSide) isReachable() bool { return h.reachable != nil && h.reachable() }

// nodeLabels are what policies select a node by.
func (f *facts) nodeLabels(txn statedb.ReadTxn, node string) map[string]string {
	row, _, ok := f.tables.NodeLabels.Get(txn, table.NodeLabelsByNode(node))
	if !ok {
		return nil
	}
	return row.Labels
}

// stageHost stages the node itself, which is a subject from the first round on.
func (l *policyLoop) stageHost(txn statedb.ReadTxn) {
	if !l.host.stale {
		return
	}
	l.host.stale = false
	l.engine.SetSubject(hostEndpoint, policy.Workload{
		Reserved: identity.Host, Labels: label.SetOf(l.facts.nodeLabels(txn, l.facts.self)),
	})
}

// narrowHost leaves out of the node's row the programs of directions in which no policy has a say: the datapath then does
// not judge them at all, and without any program makes no flow of the node's traffic.
func (l *policyLoop) narrowHost(delta *policy.Delta) {
	delta.Subjects = slices.DeleteFunc(delta.Subjects, func(row policy.SubjectRow) bool {
		if row.Endpoint == hostEndpoint {
			l.host.row = row
		}
		return row.Endpoint == hostEndpoint
	})
	row, judged := l.host.row, l.engine.Judged(hostEndpoint)
	row.Endpoint = hostEndpoint
	if !judged[policy.Ingress] {
		row.Ingress = 0
	}
	if !judged[policy.Egress] {
		row.Egress = 0
	}
	if l.host.shown && row == l.host.published {
		return
	}
	l.host.shown, l.host.published = true, row
	delta.Subjects = append(delta.Subjects, row) // the highest number: rows stay in order
	delta.Changed = true
}

// withTrial replaces the specs of a policy that select nodes by those that the node is to enforce.
func (l *policyLoop) withTrial(parsed policy.Policy, row *table.Policy) policy.Policy {
	var version hostPolicy
	var others []policy.Spec
	for _, spec := range parsed.Specs {
		if parsed.Staged || !spec.SelectsNodes() {
			others = append(others, spec)
		} else {
			version.Specs = append(version.Specs, spec)
		}
	}
	if len(version.Specs) > 0 {
		sum := sha256.Sum256(row.Object)
		version.Digest, version.Object, version.Source, version.Revision = hex.EncodeToString(sum[:]), row.Object, row.Source, row.Revision
	}
	l.trial.set(parsed.Key, version)
	parsed.Specs = append(others, l.trial.version(parsed.Key).Specs...)
	return parsed
}

// deletePolicy takes a policy away, but for what a trial has put back.
func (l *policyLoop) deletePolicy(key policy.Key) {
	l.trial.set(key, hostPolicy{})
	kept := l.trial.version(key)
	if len(kept.Specs) == 0 {
		l.engine.DeletePolicy(key)
		return
	}
	if err := l.engine.SetPolicy(policy.Policy{Key: key, Revision: kept.Revision, Source: kept.Source, Specs: kept.Specs}); err != nil {
		l.log.Error("put back a host policy", "policy", key.String(), "error", err)
	}
}

// beginTrial starts the clock of what was prepared, now that it is in force.
func (l *policyLoop) beginTrial() {
	if !l.unpublished.tried {
		return
	}
	l.trial.begin(time.Now())
	select {
	case l.host.tried <- struct{}{}:
	default:
	}
}

// errUnconfirmed is what status says of a host policy whose trial has no end yet.
var errUnconfirmed = errors.New("in force, unconfirmed: the store was away when it came and has not answered since")

// rolledBack is what is said of a policy that was.
func (l *policyLoop) rolledBack() string {
	return fmt.Sprintf("rolled back: the store could not be reached within %s of its being in force", l.trial.period)
}

// Pauses between questions to the store: during a trial, and while nobody is to blame.
const (
	trialPause       = 200 * time.Millisecond
	unconfirmedPause = 5 * time.Second
	trialPatience    = 2 * time.Second // for one answer
)

// superviseTrials asks the store for an answer whenever host policies wait to be confirmed, and rolls back what is not
// confirmed in time.
func (l *policyLoop) superviseTrials(ctx context.Context, probe func(context.Context) error) error {
	for ctx.Err() == nil {
		running, patience, pause := l.trialStands()
		if !running {
			select {
			case <-l.host.tried:
			case <-ctx.Done():
			}
			continue
		}
		begun := time.Now()
		within, cancel := context.WithTimeout(ctx, patience)
		err := probe(within)
		cancel()
		if err != nil {
			l.log.Warn("host policies wait for the store's answer", "error", err)
		}
		if over, err := l.concludeTrial(ctx, begun, err == nil); err != nil {
			l.log.Error("conclude the trial of host policies; will try again", "error", err)
		} else if over {
			continue
		}
		sleep(ctx, jittered(pause))
	}
	return nil
}

// trialStands says whether something waits to be confirmed, how long an answer may take and how long to wait for the next.
func (l *policyLoop) trialStands() (running bool, patience, pause time.Duration) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	deadline, ends := l.trial.deadline()
	if !ends {
		return l.trial.running() || l.unpublished != nil && l.unpublished.tried, trialPatience, unconfirmedPause
	}
	return true, max(min(trialPatience, time.Until(deadline)), time.Millisecond), trialPause
}

// concludeTrial takes the store's answer, or its silence, to the trial and what follows to the kernel.
func (l *policyLoop) concludeTrial(ctx context.Context, begun time.Time, answered bool) (over bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if answered {
		if !l.trial.answered(begun) {
			return false, nil
		}
		l.log.Info("host policies confirmed: the store answers under them")
		return true, l.noteTrial()
	}
	keys := l.trial.expire(time.Now())
	if len(keys) == 0 && (l.unpublished == nil || !l.unpublished.tried) {
		return false, nil
	}
	for _, key := range keys {
		l.log.Error("host policy "+stateRolledBack+": the store could not be reached", "policy", key.String(), "period", l.trial.period)
		l.lookAgain(key)
	}
	return true, errors.Join(l.noteTrial(), l.catchUp(ctx))
}

// lookAgain stages a policy anew, after the trial has changed its mind.
func (l *policyLoop) lookAgain(key policy.Key) {
	row, _, ok := l.tables.Policies.Get(l.tables.DB.ReadTxn(), table.PolicyByKey(key.Kind, key.Namespace, key.Name))
	if !ok {
		row = &table.Policy{Kind: key.Kind, Namespace: key.Namespace, Name: key.Name}
	}
	l.policyChanged(row, !ok)
}

// trialNote is the trial as a file: what a start must know of host policies before it asks anybody.
type trialNote struct {
	Confirmed []notedPolicy `json:"confirmed,omitempty"`
	Trying    []notedPolicy `json:"trying,omitempty"`
	Undone    []notedPolicy `json:"undone,omitempty"`
	Blames    bool          `json:"blames,omitempty"`
}

// notedPolicy is a policy in a note; of what is not confirmed, the digest says which version.
type notedPolicy struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Digest    string `json:"digest,omitempty"`
	Revision  uint64 `json:"revision,omitempty"`
	Source    string `json:"source,omitempty"`
	Object    []byte `json:"object,omitempty"`
}

func (n *notedPolicy) key() policy.Key {
	return policy.Key{Kind: n.Kind, Namespace: n.Namespace, Name: n.Name}
}

// noteTrial writes the trial down, so that an agent that is killed in the middle rolls back at its next start.
func (l *policyLoop) noteTrial() error {
	if l.host.note == "" {
		return nil
	}
	note := trialNote{Blames: l.trial.blames}
	for key, version := range l.trial.confirmed {
		note.Confirmed = append(note.Confirmed, notedPolicy{key.Kind, key.Namespace, key.Name, version.Digest, version.Revision, version.Source, version.Object})
	}
	note.Trying, note.Undone = notedVersions(l.trial.trying), notedVersions(l.trial.undone)
	raw, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("note the trial of host policies: %w", err)
	}
	if err := replaceFile(l.host.note, raw); err != nil {
		return fmt.Errorf("note the trial of host policies: %w", err)
	}
	return nil
}

func notedVersions(versions map[policy.Key]string) (noted []notedPolicy) {
	for key, digest := range versions {
		noted = append(noted, notedPolicy{Kind: key.Kind, Namespace: key.Namespace, Name: key.Name, Digest: digest})
	}
	return noted
}

// replaceFile writes a file whole or not at all, and returns once the disk has it.
func replaceFile(path string, content []byte) error {
	return renameio.WriteFile(path, content, 0o600, renameio.WithTempDir(filepath.Dir(path)))
}

// loadTrial takes a note up. It reports whether an agent was killed in the middle of a trial, which is then rolled back.
func (l *policyLoop) loadTrial() (interrupted bool, err error) {
	raw, err := os.ReadFile(l.host.note)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var note trialNote
	if err == nil {
		err = json.Unmarshal(raw, &note)
	}
	if err != nil {
		return false, fmt.Errorf("read the note of host policies: %w: remove the file to try them anew", err)
	}
	for _, noted := range note.Confirmed {
		parsed, err := kube.ParsePolicy(noted.Kind, noted.Object, noted.Source)
		if err != nil {
			return false, fmt.Errorf("read the note of host policies: %s: %w: remove %s to try them anew", noted.key(), err, l.host.note)
		}
		specs := slices.DeleteFunc(parsed.Specs, func(s policy.Spec) bool { return !s.SelectsNodes() })
		l.trial.confirmed[noted.key()] = hostPolicy{noted.Digest, specs, noted.Object, noted.Source, noted.Revision}
	}
	for _, noted := range note.Undone {
		l.trial.undone[noted.key()] = noted.Digest
	}
	for _, noted := range note.Trying {
		l.trial.trying[noted.key()] = noted.Digest
	}
	interrupted = note.Blames && len(note.Trying) > 0
	if interrupted {
		l.trial.undo()
	}
	l.trial.trying = map[policy.Key]string{}
	return interrupted, nil
}

// resumeTrial takes up what an earlier agent noted of host policies. If that one was killed during a trial, what cut the
// node off may be in force still. The policy loop puts back what was confirmed as soon as it knows the policies; where
// nothing was confirmed, or no snapshot tells them before the store does, nothing judges the node until then.
func (a *Agent) resumeTrial() error {
	l := a.policies
	l.trial.period = time.Duration(a.config.HostTrialSeconds) * time.Second
	l.host.note = filepath.Join(a.config.StateDir, "host-policies.json")
	l.host.reachable = func() bool { return a.store.Status().Connected }
	interrupted, err := l.loadTrial()
	if err != nil || !interrupted {
		return err
	}
	a.log.Error("the agent ended during a trial of host policies: " + stateRolledBack)
	_, err = os.Stat(filepath.Join(a.config.StateDir, snapshotFile))
	if err != nil || len(l.trial.confirmed) == 0 {
		if err := a.datapath.DeleteEndpoint(hostEndpoint); err != nil {
			return err
		}
	}
	return l.noteTrial()
}
