package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
)

// PodPool is where nodes get the prefixes of their pods from. The operator gives them where Kubernetes does not
// (kube-controller-manager without --allocate-node-cidrs), and writes them where Kubernetes would, into the Node's spec: they
// outlive the store, and the API server lets nobody change them.
type PodPool struct {
	Name   string
	Ranges []PodRange // at most one a family
}

// PodRange gives each node a prefix of Bits bits.
type PodRange struct {
	Prefix netip.Prefix
	Bits   int
}

// AnnotationPodPool is a Node's wish for another pool than the one named DefaultPodPool.
const (
	AnnotationPodPool = "tendril.io/pod-pool"
	DefaultPodPool    = "default"
)

// podPoolField is where trimmed Nodes have that annotation; their others are thrown away.
const podPoolField = "podPool"

// ParsePodPool reads NAME=PREFIX:BITS[,PREFIX:BITS].
func ParsePodPool(text string) (PodPool, error) {
	name, ranges, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return PodPool{}, fmt.Errorf("pod pool %q: write NAME=PREFIX:BITS, e.g. default=10.0.0.0/16:24", text)
	}
	pool := PodPool{Name: name}
	for part := range strings.SplitSeq(ranges, ",") {
		r, err := parsePodRange(part)
		if err != nil {
			return PodPool{}, fmt.Errorf("pod pool %q: %w", name, err)
		}
		if len(pool.Ranges) == 2 || len(pool.Ranges) == 1 && pool.Ranges[0].Prefix.Addr().Is4() == r.Prefix.Addr().Is4() {
			return PodPool{}, fmt.Errorf("pod pool %q: %s is a second range of its family; make it a pool of its own", name, part)
		}
		pool.Ranges = append(pool.Ranges, r)
	}
	return pool, nil
}

func parsePodRange(text string) (PodRange, error) {
	at := strings.LastIndexByte(text, ':')
	prefix, err := netip.ParsePrefix(text[:max(at, 0)])
	if err != nil {
		return PodRange{}, fmt.Errorf("range %q: write PREFIX:BITS, e.g. 10.0.0.0/16:24", text)
	}
	bits, err := strconv.Atoi(text[at+1:])
	switch most := prefix.Addr().BitLen() - 2; {
	case prefix != prefix.Masked():
		return PodRange{}, fmt.Errorf("range %q: has bits behind its length; write %s", text, prefix.Masked())
	case err != nil || bits < prefix.Bits() || bits > most:
		return PodRange{}, fmt.Errorf("range %q: give each node a prefix of %d to %d bits", text, prefix.Bits(), most)
	}
	return PodRange{prefix, bits}, nil
}

// next is the lowest prefix for a node that overlaps none of those that are taken, sorted by byAddr: of a large cluster many are.
func (r PodRange) next(taken []netip.Prefix) (netip.Prefix, bool) {
	candidate := netip.PrefixFrom(r.Prefix.Addr(), r.Bits)
	for _, other := range taken {
		if candidate.Overlaps(other) {
			// Behind both: the one that is taken may be larger.
			candidate = netip.PrefixFrom(after(widest(candidate, other)), r.Bits)
		}
		if !r.Prefix.Contains(candidate.Addr()) {
			return netip.Prefix{}, false
		}
	}
	return candidate, true
}

func byAddr(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }

// insert keeps a list sorted.
func insert(taken []netip.Prefix, p netip.Prefix) []netip.Prefix {
	at, _ := slices.BinarySearchFunc(taken, p, byAddr)
	return slices.Insert(taken, at, p)
}

func widest(a, b netip.Prefix) netip.Prefix {
	if a.Bits() < b.Bits() {
		return a
	}
	return b
}

// after is the first address behind a prefix; the zero address if there is none.
func after(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last.Next()
}

// movePodPool keeps a Node's wish where it is found after all annotations are gone.
func movePodPool(object map[string]any) {
	if name, ok, _ := unstructured.NestedString(object, "metadata", "annotations", AnnotationPodPool); ok {
		object[podPoolField] = name
	}
}

// podPrefixes gives nodes the prefixes of their pods, in a goroutine of its own.
type podPrefixes struct {
	Config
	watcher *watcher
	// What this leader gave: the watcher may not show it yet.
	given map[types.UID][]netip.Prefix
}

// run gives, whenever Nodes have changed, until the context ends. Without pools it has nothing to give.
func (p *podPrefixes) run(ctx context.Context) {
	if len(p.PodPools) == 0 {
		return
	}
	backoff := store.Backoff{Min: time.Second}
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.watcher.nodesChanged:
		}
		wait := store.Interval(time.Second, 0) // many changes are one round
		if err := p.round(ctx); err == nil {
			backoff.Reset()
		} else if ctx.Err() == nil {
			wait = backoff.Next()
			p.Logger.Warn("not all nodes have pod CIDRs; trying again", "error", err)
			nudge(p.watcher.nodesChanged)
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

// round gives every node that has none. The first one of a leader asks the API server itself for the nodes: what the watcher has may
// be older than what the leader before gave last.
func (p *podPrefixes) round(ctx context.Context) error {
	nodes := p.watcher.list(nodeKind)
	if !slices.ContainsFunc(nodes, func(node *unstructured.Unstructured) bool { return len(prefixesOf(node)) == 0 }) {
		return nil
	}
	if p.given == nil {
		list, err := p.Objects.Resource(nodeKind.GroupVersion().WithResource("nodes")).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		p.given = map[types.UID][]netip.Prefix{}
		for i := range list.Items {
			p.given[list.Items[i].GetUID()] = prefixesOf(&list.Items[i])
		}
	}
	taken, err := p.taken(ctx, nodes)
	if err != nil {
		return err
	}
	slices.SortFunc(nodes, func(a, b *unstructured.Unstructured) int { return cmp.Compare(a.GetName(), b.GetName()) })
	var failures []error
	for _, node := range nodes {
		if len(prefixesOf(node)) > 0 || len(p.given[node.GetUID()]) > 0 {
			continue
		}
		prefixes, err := p.choose(node, taken)
		if err == nil {
			err = p.apply(ctx, node, prefixes)
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("node %s: %w", node.GetName(), err))
			continue
		}
		p.given[node.GetUID()] = prefixes
		for _, prefix := range prefixes {
			taken = insert(taken, prefix)
		}
	}
	return errors.Join(failures...)
}

// taken lists what nodes have, sorted by byAddr: by their specs, by what this leader gave, and by what agents say of themselves, who may have it from
// elsewhere or whose Node may be gone.
func (p *podPrefixes) taken(ctx context.Context, nodes []*unstructured.Unstructured) ([]netip.Prefix, error) {
	records, err := p.Store.List(ctx, store.KindNode)
	if err != nil {
		return nil, err
	}
	var taken []netip.Prefix
	for _, record := range records {
		if node, ok := record.Value.(*storev1.Node); ok {
			taken = append(taken, parsePrefixes(node.GetPodCidrs())...)
		}
	}
	here := map[types.UID]bool{}
	for _, node := range nodes {
		here[node.GetUID()] = true
		taken = append(append(taken, prefixesOf(node)...), p.given[node.GetUID()]...)
	}
	for uid := range p.given {
		if !here[uid] {
			delete(p.given, uid)
		}
	}
	slices.SortFunc(taken, byAddr)
	return taken, nil
}

// choose finds a node's prefixes in its pool, all or none.
func (p *podPrefixes) choose(node *unstructured.Unstructured, taken []netip.Prefix) (prefixes []netip.Prefix, err error) {
	name, _, _ := unstructured.NestedString(node.Object, podPoolField)
	name = cmp.Or(name, DefaultPodPool)
	at := slices.IndexFunc(p.PodPools, func(pool PodPool) bool { return pool.Name == name })
	if at < 0 {
		return nil, fmt.Errorf("there is no pod pool %q; correct the annotation %s, or give the operator such a pool", name, AnnotationPodPool)
	}
	for _, r := range p.PodPools[at].Ranges {
		prefix, ok := r.next(taken)
		if !ok {
			return nil, fmt.Errorf("pod pool %q: nothing of %s is free for another /%d; add a pool, and annotate new nodes with it", name, r.Prefix, r.Bits)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

// apply writes prefixes into a Node's spec. Somebody who was faster is right: the API server refuses a change.
func (p *podPrefixes) apply(ctx context.Context, node *unstructured.Unstructured, prefixes []netip.Prefix) error {
	var texts []any
	for _, prefix := range prefixes {
		texts = append(texts, prefix.String())
	}
	applied := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Node",
		// With the uid, so that a new Node of the name is not taken for this one.
		"metadata": map[string]any{"name": node.GetName(), "uid": string(node.GetUID())},
		"spec":     map[string]any{"podCIDR": texts[0], "podCIDRs": texts},
	}}
	_, err := p.Objects.Resource(nodeKind.GroupVersion().WithResource("nodes")).
		Apply(ctx, node.GetName(), applied, metav1.ApplyOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// prefixesOf lists the pod CIDRs of a Node.
func prefixesOf(node *unstructured.Unstructured) []netip.Prefix {
	texts, _, _ := unstructured.NestedStringSlice(node.Object, "spec", "podCIDRs")
	if one, _, _ := unstructured.NestedString(node.Object, "spec", "podCIDR"); len(texts) == 0 && one != "" {
		texts = []string{one}
	}
	return parsePrefixes(texts)
}

// parsePrefixes leaves out what is none.
func parsePrefixes(texts []string) (prefixes []netip.Prefix) {
	for _, text := range texts {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			prefixes = append(prefixes, prefix.Masked())
		}
	}
	return prefixes
}
