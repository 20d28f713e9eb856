// Package egress decides which pods leave the cluster by which egress gateway.
//
// Pods that the same gateway objects select are a set. A set has a route for each range that its objects name: the object with the
// longest range that holds an address has it, of equals the first by name, unless it excepts the address. A set's number and
// an object's are made of the names, so that an agent that starts again finds in the kernel what it would write.
//
// Which nodes are alive is not decided here (internal/node).
package egress

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/table"
)

// Pod is what is known of the pod that has an address.
type Pod struct {
	Namespace string
	Labels    label.Set
	Local     bool // of this node
}

// Route says by which gateway a set's pods reach a range; Gateway 0: by none.
type Route struct {
	Set     uint32
	Prefix  netip.Prefix
	Gateway uint32
}

// Plan holds objects and pods, and what they come to.
type Plan struct {
	objects    map[string]*table.EgressGateway
	namespaces map[string]label.Set
	pods       map[netip.Addr]Pod
	placed     map[netip.Addr]uint32 // what Flush has said of a pod; none: nothing
	dirty      map[netip.Addr]struct{}
	sets       map[string]*set // by the names of its objects
	classes    map[class]*set  // memory of select
	numbers    map[uint32]string
	moved      bool // routes have changed
}

// set is the pods that the same objects select.
type set struct {
	number  uint32
	objects []string // in order
}

// class is what selectors look at.
type class struct{ namespace, labels string }

// New makes an empty plan.
func New() *Plan {
	return &Plan{
		objects: make(map[string]*table.EgressGateway), namespaces: make(map[string]label.Set), pods: make(map[netip.Addr]Pod),
		placed: make(map[netip.Addr]uint32), dirty: make(map[netip.Addr]struct{}), sets: make(map[string]*set),
		classes: make(map[class]*set), numbers: make(map[uint32]string),
	}
}

// SetObject takes an object, new or changed.
func (p *Plan) SetObject(object *table.EgressGateway) {
	p.objects[object.Name] = object
	p.again()
}

// DeleteObject forgets one.
func (p *Plan) DeleteObject(name string) {
	delete(p.objects, name)
	p.again()
}

// again has every pod looked at, since selectors may have changed.
func (p *Plan) again() {
	clear(p.classes)
	clear(p.sets)
	p.moved = true
	for addr := range p.pods {
		p.dirty[addr] = struct{}{}
	}
}

// SetNamespace takes a namespace's labels; nil: it is gone.
func (p *Plan) SetNamespace(name string, labels map[string]string) {
	p.namespaces[name] = label.SetOf(labels)
	if labels == nil {
		delete(p.namespaces, name)
	}
	maps.DeleteFunc(p.classes, func(c class, _ *set) bool { return c.namespace == name })
	for addr, pod := range p.pods {
		if pod.Namespace == name {
			p.dirty[addr] = struct{}{}
		}
	}
}

// SetPod takes the pod that has an address.
func (p *Plan) SetPod(addr netip.Addr, pod Pod) {
	p.pods[addr] = pod
	p.dirty[addr] = struct{}{}
}

// DeletePod says that no pod has the address.
func (p *Plan) DeletePod(addr netip.Addr) {
	if _, was := p.pods[addr]; was {
		delete(p.pods, addr)
		p.dirty[addr] = struct{}{}
	}
}

// Flush returns the addresses whose set has changed, 0 for none, and whether routes have changed.
func (p *Plan) Flush() (pods map[netip.Addr]uint32, moved bool) {
	pods = make(map[netip.Addr]uint32)
	for addr := range p.dirty {
		number := uint32(0)
		if pod, is := p.pods[addr]; is {
			if s := p.selected(pod); s != nil {
				number = s.number
			}
		}
		if p.placed[addr] == number {
			continue
		}
		pods[addr], p.placed[addr] = number, number
		if number == 0 {
			delete(p.placed, addr)
		}
	}
	clear(p.dirty)
	moved, p.moved = p.moved, false
	return pods, moved
}

// Unsure says that these pods may not be in the kernel as Flush said: it says them again.
func (p *Plan) Unsure(pods map[netip.Addr]uint32) {
	p.moved = true
	for addr := range pods {
		p.dirty[addr] = struct{}{}
		p.placed[addr] = unsure
	}
}

// unsure is a set that no pod is of; Placed has it only while something could not be written.
const unsure = 0xffffffff

// Placed is the set of every pod that some object selects, as of the last Flush.
func (p *Plan) Placed() map[netip.Addr]uint32 { return p.placed }

// selected is a pod's set; nil: nothing selects it.
func (p *Plan) selected(pod Pod) *set {
	if len(p.objects) == 0 {
		return nil
	}
	key := class{pod.Namespace, pod.Labels.String()}
	if s, known := p.classes[key]; known {
		return s
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(p.objects)) {
		if p.Selects(name, pod) {
			names = append(names, name)
		}
	}
	s := p.setOf(names)
	p.classes[key] = s
	return s
}

// Selects says whether an object selects a pod.
func (p *Plan) Selects(object string, pod Pod) bool {
	o := p.objects[object]
	return o != nil && o.Pods.Matches(podLabels{pod.Labels}) && o.Namespaces.Matches(namespaceLabels{p.namespaces[pod.Namespace], pod.Namespace})
}

// setOf is the set of pods that these objects select; nil for none.
func (p *Plan) setOf(names []string) *set {
	if len(names) == 0 {
		return nil
	}
	key := strings.Join(names, " ") // no name has a space
	if p.sets[key] == nil {
		p.sets[key] = &set{p.number("set " + key), names}
		p.moved = true
	}
	return p.sets[key]
}

// number is a number for a name that no other name has.
func (p *Plan) number(name string) uint32 {
	hash := fnv.New32a()
	hash.Write([]byte(name))
	number := hash.Sum32()
	for number == 0 || (p.numbers[number] != "" && p.numbers[number] != name) {
		number++
	}
	p.numbers[number] = name
	return number
}

// Gateway is the number of an object in a family.
func (p *Plan) Gateway(object string, family4 bool) uint32 {
	return p.number(fmt.Sprintf("gateway %s %t", object, family4))
}

// Objects lists the objects by name.
func (p *Plan) Objects() []*table.EgressGateway {
	var all []*table.EgressGateway
	for _, name := range slices.Sorted(maps.Keys(p.objects)) {
		all = append(all, p.objects[name])
	}
	return all
}

// Pods lists the addresses of this node's pods that an object selects, in order.
func (p *Plan) Pods(object string) []netip.Addr {
	var addrs []netip.Addr
	for addr := range p.placed {
		if pod := p.pods[addr]; pod.Local && p.Selects(object, pod) {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// Routes lists the routes of all sets that have pods.
func (p *Plan) Routes() []Route {
	var routes []Route
	for _, s := range p.sets {
		var prefixes []netip.Prefix
		var objects []*table.EgressGateway
		for _, name := range s.objects {
			objects = append(objects, p.objects[name])
			prefixes = append(prefixes, slices.Concat(p.objects[name].Destinations, p.objects[name].Exceptions)...)
		}
		slices.SortFunc(prefixes, netip.Prefix.Compare)
		for _, prefix := range slices.Compact(prefixes) {
			route := Route{Set: s.number, Prefix: prefix}
			if o := choose(objects, prefix); o != nil {
				route.Gateway = p.Gateway(o.Name, prefix.Addr().Is4())
			}
			routes = append(routes, route)
		}
	}
	return routes
}

// choose finds the object for the addresses of a range that no longer range divides; nil: none.
func choose(objects []*table.EgressGateway, at netip.Prefix) (chosen *table.EgressGateway) {
	best := -1
	for _, o := range objects {
		if longest(o.Exceptions, at) >= 0 {
			continue
		}
		if bits := longest(o.Destinations, at); bits > best {
			chosen, best = o, bits
		}
	}
	return chosen
}

// longest is the length of the longest range that holds all of another one; -1: none does.
func longest(ranges []netip.Prefix, at netip.Prefix) int {
	best := -1
	for _, r := range ranges {
		if r.Bits() <= at.Bits() && r.Contains(at.Addr()) {
			best = max(best, r.Bits())
		}
	}
	return best
}

// podLabels are a pod's own labels.
type podLabels struct{ set label.Set }

func (l podLabels) Attribute(key label.Key) (string, bool) { return l.set.Get(key.Name) }

// namespaceLabels are a namespace's, which has its name among them (Kubernetes 1.21).
type namespaceLabels struct {
	set  label.Set
	name string
}

func (l namespaceLabels) Attribute(key label.Key) (string, bool) {
	if key.Name == "kubernetes.io/metadata.name" {
		return l.name, true
	}
	return l.set.Get(key.Name)
}
