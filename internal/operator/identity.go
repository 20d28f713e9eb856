package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/api/tendril"
	"tendril.io/tendril/internal/store"
)

var (
	podKind          = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	identityResource = schema.GroupVersionResource{Group: "tendril.io", Version: "v1alpha1", Resource: "identities"}
)

const (
	// identityPace is the time for identityWrites, before jitter, and how long changes are gathered.
	identityPace = time.Second
	// identityWrites leaves most of what the operator may ask of the API server (cmd/tendril-operator) to the status of policies and services.
	identityWrites = 20
	// identityRepair is how often all is compared with what the API server has, before jitter: people may have deleted some.
	identityRepair = 10 * time.Minute
	// identityPage is how many are listed at once.
	identityPage = 500
	// defaultIdentityGrace lets a pod that is replaced find the object of the one before.
	defaultIdentityGrace = time.Minute
)

// identities keeps an Identity object for each identity that pods have, in a goroutine of its own: ten thousand of them must not hold
// up records. A pod whose identity is there costs no write, and nothing is known of pods here but what the mirror says has turned.
type identities struct {
	Config
	// Has a value when something has turned.
	wake chan struct{}

	mu sync.Mutex
	// What has turned since it was last taken: an identity's set of labels, nil if no pod has it any more.
	turned map[types.NamespacedName]*storev1.LabelSet
	// All pods are known: what none of them has may go.
	complete bool

	// Those that pods have.
	wanted map[types.NamespacedName]*storev1.LabelSet
	// Those that the API server has, as it was listed last and written since.
	there map[types.NamespacedName]bool
	// Those of wanted that it has not, or not with all labels.
	missing map[types.NamespacedName]bool
	// Those that it has and no pod has, since when.
	stale map[types.NamespacedName]time.Time
	// When all is next compared; zero: at once.
	repair time.Time
}

// newIdentities begins without pods; where there are to be no identities, none ever has one.
func newIdentities(config Config) *identities {
	s := &identities{
		Config: config, wake: make(chan struct{}, 1), turned: map[types.NamespacedName]*storev1.LabelSet{},
		wanted: map[types.NamespacedName]*storev1.LabelSet{}, there: map[types.NamespacedName]bool{},
		missing: map[types.NamespacedName]bool{}, stale: map[types.NamespacedName]time.Time{},
	}
	if s.NoIdentities {
		s.complete, s.IdentityGrace = true, 0
	}
	return s
}

// note hears from the writing of records what has turned, and whether all pods are known.
func (s *identities) note(turned map[types.NamespacedName]*storev1.LabelSet, complete bool) {
	if s.Metadata == nil || s.NoIdentities {
		return
	}
	s.mu.Lock()
	maps.Copy(s.turned, turned)
	news := len(turned) > 0 || complete && !s.complete
	s.complete = complete
	s.mu.Unlock()
	if news {
		nudge(s.wake)
	}
}

// run writes, so many at a time, until the context ends; where there are to be no identities, until there are none.
func (s *identities) run(ctx context.Context) {
	if s.Metadata == nil {
		return
	}
	backoff := store.Backoff{Min: time.Second, Max: time.Minute}
	for pause(ctx, store.Interval(s.identityPace, 0)) == nil {
		wake := s.wake
		wait, err := s.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wake, wait = nil, backoff.Next()
			s.Logger.Warn("identities are not as they should be; trying again", "error", err)
		case s.NoIdentities && len(s.stale) == 0:
			return
		default:
			backoff.Reset()
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case <-time.After(wait):
		}
	}
}

// step takes what has turned and writes what is due, but no more than fits into the pace. It returns how long it may wait if nothing turns.
func (s *identities) step(ctx context.Context) (time.Duration, error) {
	if !s.take(time.Now()) {
		return identityRepair, nil
	}
	if !time.Now().Before(s.repair) {
		if err := s.compare(ctx); err != nil {
			return 0, err
		}
		s.repair = time.Now().Add(store.Interval(identityRepair, 0))
	}
	names, next := s.due(time.Now())
	failed, failure := 0, error(nil)
	for _, name := range names {
		if err := s.write(ctx, name); err != nil {
			failed++
			failure = fmt.Errorf("%d of %d not written, the last %s: %w", failed, len(names), name, err)
		}
	}
	return time.Until(next), failure
}

// take reads what has turned. It says whether all pods are known.
func (s *identities) take(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, set := range s.turned {
		if set == nil {
			delete(s.wanted, name)
			delete(s.missing, name)
			if s.there[name] {
				s.stale[name] = now
			}
			continue
		}
		s.wanted[name] = set
		delete(s.stale, name)
		if !s.there[name] {
			s.missing[name] = true
		}
	}
	clear(s.turned)
	return s.complete
}

// compare lists what the API server has. Labels that people have added to an object are theirs.
func (s *identities) compare(ctx context.Context) error {
	there, missing, stale := map[types.NamespacedName]bool{}, map[types.NamespacedName]bool{}, map[types.NamespacedName]time.Time{}
	for name := range s.wanted {
		missing[name] = true
	}
	options := metav1.ListOptions{Limit: identityPage}
	for {
		page, err := s.Metadata.Resource(identityResource).List(ctx, options)
		if s.NoIdentities && apierrors.IsNotFound(err) { // a kind that nobody has defined
			return nil
		}
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		for i := range page.Items {
			item := &page.Items[i]
			name := types.NamespacedName{Namespace: item.GetNamespace(), Name: item.GetName()}
			there[name] = true
			set, since := s.wanted[name], s.stale[name]
			switch {
			case set == nil && since.IsZero():
				stale[name] = time.Now()
			case set == nil:
				stale[name] = since
			case labels.SelectorFromSet(set.GetLabels()).Matches(labels.Set(item.GetLabels())):
				delete(missing, name)
			}
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			break
		}
	}
	s.there, s.missing, s.stale = there, missing, stale
	return nil
}

// due lists what is to be written next, what is missing first, and when there will be more.
func (s *identities) due(now time.Time) (names []types.NamespacedName, next time.Time) {
	for name := range s.missing {
		if names = append(names, name); len(names) == identityWrites {
			return names, now
		}
	}
	next = s.repair
	for name, since := range s.stale {
		if end := since.Add(s.IdentityGrace); now.Before(end) {
			if end.Before(next) {
				next = end
			}
			continue
		}
		if names = append(names, name); len(names) == identityWrites {
			return names, now
		}
	}
	return names, next
}

// write makes or removes one object. Its name says all of it, so an object of that name is the one that is meant, whoever made it.
func (s *identities) write(ctx context.Context, name types.NamespacedName) error {
	at := s.Objects.Resource(identityResource).Namespace(name.Namespace)
	set := s.wanted[name]
	if set == nil {
		if err := at.Delete(ctx, name.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		delete(s.there, name)
		delete(s.stale, name)
		return nil
	}
	object, err := identityObject(name, set)
	if err != nil {
		return err
	}
	_, err = at.Apply(ctx, name.Name, object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil && !namespaceGoes(err) {
		return err
	}
	delete(s.missing, name)
	s.there[name] = err == nil
	return nil
}

// identityObject is an identity as it is applied.
func identityObject(name types.NamespacedName, set *storev1.LabelSet) (*unstructured.Unstructured, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&tendril.Identity{
		TypeMeta:   metav1.TypeMeta{APIVersion: tendril.APIVersion, Kind: tendril.KindIdentity},
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, Labels: set.GetLabels()},
		Spec:       tendril.IdentitySpec{Cluster: set.GetCluster(), ServiceAccount: set.GetServiceAccount(), Labels: set.GetLabels()},
	})
	if err != nil {
		return nil, err
	}
	return &unstructured.Unstructured{Object: fields}, nil
}

// namespaceGoes says whether an object was refused because its namespace is being deleted or is gone. Its pods go, too.
func namespaceGoes(err error) bool {
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return true
	}
	var refused apierrors.APIStatus
	return apierrors.IsNotFound(err) && errors.As(err, &refused) && refused.Status().Details != nil && refused.Status().Details.Kind == "namespaces"
}
