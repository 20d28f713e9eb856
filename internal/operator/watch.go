package operator

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"tendril.io/tendril/internal/kube"
)

// nodeKind is the kind of the objects that say which nodes a cluster has.
var nodeKind = schema.GroupVersionKind{Version: "v1", Kind: "Node"}

// served finds which of the kinds the API server has, and under which resource it serves each. Policies of a kind that it does
// not have cannot exist. A kind of several versions is read in the newest.
func served(client discovery.DiscoveryInterface) (map[schema.GroupVersionKind]schema.GroupVersionResource, error) {
	found := map[schema.GroupVersionKind]schema.GroupVersionResource{}
	taken := map[schema.GroupKind]bool{}
	for _, kind := range kube.Kinds() {
		if taken[kind.GroupKind()] {
			continue
		}
		list, err := client.ServerResourcesForGroupVersion(kind.GroupVersion().String())
		if apierrors.IsNotFound(err) {
			continue
		}
		// Not the same as not there: to take it for that would forget all policies of the kind.
		if err != nil {
			return nil, fmt.Errorf("ask the API server for %s: %w", kind.GroupVersion(), err)
		}
		if resource, ok := resourceOf(list, kind.Kind); ok {
			found[kind], taken[kind.GroupKind()] = kind.GroupVersion().WithResource(resource), true
		}
	}
	return found, nil
}

// resourceOf is the name of a kind's resource; names with a slash are parts of another's.
func resourceOf(list *metav1.APIResourceList, kind string) (string, bool) {
	for _, resource := range list.APIResources {
		if resource.Kind == kind && !strings.Contains(resource.Name, "/") && slices.Contains(resource.Verbs, "watch") {
			return resource.Name, true
		}
	}
	return "", false
}

// watcher holds the trimmed objects of the API server, and the names of those that changed since they were last taken.
type watcher struct {
	factory   dynamicinformer.DynamicSharedInformerFactory
	informers map[schema.GroupVersionKind]cache.SharedIndexInformer
	logger    *slog.Logger
	// Has a value when there is something to take.
	wake chan struct{}
	// Has a value when a Service has changed.
	services chan struct{}
	// Has a value when a Node has changed.
	nodesChanged chan struct{}

	mu      sync.Mutex
	changed map[reference]bool
}

// newWatcher makes an informer for each kind. Informers list again, with back-off and jitter, when a watch breaks.
func newWatcher(client dynamic.Interface, kinds map[schema.GroupVersionKind]schema.GroupVersionResource, logger *slog.Logger) (*watcher, error) {
	w := &watcher{
		factory:      dynamicinformer.NewDynamicSharedInformerFactory(client, 0),
		informers:    map[schema.GroupVersionKind]cache.SharedIndexInformer{},
		wake:         make(chan struct{}, 1),
		services:     make(chan struct{}, 1),
		nodesChanged: make(chan struct{}, 1),
		changed:      map[reference]bool{},
		logger:       logger,
	}
	for kind, resource := range kinds {
		informer := w.factory.ForResource(resource).Informer()
		broken := func(_ context.Context, _ *cache.Reflector, err error) {
			logger.Warn("watch of the API server broke; it is tried again", "kind", kind.Kind, "error", err)
		}
		if err := informer.SetWatchErrorHandlerWithContext(broken); err != nil {
			return nil, fmt.Errorf("watch %s: %w", kind.Kind, err)
		}
		if err := informer.SetTransform(trimmer(kind)); err != nil {
			return nil, fmt.Errorf("watch %s: %w", kind.Kind, err)
		}
		note := func(object any) { w.note(kind, object) }
		handler := cache.ResourceEventHandlerFuncs{AddFunc: note, UpdateFunc: func(_, object any) { note(object) }, DeleteFunc: note}
		if _, err := informer.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("watch %s: %w", kind.Kind, err)
		}
		w.informers[kind] = informer
	}
	return w, nil
}

// listPatience is how long the store waits for lists that are slow or refused. Then it is written without those kinds.
const listPatience = 10 * time.Second

// start starts all informers, which the context ends, and waits until each has its list, but no longer than that.
func (w *watcher) start(ctx context.Context, longest time.Duration) error {
	w.factory.Start(ctx.Done())
	patience, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	for kind, informer := range w.informers {
		if !cache.WaitForCacheSync(patience.Done(), informer.HasSynced) && ctx.Err() == nil {
			w.logger.Warn("no list of a kind yet; what the store has of it stays as it is", "kind", kind.Kind)
		}
	}
	return ctx.Err()
}

// has says whether the first list of a kind is in.
func (w *watcher) has(kind schema.GroupVersionKind) bool {
	informer := w.informers[kind]
	return informer != nil && informer.HasSynced()
}

// lacks says whether the API server has a kind whose list is not in.
func (w *watcher) lacks(kind schema.GroupVersionKind) bool {
	return w.informers[kind] != nil && !w.has(kind)
}

// note remembers that an object has changed, not how: its last state is read when it is taken.
func (w *watcher) note(kind schema.GroupVersionKind, object any) {
	name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object)
	if err != nil { // an object without metadata, which the API server does not send
		return
	}
	w.mu.Lock()
	w.changed[reference{kind, name}] = true
	w.mu.Unlock()
	nudge(w.wake)
	switch kind {
	case serviceKind:
		w.nudgeServices()
	case nodeKind:
		nudge(w.nodesChanged)
	}
}

// nudgeServices wakes who looks after the status of Services.
func (w *watcher) nudgeServices() { nudge(w.services) }

// nudge wakes without waiting.
func nudge(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// take gives the names of what changed since it was last called.
func (w *watcher) take() []reference {
	w.mu.Lock()
	defer w.mu.Unlock()
	names := slices.Collect(maps.Keys(w.changed))
	clear(w.changed)
	return names
}

// all names every object of a kind.
func (w *watcher) all(kind schema.GroupVersionKind) []reference {
	var names []reference
	for _, name := range w.informers[kind].GetStore().ListKeys() {
		names = append(names, reference{kind, name})
	}
	return names
}

// get is an object as it is now; nil if it is gone.
func (w *watcher) get(r reference) *unstructured.Unstructured {
	object, exists, err := w.informers[r.kind].GetStore().GetByKey(r.name)
	if err != nil || !exists {
		return nil
	}
	found, _ := object.(*unstructured.Unstructured)
	return found
}

// list gives all objects of a kind as they are now; none while its list is not in.
func (w *watcher) list(kind schema.GroupVersionKind) (objects []*unstructured.Unstructured) {
	if !w.has(kind) {
		return nil
	}
	for _, object := range w.informers[kind].GetStore().List() {
		if found, ok := object.(*unstructured.Unstructured); ok {
			objects = append(objects, found)
		}
	}
	return objects
}

// nodes names the Node objects.
func (w *watcher) nodes() map[string]bool {
	names := map[string]bool{}
	for _, object := range w.list(nodeKind) {
		names[object.GetName()] = true
	}
	return names
}

// kindsInterval is how often the API server is asked which kinds it has, before jitter; at first sooner, for it needs a moment for
// those that were just defined.
const (
	kindsInterval      = 30 * time.Second
	firstKindsInterval = 2 * time.Second
)
