package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
)

// kindInfo says where the numbers of a kind point to.
type kindInfo struct {
	kind     policy.Kind
	mapName  string      // map whose size bounds it; empty: bounded by limit
	limit    uint32      // capacity where no map bounds it
	reserved uint32      // numbers below have fixed meanings
	group    publication // whose completion makes a released number free
}

// publication names the two independent streams of deltas. Numbers released for one are freed by its completion only.
type publication int

const (
	publicationPolicy publication = iota
	publicationServices
	publicationCount
)

// kinds lists every kind. Index 0 of a table always means "none", so it is never given out.
func kinds(classWords uint32) []kindInfo {
	return []kindInfo{
		{policy.KindPeer, "peer_class", 0, uint32(bpf.PeerFirstFree), publicationPolicy},
		{policy.KindClass, "class_bits", 0, 1, publicationPolicy},
		{policy.KindSelector, "", classWords * 64, 0, publicationPolicy},
		{policy.KindProgram, "policy_programs", 0, 1, publicationPolicy},
		{policy.KindCells, "policy_cells", 0, 1, publicationPolicy},
		{policy.KindRule, "", 1 << 24, uint32(bpf.RuleFirstFree), publicationPolicy},
		{policy.KindNode, "nodes", 0, 1, publicationPolicy},
		{policy.KindEndpoint, "endpoints", 0, 1, publicationPolicy},
		{policy.KindService, "", 1 << 24, 1, publicationServices},
		{policy.KindBackend, "backends", 0, 1, publicationServices},
		{policy.KindSlots, "slots", 0, 0, publicationServices},
	}
}

// shortage says that there is no room for count numbers in a row.
func (i kindInfo) shortage(s *space, count uint32) *policy.Shortage {
	remedy := "use fewer"
	if i.mapName != "" {
		remedy = "enlarge map " + i.mapName
	}
	_, largest := s.room()
	return &policy.Shortage{Kind: i.kind, Has: s.capacity - min(i.reserved, s.capacity), Asked: count, Largest: largest, Remedy: remedy}
}

// ledger keeps assignments where a restart finds them.
type ledger interface {
	put(key bpf.AssignmentKey, value bpf.Assignment) error
	drop(keys []bpf.AssignmentKey) error
}

// holdingState is where an assignment is in its life.
type holdingState uint8

const (
	holdingClaimed     holdingState = iota
	holdingAdopted                  // found in the ledger, not asked for since
	holdingReleased                 // given back; the publication that drops it is not complete
	holdingRetiring                 // its publication is complete; a grace period is not over
	holdingQuarantined              // a rule that a connection may still name
)

// holding is the numbers that a digest has.
type holding struct {
	first, count uint32
	state        holdingState
	life         uint32 // rises with each retirement, so that an old grace period cannot end a newer one's wait
}

// Numbers gives out node-local numbers. It implements policy.Numbers; an assignment is in the pinned map before the
// caller learns of it, and out of it before its numbers can be anybody else's.
//
// Release and the Publish that goes with it are called from one goroutine per publication (policy, services).
type Numbers struct {
	mu       sync.Mutex
	infos    map[policy.Kind]kindInfo
	spaces   map[policy.Kind]*space
	held     map[bpf.AssignmentKey]holding
	released [publicationCount][]bpf.AssignmentKey
	rules    map[uint32]bpf.AssignmentKey // in quarantine, by number
	ledger   ledger
	// reclaim waits for the grace period of what is retired and frees it; nil: nothing can be waited for.
	reclaim func() error
}

// newNumbers makes spaces of the given sizes (by map name) and adopts what the ledger held.
func newNumbers(classWords uint32, sizes map[string]uint32, l ledger, before map[bpf.AssignmentKey]bpf.Assignment) (*Numbers, error) {
	n := &Numbers{
		infos:  map[policy.Kind]kindInfo{},
		spaces: map[policy.Kind]*space{},
		held:   make(map[bpf.AssignmentKey]holding, len(before)),
		rules:  map[uint32]bpf.AssignmentKey{},
		ledger: l,
	}
	for _, info := range kinds(classWords) {
		capacity := info.limit
		if info.mapName != "" {
			capacity = sizes[info.mapName]
		}
		n.infos[info.kind] = info
		n.spaces[info.kind] = newSpace(info.reserved, capacity)
	}
	if s := n.spaces[policy.KindEndpoint]; uint32(bpf.EndpointHost) < s.capacity {
		if err := s.claim(uint32(bpf.EndpointHost), 1); err != nil {
			return nil, fmt.Errorf("keep the node's own endpoint %d: %w", bpf.EndpointHost, err)
		}
	}
	return n, n.adopt(before)
}

// adopt takes over assignments of an earlier agent. What no longer fits (a map was made smaller) is forgotten: the map
// it pointed into is a new and empty one. Two names for one number are refused.
func (n *Numbers) adopt(before map[bpf.AssignmentKey]bpf.Assignment) error {
	var forgotten []bpf.AssignmentKey
	for key, value := range before {
		s := n.spaces[policy.Kind(key.Kind)]
		if s == nil || value.Count == 0 || uint64(value.First)+uint64(value.Count) > uint64(s.capacity) {
			forgotten = append(forgotten, key)
			continue
		}
		if err := s.claim(value.First, value.Count); err != nil {
			return fmt.Errorf("adopt assignment %x of kind %s: %w: remove the pinned maps with `tendril cleanup`",
				key.Digest, policy.Kind(key.Kind), err)
		}
		n.held[key] = holding{first: value.First, count: value.Count, state: holdingAdopted}
	}
	if len(forgotten) == 0 {
		return nil
	}
	return n.ledger.drop(forgotten)
}

// Assign returns the first of count consecutive numbers for what digest stands for. Where there is no room but what is
// retired may make some, it waits for that, about 10 ms: refusing a policy for want of patience would be worse.
func (n *Numbers) Assign(kind policy.Kind, digest policy.Digest, count uint32) (uint32, error) {
	first, err := n.assign(kind, digest, count)
	if _, short := errors.AsType[*policy.Shortage](err); !short || n.reclaim == nil {
		return first, err
	}
	if failed := n.reclaim(); failed != nil {
		return 0, errors.Join(err, failed)
	}
	return n.assign(kind, digest, count)
}

func (n *Numbers) assign(kind policy.Kind, digest policy.Digest, count uint32) (uint32, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.spaces[kind]
	if s == nil || count == 0 {
		return 0, fmt.Errorf("assign %d numbers of kind %d: no such kind or nothing asked for", count, kind)
	}
	key := bpf.AssignmentKey{Digest: digest, Kind: uint32(kind)}
	if h, ok := n.held[key]; ok {
		return n.again(key, h, count)
	}
	first, ok := s.take(count)
	if !ok {
		return 0, n.infos[kind].shortage(s, count)
	}
	// Before the caller learns of it: an agent that dies now finds it again and does not give the number to another.
	if err := n.ledger.put(key, bpf.Assignment{First: first, Count: count}); err != nil {
		s.give(first, count)
		return 0, fmt.Errorf("assign %s numbers: %w", kind, err)
	}
	n.held[key] = holding{first: first, count: count}
	return first, nil
}

// again returns what a digest has already, in whatever state, and makes it claimed.
func (n *Numbers) again(key bpf.AssignmentKey, h holding, count uint32) (uint32, error) {
	if h.count != count {
		return 0, fmt.Errorf("assign %s numbers: digest %x has %d, asked for %d: one digest, one count",
			policy.Kind(key.Kind), key.Digest, h.count, count)
	}
	// Released or retiring: its publication may have cleared what the number meant. Who asks again writes that again.
	if h.state == holdingQuarantined {
		delete(n.rules, h.first)
	}
	h.state = holdingClaimed
	n.held[key] = h
	return h.first, nil
}

// Release gives back what a digest has; unknown digests have nothing.
func (n *Numbers) Release(kind policy.Kind, digest policy.Digest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.release(bpf.AssignmentKey{Digest: digest, Kind: uint32(kind)})
}

func (n *Numbers) release(key bpf.AssignmentKey) {
	h, ok := n.held[key]
	if !ok || h.state != holdingClaimed && h.state != holdingAdopted {
		return
	}
	h.state = holdingReleased
	n.held[key] = h
	group := n.infos[policy.Kind(key.Kind)].group
	n.released[group] = append(n.released[group], key)
}

// PruneUnclaimed releases what an earlier agent had assigned and nobody has asked for since, and returns how many
// assignments that were. Call it when the agent's state is complete and [Datapath.Prune] is through.
func (n *Numbers) PruneUnclaimed() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	var unclaimed []bpf.AssignmentKey
	for key, h := range n.held {
		if h.state == holdingAdopted {
			unclaimed = append(unclaimed, key)
		}
	}
	slices.SortFunc(unclaimed, func(a, b bpf.AssignmentKey) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), slices.Compare(a.Digest[:], b.Digest[:]))
	})
	for _, key := range unclaimed {
		n.release(key)
	}
	return len(unclaimed)
}

// retired is an assignment that only a grace period keeps.
type retired struct {
	key   bpf.AssignmentKey
	first uint32
	count uint32
	life  uint32
}

func (r retired) kind() policy.Kind { return policy.Kind(r.key.Kind) }

// releasedOf lists what was released for a publication and not asked for again.
func (n *Numbers) releasedOf(group publication) []retired {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []retired
	for _, key := range n.released[group] {
		if h := n.held[key]; h.state == holdingReleased {
			out = append(out, retired{key, h.first, h.count, h.life + 1})
		}
	}
	return out
}

// retire marks what releasedOf listed: its publication is complete.
func (n *Numbers) retire(group publication, list []retired) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range list {
		if h := n.held[r.key]; h.state == holdingReleased {
			h.state, h.life = holdingRetiring, r.life
			n.held[r.key] = h
		}
	}
	n.released[group] = slices.DeleteFunc(n.released[group], func(key bpf.AssignmentKey) bool {
		return n.held[key].state != holdingReleased
	})
}

// free ends the life of retired assignments after their grace period. Rules go to quarantine instead.
func (n *Numbers) free(list []retired) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var gone []bpf.AssignmentKey
	for _, r := range list {
		h, ok := n.held[r.key]
		switch {
		case !ok || h.state != holdingRetiring || h.life != r.life:
		case r.kind() == policy.KindRule:
			h.state = holdingQuarantined
			n.held[r.key] = h
			n.rules[h.first] = r.key
		default:
			gone = append(gone, r.key)
		}
	}
	return n.forget(gone)
}

// forget drops assignments from the ledger and then from memory, in this order.
func (n *Numbers) forget(keys []bpf.AssignmentKey) error {
	if len(keys) == 0 {
		return nil
	}
	if err := n.ledger.drop(keys); err != nil {
		return fmt.Errorf("forget %d assignments: %w", len(keys), err)
	}
	for _, key := range keys {
		h := n.held[key]
		delete(n.held, key)
		n.spaces[policy.Kind(key.Kind)].give(h.first, h.count)
	}
	return nil
}

// quarantined copies the rule numbers that wait for the last connection that names them.
func (n *Numbers) quarantined() map[uint32]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[uint32]bool, len(n.rules))
	for rule := range n.rules {
		out[rule] = true
	}
	return out
}

// releaseRules frees quarantined rules that a whole sweep, begun after their quarantine, found no connection to name.
func (n *Numbers) releaseRules(unnamed map[uint32]bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var gone []bpf.AssignmentKey
	for rule := range unnamed {
		if key, ok := n.rules[rule]; ok {
			gone = append(gone, key)
			delete(n.rules, rule)
		}
	}
	return n.forget(gone)
}

// NumberUse is how many numbers of a kind are taken.
type NumberUse struct {
	Kind     string
	Used     uint32
	Capacity uint32
}

// Use lists every kind in order.
func (n *Numbers) Use() []NumberUse {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]NumberUse, 0, len(n.spaces))
	for kind := policy.KindPeer; kind <= policy.KindEndpoint; kind++ {
		s := n.spaces[kind]
		free, _ := s.room()
		out = append(out, NumberUse{kind.String(), s.capacity - min(n.infos[kind].reserved, s.capacity) - free, s.capacity})
	}
	return out
}

// mapNumbers is how many entries of a map are given out.
type mapNumbers struct {
	name    string
	entries uint64
}

// useByMap is Use by map, in entries.
func (n *Numbers) useByMap() []mapNumbers {
	uses := n.Use()
	var out []mapNumbers
	for kind := policy.KindPeer; kind <= policy.KindEndpoint; kind++ {
		info := n.infos[kind]
		if info.mapName != "" {
			out = append(out, mapNumbers{info.mapName, uint64(uses[kind-policy.KindPeer].Used)})
		}
	}
	return out
}
