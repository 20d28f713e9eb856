package ipam

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Rest is how long an address rests after its release was committed.
const Rest = 60 * time.Second

// Owners of the addresses that are taken when a pool is made.
const (
	OwnerRouter = "router"
	OwnerHealth = "health"
)

// State is where an address is in its life.
type State string

// The states of addresses that are not free.
const (
	Used     State = "used"
	Released State = "released" // the store does not know yet
	Cooling  State = "cooling"  // the store knows; Address.Since says since when
)

// Address is an address that is not free, and who has or had it.
type Address struct {
	Addr  netip.Addr
	Pool  netip.Prefix // not valid: of none, another plugin chose it
	Owner string
	State State
	Since time.Time // when it came into its state
}

// Book is the node's addresses. Make one with New.
type Book struct {
	pools   []*pool // IPv4 first
	foreign map[netip.Addr]*Address
}

// pool is one prefix. Offsets count from its network address; everything from next on was never used.
type pool struct {
	prefix  netip.Prefix
	last    netip.Addr // last address that may be given out
	next    netip.Addr // first that was never used; invalid once the prefix is used up
	taken   map[netip.Addr]*Address
	skipped []netip.Addr // never used though before next: restoring jumped over them; ascending
	rested  []*Address   // cooling, longest first
}

// New makes a book of one or two prefixes, at most one a family. Of each, the first usable address goes to the router
// and the second to health checks.
func New(prefixes ...netip.Prefix) (*Book, error) {
	book := &Book{foreign: make(map[netip.Addr]*Address)}
	for _, prefix := range prefixes {
		pool, err := newPool(prefix)
		if err != nil {
			return nil, err
		}
		if book.poolOf(prefix.Addr()) != nil || book.family(prefix.Addr().Is4()) != nil {
			return nil, fmt.Errorf("pool %s: there already is a prefix of its family; give one a family", prefix)
		}
		book.pools = append(book.pools, pool)
	}
	if len(book.pools) == 0 {
		return nil, errors.New("pools: none given; give the node at least one pod CIDR")
	}
	slices.SortFunc(book.pools, func(a, b *pool) int { return a.prefix.Addr().Compare(b.prefix.Addr()) })
	return book, nil
}

// newPool checks a prefix and takes its first addresses. A pool of IPv6 has as many as fit; nothing here depends on how
// many that is, because only those that were used are kept.
func newPool(prefix netip.Prefix) (*pool, error) {
	addr := prefix.Addr()
	switch {
	case !prefix.IsValid():
		return nil, fmt.Errorf("pool %s: not a prefix; write it as 10.1.0.0/24 or fd00:1::/64", prefix)
	case addr.Is4In6():
		return nil, fmt.Errorf("pool %s: an IPv4-mapped prefix; write it as IPv4", prefix)
	case prefix != prefix.Masked():
		return nil, fmt.Errorf("pool %s: host bits are set; write %s", prefix, prefix.Masked())
	case addr.BitLen()-prefix.Bits() < 3:
		return nil, fmt.Errorf("pool %s: no room for pods; use /29 or /125 or larger", prefix)
	}
	made := &pool{prefix: prefix, taken: make(map[netip.Addr]*Address), last: lastOf(prefix), next: addr.Next()}
	for _, owner := range []string{OwnerRouter, OwnerHealth} {
		made.use(made.fresh(), owner, time.Time{})
	}
	return made, nil
}

// lastOf returns the prefix's last address but one: the very last is IPv4's broadcast, and left out of IPv6 for symmetry.
func lastOf(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last.Prev()
}

// Routers returns the pods' gateway of each pool, IPv4 first.
func (b *Book) Routers() []netip.Addr { return b.owned(OwnerRouter) }

// Healths returns the addresses of health checks, IPv4 first.
func (b *Book) Healths() []netip.Addr { return b.owned(OwnerHealth) }

// owned lists what one of our own owners has. It looks at pools in their order, and each has one such address.
func (b *Book) owned(owner string) []netip.Addr {
	var addrs []netip.Addr
	for _, pool := range b.pools {
		for _, taken := range pool.taken {
			if taken.Owner == owner && taken.State == Used {
				addrs = append(addrs, taken.Addr)
			}
		}
	}
	return addrs
}

// Allocate gives owner an address of every pool, IPv4 first, or none at all. The error names the pool that has no
// address to give and what its addresses are used for.
func (b *Book) Allocate(owner string, now time.Time) ([]netip.Addr, error) {
	if owner == "" || owner == OwnerRouter || owner == OwnerHealth {
		return nil, fmt.Errorf("allocate address: owner %q is empty or reserved", owner)
	}
	if err := b.Room(now); err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(b.pools))
	for _, pool := range b.pools {
		addr := pool.give(now)
		pool.use(addr, owner, now)
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// Claim gives owner addresses that somebody else has chosen, all or none. One outside every pool is only noted, so that nobody claims it
// twice. One of a pool is taken out of it, be it at rest: whoever chose it answers for that. One that is used is refused.
func (b *Book) Claim(addrs []netip.Addr, owner string, now time.Time) error {
	for _, addr := range addrs {
		pool, taken := b.poolOf(addr), b.lookup(addr)
		switch {
		case taken != nil && taken.State == Used:
			return fmt.Errorf("address %s: used by %s already: give it to nobody else, or exclude it from the range of the plugin that chose it", addr, taken.Owner)
		case pool != nil && !pool.usable(addr):
			return fmt.Errorf("address %s: the network's own in pool %s: exclude it from the range of the plugin that chose it", addr, pool.prefix)
		case pool != nil && pool.next.IsValid() && distance(pool.next, addr) > maxGap:
			return fmt.Errorf("address %s: too far from %s, the first address of pool %s never used: let the plugin that chose it begin there", addr, pool.next, pool.prefix)
		}
	}
	for _, addr := range addrs {
		pool := b.poolOf(addr)
		if pool == nil {
			b.foreign[addr] = &Address{Addr: addr, Owner: owner, State: Used, Since: now}
			continue
		}
		pool.rested = slices.DeleteFunc(pool.rested, func(r *Address) bool { return r.Addr == addr })
		if pool.taken[addr] == nil {
			pool.skipTo(addr)
		}
		pool.use(addr, owner, now)
	}
	return nil
}

// Room fails as Allocate would, without allocating.
func (b *Book) Room(now time.Time) error {
	for _, pool := range b.pools {
		if !pool.canGive(now) {
			return pool.exhausted(now)
		}
	}
	return nil
}

// Release ends the use of an address. It is not given out again before Committed has been told. Releasing an
// address that is not used does nothing.
func (b *Book) Release(addr netip.Addr, now time.Time) {
	if taken := b.lookup(addr); taken != nil && taken.State == Used && !reserved(taken.Owner) {
		taken.State, taken.Since = Released, now
	}
}

// Committed says that the store took note of an address's release at a time. Only a released address starts to cool.
func (b *Book) Committed(addr netip.Addr, at time.Time) {
	taken := b.lookup(addr)
	if taken == nil || taken.State != Released {
		return
	}
	taken.State, taken.Since = Cooling, at
	if pool := b.poolOf(addr); pool != nil {
		pool.rest(taken)
		return
	}
	delete(b.foreign, addr) // whoever chose it says when it is used again
}

// Restore puts back an address as an earlier run of the agent left it. It fails if the address is outside every pool
// or taken by another owner; the book is then as before.
func (b *Book) Restore(was Address) error {
	pool := b.poolOf(was.Addr)
	switch {
	case pool == nil:
		return fmt.Errorf("restore address %s of %s: outside the node's pools %s", was.Addr, was.Owner, b.prefixes())
	case was.State != Used && was.State != Released && was.State != Cooling:
		return fmt.Errorf("restore address %s of %s: unknown state %q", was.Addr, was.Owner, was.State)
	case !pool.usable(was.Addr):
		return fmt.Errorf("restore address %s of %s: never given out by pool %s", was.Addr, was.Owner, pool.prefix)
	case pool.next.IsValid() && distance(pool.next, was.Addr) > maxGap:
		return fmt.Errorf("restore address %s of %s: too far from %s, the first address never used; pools are used in order",
			was.Addr, was.Owner, pool.next)
	}
	if taken := pool.taken[was.Addr]; taken != nil {
		return fmt.Errorf("restore address %s of %s: %s by %s already", was.Addr, was.Owner, taken.State, taken.Owner)
	}
	was.Pool = pool.prefix
	pool.skipTo(was.Addr)
	pool.taken[was.Addr] = &was
	if was.State == Cooling {
		pool.rest(&was)
	}
	return nil
}

// Forget drops an allocation that nobody ever learnt of: the address may be given out again at once.
func (b *Book) Forget(addr netip.Addr) {
	taken := b.lookup(addr)
	if taken == nil || taken.State != Used || reserved(taken.Owner) {
		return
	}
	pool := b.poolOf(addr)
	if pool == nil {
		delete(b.foreign, addr)
		return
	}
	delete(pool.taken, addr)
	at, _ := slices.BinarySearchFunc(pool.skipped, addr, netip.Addr.Compare)
	pool.skipped = slices.Insert(pool.skipped, at, addr)
}

// Pools returns the prefixes, IPv4 first.
func (b *Book) Pools() []netip.Prefix {
	prefixes := make([]netip.Prefix, 0, len(b.pools))
	for _, pool := range b.pools {
		prefixes = append(prefixes, pool.prefix)
	}
	return prefixes
}

// Contains says whether an address is of one of the pools.
func (b *Book) Contains(addr netip.Addr) bool { return b.poolOf(addr) != nil }

// Lookup returns an address that is not free.
func (b *Book) Lookup(addr netip.Addr) (Address, bool) {
	if taken := b.lookup(addr); taken != nil {
		return *taken, true
	}
	return Address{}, false
}

// List returns every address that is not free, by pool and address.
func (b *Book) List() []Address {
	var list []Address
	for _, pool := range b.pools {
		for _, taken := range pool.taken {
			list = append(list, *taken)
		}
	}
	for _, taken := range b.foreign {
		list = append(list, *taken)
	}
	slices.SortFunc(list, func(a, b Address) int { return a.Addr.Compare(b.Addr) })
	return list
}

func (b *Book) lookup(addr netip.Addr) *Address {
	if pool := b.poolOf(addr); pool != nil {
		return pool.taken[addr]
	}
	return b.foreign[addr]
}

func (b *Book) poolOf(addr netip.Addr) *pool {
	for _, pool := range b.pools {
		if pool.prefix.Contains(addr) {
			return pool
		}
	}
	return nil
}

func (b *Book) family(is4 bool) *pool {
	for _, pool := range b.pools {
		if pool.prefix.Addr().Is4() == is4 {
			return pool
		}
	}
	return nil
}

func (b *Book) prefixes() string { return fmt.Sprint(b.Pools()) }

func reserved(owner string) bool { return owner == OwnerRouter || owner == OwnerHealth }

// usable says whether the pool could ever give addr out.
func (p *pool) usable(addr netip.Addr) bool {
	return p.prefix.Addr().Less(addr) && addr.Compare(p.last) <= 0
}

// canGive is asked of all pools before any gives, so that a pod has an address of each family or none.
func (p *pool) canGive(now time.Time) bool {
	return len(p.skipped) > 0 || p.next.IsValid() || p.cooled(now)
}

// cooled says whether the address that rests longest has rested enough; the others then do not matter.
func (p *pool) cooled(now time.Time) bool {
	return len(p.rested) > 0 && now.Sub(p.rested[0].Since) >= Rest
}

// give picks a free address; canGive said that there is one.
func (p *pool) give(now time.Time) netip.Addr {
	if len(p.skipped) > 0 {
		addr := p.skipped[0]
		p.skipped = p.skipped[1:]
		return addr
	}
	if p.next.IsValid() {
		return p.fresh()
	}
	addr := p.rested[0].Addr
	p.rested = p.rested[1:]
	return addr
}

// fresh takes the first address that was never used.
func (p *pool) fresh() netip.Addr {
	addr := p.next
	p.next = netip.Addr{}
	if addr.Less(p.last) {
		p.next = addr.Next()
	}
	return addr
}

// use notes an owner.
func (p *pool) use(addr netip.Addr, owner string, now time.Time) {
	p.taken[addr] = &Address{Addr: addr, Pool: p.prefix, Owner: owner, State: Used, Since: now}
}

// rest puts a cooling address in its place by age.
func (p *pool) rest(cooling *Address) {
	byAge := func(a, b *Address) int {
		return cmp.Or(a.Since.Compare(b.Since), a.Addr.Compare(b.Addr))
	}
	at, _ := slices.BinarySearchFunc(p.rested, cooling, byAge)
	p.rested = slices.Insert(p.rested, at, cooling)
}

// maxGap bounds the addresses that restoring one may jump over.
const maxGap = 1 << 20

// distance counts the addresses from a up to b, 0 if b comes first; it saturates.
func distance(a, b netip.Addr) uint64 {
	low, high := a.As16(), b.As16()
	if b.Compare(a) <= 0 {
		return 0
	}
	if !slices.Equal(low[:8], high[:8]) {
		return ^uint64(0)
	}
	return binary.BigEndian.Uint64(high[8:]) - binary.BigEndian.Uint64(low[8:])
}

// skipTo takes addr out of those that were never used, and remembers the ones jumped over. Restored addresses lie
// close together, because an earlier run gave them out in order.
func (p *pool) skipTo(addr netip.Addr) {
	if at, found := slices.BinarySearchFunc(p.skipped, addr, netip.Addr.Compare); found {
		p.skipped = slices.Delete(p.skipped, at, at+1)
		return
	}
	for p.next.IsValid() && p.next.Compare(addr) <= 0 {
		if fresh := p.fresh(); fresh != addr {
			p.skipped = append(p.skipped, fresh)
		}
	}
}

// exhausted explains why the pool has nothing to give.
func (p *pool) exhausted(now time.Time) error {
	var used, released, cooling int
	for _, taken := range p.taken {
		switch taken.State {
		case Used:
			used++
		case Released:
			released++
		case Cooling:
			cooling++
		}
	}
	remedy := "give the node a larger pod CIDR or fewer pods"
	if len(p.rested) > 0 {
		wait := Rest - now.Sub(p.rested[0].Since)
		remedy = fmt.Sprintf("the next is free in %s", wait.Round(time.Second))
	} else if released > 0 {
		remedy = "released ones cool only once the store has taken note"
	}
	return &Exhausted{Pool: p.prefix, Used: used, Released: released, Cooling: cooling, Remedy: remedy}
}

// Exhausted is the error of a pool that has no address to give.
type Exhausted struct {
	Pool                    netip.Prefix
	Used, Released, Cooling int // addresses, those of router and health included
	Remedy                  string
}

func (e *Exhausted) Error() string {
	return fmt.Sprintf("pool %s has no free address: %d used, %d released, %d cooling; %s",
		e.Pool, e.Used, e.Released, e.Cooling, e.Remedy)
}
