package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/store"
)

// conditionEnforced is the type of the condition in a policy's status that says on how many nodes it is in force.
const conditionEnforced = "tendril.io/Enforced"

// enforcedField is where trimmed policies have that condition; the rest of their status is thrown away.
const enforcedField = "enforced"

// rolloutInterval is how often acknowledgements are read, x log2(nodes), as often as nodes write them.
const rolloutInterval = 10 * time.Second

// moveEnforced keeps our condition where it is found after the status is gone.
func moveEnforced(object map[string]any) {
	conditions, _, _ := unstructured.NestedSlice(object, "status", "conditions")
	for _, one := range conditions {
		if condition, ok := one.(map[string]any); ok && condition["type"] == conditionEnforced {
			object[enforcedField] = condition
		}
	}
}

// hasStatus says whether objects of a kind have a status to write: a policy, but for NetworkPolicy, whose API has none.
func hasStatus(kind schema.GroupVersionKind) bool {
	return kube.IsPolicy(kind.Kind) && kind.Group != "networking.k8s.io"
}

// rollout says in the status of policies on how many nodes each is in force, in a goroutine of its own.
type rollout struct {
	Config
	watcher *watcher
	// Revision of each policy, by key, when the counter of all was read.
	revisions map[string]uint64
	counter   uint64
}

// run looks until the context ends.
func (r *rollout) run(ctx context.Context) {
	nodes := 0
	for pause(ctx, store.Interval(r.rolloutEvery, nodes)) == nil {
		acks, err := r.acks(ctx)
		if err == nil {
			nodes = len(acks)
			err = r.round(ctx, acks)
		}
		if err != nil && ctx.Err() == nil {
			r.Logger.Warn("the status of policies is not as it should be; trying again", "error", err)
		}
	}
}

// acks lists the revision that each node that is alive enforces; 0: it has not said so yet.
func (r *rollout) acks(ctx context.Context) (map[string]uint64, error) {
	nodes, err := r.Store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	records, err := r.Store.List(ctx, store.KindAck)
	acks := map[string]uint64{}
	for node, alive := range nodes {
		if alive {
			acks[node] = 0
		}
	}
	for _, record := range records {
		key, keyErr := store.ParseKey(record.Key)
		if ack, ok := record.Value.(*storev1.Ack); ok && keyErr == nil && nodes[key.First] {
			acks[key.First] = ack.GetPolicyRevision()
		}
	}
	return acks, err
}

// round compares the status of all policies with what was acknowledged before.
func (r *rollout) round(ctx context.Context, acks map[string]uint64) error {
	if err := r.readRevisions(ctx); err != nil || len(acks) == 0 {
		return err
	}
	var failures []error
	for kind := range r.watcher.informers {
		if !hasStatus(kind) {
			continue
		}
		for _, object := range r.watcher.list(kind) {
			revision, known := r.revisions[store.PolicyKey(kind.Kind, object.GetNamespace(), object.GetName()).String()]
			if !known {
				continue
			}
			if err := r.tell(ctx, kind, object, r.conditionOf(revision, acks, enforced(object))); err != nil {
				failures = append(failures, fmt.Errorf("%s %s/%s: %w", kind.Kind, object.GetNamespace(), object.GetName(), err))
			}
		}
	}
	return errors.Join(failures...)
}

// readRevisions reads the policies' revisions, if any has changed.
func (r *rollout) readRevisions(ctx context.Context) error {
	counter, err := r.Store.PolicyRevision(ctx)
	if err != nil || r.revisions != nil && counter == r.counter {
		return err
	}
	records, err := r.Store.List(ctx, store.KindPolicy)
	if err != nil {
		return err
	}
	r.revisions, r.counter = map[string]uint64{}, counter
	for _, record := range records {
		if policy, ok := record.Value.(*storev1.Policy); ok {
			r.revisions[record.Key] = policy.GetRevision()
		}
	}
	return nil
}

// conditionOf is what the status is to say. Once all nodes enforce a revision the text has no count, and a node that comes up and
// has not said anything yet does not change it: else every new node would change every policy, twice.
func (r *rollout) conditionOf(revision uint64, acks map[string]uint64, now map[string]any) map[string]any {
	enforcing, silent := 0, 0
	for _, ack := range acks {
		switch {
		case ack == 0:
			silent++
		// A number that was not given out is of a store that lost its data since.
		case ack >= revision && ack <= r.counter:
			enforcing++
		}
	}
	everywhere := fmt.Sprintf("revision %d is in force on all nodes", revision)
	if enforcing == len(acks) || enforcing+silent == len(acks) && now["message"] == everywhere {
		return map[string]any{"type": conditionEnforced, "status": "True", "reason": "Enforced", "message": everywhere}
	}
	return map[string]any{
		"type": conditionEnforced, "status": "False", "reason": "Pending",
		"message": fmt.Sprintf("revision %d is in force on %d of %d nodes", revision, enforcing, len(acks)),
	}
}

// enforced is the condition that a trimmed policy has.
func enforced(object *unstructured.Unstructured) map[string]any {
	condition, _ := object.Object[enforcedField].(map[string]any)
	return condition
}

// tell writes a policy's condition if it says something else.
func (r *rollout) tell(ctx context.Context, kind schema.GroupVersionKind, object *unstructured.Unstructured, want map[string]any) error {
	now := enforced(object)
	if now["status"] == want["status"] && now["message"] == want["message"] {
		return nil
	}
	want["lastTransitionTime"] = metav1.Now().UTC().Format(time.RFC3339)
	if last, ok := now["lastTransitionTime"].(string); ok && now["status"] == want["status"] {
		want["lastTransitionTime"] = last
	}
	applied := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": []any{want}}}}
	applied.SetGroupVersionKind(kind)
	applied.SetNamespace(object.GetNamespace())
	applied.SetName(object.GetName())
	applied.SetUID(object.GetUID())
	_, err := r.Objects.Resource(r.watcher.kinds[kind]).Namespace(object.GetNamespace()).
		ApplyStatus(ctx, object.GetName(), applied, metav1.ApplyOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone; or its owner's definition has conditions for one writer only
		return nil
	}
	return err
}
