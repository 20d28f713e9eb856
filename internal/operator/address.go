package operator

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/api/tendril"
	"tendril.io/tendril/internal/store"
)

// fieldManager owns what the operator applies to objects of the API server.
const fieldManager = "tendril-operator"

// The kinds that have a say in who gets which address.
var (
	serviceKind   = schema.GroupVersionKind{Version: "v1", Kind: "Service"}
	namespaceKind = schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}
	poolKind      = schema.FromAPIVersionAndKind(tendril.APIVersion, tendril.KindLoadBalancerPool)
)

var errNotListed = errors.New("pools or namespaces are not listed yet")

// grantedField is where trimmed Services have the addresses of their status that the operator wrote there itself. Those are
// no other controller's, and a store that lost everything gives the service the same again.
const grantedField = "granted"

// moveGranted moves the addresses that the operator wrote out of a Service's status.
func moveGranted(object map[string]any) {
	if !wroteAddresses(object) {
		return
	}
	list, _, _ := unstructured.NestedSlice(object, "status", "loadBalancer", "ingress")
	var granted []any
	for _, ingress := range list {
		if fields, ok := ingress.(map[string]any); ok && fields["ip"] != nil {
			granted = append(granted, fields["ip"])
		}
	}
	unstructured.RemoveNestedField(object, "status", "loadBalancer")
	object[grantedField] = granted
}

// wroteAddresses says whether the addresses in a Service's status are the operator's, by the API server's own account.
func wroteAddresses(object map[string]any) bool {
	entries, _, _ := unstructured.NestedSlice(object, "metadata", "managedFields")
	return slices.ContainsFunc(entries, func(entry any) bool {
		fields, _ := entry.(map[string]any)
		_, owns, _ := unstructured.NestedFieldNoCopy(fields, "fieldsV1", "f:status", "f:loadBalancer", "f:ingress")
		return owns && fields["manager"] == fieldManager && fields["subresource"] == "status"
	})
}

// grantedTo lists the addresses of a trimmed Service that the operator wrote.
func grantedTo(object *unstructured.Unstructured) []string {
	list, _ := object.Object[grantedField].([]any)
	var granted []string
	for _, one := range list {
		if text, ok := one.(string); ok {
			granted = append(granted, text)
		}
	}
	return granted
}

// addresses keeps the status of Services equal to what pools gave them, in a goroutine of its own: a thousand of them must
// not hold up records.
type addresses struct {
	Config
	watcher *watcher
	// Of the store, as the leader last saw it.
	counter atomic.Uint64

	// What the store has given each service, by namespace/name, when its counter was read; a service that asks for nothing is
	// there as well. What is not there is not known, and left alone.
	given map[string][]string
	read  uint64
}

// look says what the store's counter is now.
func (a *addresses) look(counter uint64) {
	if a.counter.Swap(counter) != counter {
		a.watcher.nudgeServices()
	}
}

// run compares, whenever the store has given something or a Service has changed, until the context ends.
func (a *addresses) run(ctx context.Context) {
	backoff := store.Backoff{Min: time.Second}
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.watcher.services:
		}
		wait := store.Interval(time.Second, 0) // many changes are one round
		if err := a.round(ctx); err == nil {
			backoff.Reset()
		} else if ctx.Err() == nil {
			wait = backoff.Next()
			a.Logger.Warn("the status of services is not as it should be; trying again", "error", err)
			a.watcher.nudgeServices()
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

// round compares all services.
func (a *addresses) round(ctx context.Context) error {
	// A pool that is not known gives nothing, which is no reason to take anything away.
	if a.watcher.lacks(poolKind) || a.watcher.lacks(namespaceKind) {
		return errNotListed
	}
	if counter := a.counter.Load(); a.given == nil || counter != a.read {
		records, err := a.Store.List(ctx, store.KindService)
		if err != nil {
			return err
		}
		a.given, a.read = givenBy(records), counter
	}
	var failures []error
	for _, object := range a.watcher.list(serviceKind) {
		name := object.GetNamespace() + "/" + object.GetName()
		want, known := a.given[name]
		if !known || slices.Equal(want, grantedTo(object)) {
			continue
		}
		if err := a.apply(ctx, object, want); err != nil {
			failures = append(failures, fmt.Errorf("service %s: %w", name, err))
		}
	}
	return errors.Join(failures...)
}

// givenBy reads what services have been given.
func givenBy(records []store.Record) map[string][]string {
	given := make(map[string][]string, len(records))
	for _, record := range records {
		key, err := store.ParseKey(record.Key)
		service, ok := record.Value.(*storev1.Service)
		if err != nil || !ok {
			continue
		}
		var list []string
		for _, grant := range service.GetLoadBalancer().GetGrants() {
			if addr, ok := netip.AddrFromSlice(grant.GetAddress()); ok {
				list = append(list, addr.String())
			}
		}
		given[key.First+"/"+key.Second] = list
	}
	return given
}

// apply writes a Service's status. Server-side apply removes what was applied before and no longer is, and takes nothing
// from another controller that was faster: then the next event says so.
func (a *addresses) apply(ctx context.Context, object *unstructured.Unstructured, want []string) error {
	status := map[string]any{}
	if len(want) > 0 {
		var ingress []any
		for _, addr := range want {
			ingress = append(ingress, map[string]any{"ip": addr})
		}
		status["loadBalancer"] = map[string]any{"ingress": ingress}
	}
	applied := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Service", "status": status,
		// With the uid, so that a new Service of the name is not taken for this one.
		"metadata": map[string]any{"namespace": object.GetNamespace(), "name": object.GetName(), "uid": string(object.GetUID())},
	}}
	_, err := a.Objects.Resource(serviceKind.GroupVersion().WithResource("services")).Namespace(object.GetNamespace()).
		ApplyStatus(ctx, object.GetName(), applied, metav1.ApplyOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		a.Logger.Info("a service's status was left alone", "service", object.GetNamespace()+"/"+object.GetName(), "error", err)
		return nil
	}
	return err
}
