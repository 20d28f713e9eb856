package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// at is a time some seconds after the tests' beginning.
func at(seconds int) time.Time {
	return time.Unix(1_000_000, 0).Add(time.Duration(seconds) * time.Second)
}

func newBook(t *testing.T, prefixes ...string) *Book {
	t.Helper()
	var parsed []netip.Prefix
	for _, p := range prefixes {
		parsed = append(parsed, prefix(p))
	}
	book, err := New(parsed...)
	if err != nil {
		t.Fatal(err)
	}
	return book
}

func allocate(t *testing.T, book *Book, owner string, seconds int) []netip.Addr {
	t.Helper()
	addrs, err := book.Allocate(owner, at(seconds))
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

// list prints a book as `tendril ipam list` might.
func list(book *Book) []string {
	var lines []string
	for _, a := range book.List() {
		lines = append(lines, fmt.Sprintf("%s %s %s %s", a.Addr, a.Pool, a.State, a.Owner))
	}
	return lines
}

func wantList(t *testing.T, book *Book, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, list(book)); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func wantAddrs(t *testing.T, got []netip.Addr, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("addresses are %v, want %v", got, want)
	}
}

func TestRouterAndHealthComeFirst(t *testing.T) {
	book := newBook(t, "fd01::/64", "10.1.0.0/24")
	wantAddrs(t, book.Routers(), "10.1.0.1", "fd01::1")
	wantAddrs(t, book.Healths(), "10.1.0.2", "fd01::2")
	wantAddrs(t, allocate(t, book, "default/web", 0), "10.1.0.3", "fd01::3")
	wantList(t, book,
		"10.1.0.1 10.1.0.0/24 used router", "10.1.0.2 10.1.0.0/24 used health", "10.1.0.3 10.1.0.0/24 used default/web",
		"fd01::1 fd01::/64 used router", "fd01::2 fd01::/64 used health", "fd01::3 fd01::/64 used default/web")
}

func TestReleasedAddressRestsFromItsCommit(t *testing.T) {
	book := newBook(t, "10.1.0.0/29") // room for four pods
	for i := range 4 {
		allocate(t, book, fmt.Sprintf("default/p%d", i), 0)
	}
	book.Release(addr("10.1.0.4"), at(10))
	for _, seconds := range []int{11, 100, 100_000} { // the store is away: however long, it is not given out
		if _, err := book.Allocate("default/new", at(seconds)); err == nil {
			t.Fatalf("after %d s an address was given out whose release nobody knows", seconds)
		}
	}
	book.Committed(addr("10.1.0.4"), at(200))
	if _, err := book.Allocate("default/new", at(259)); err == nil {
		t.Error("an address was given out after 59 s of rest")
	}
	wantAddrs(t, allocate(t, book, "default/new", 260), "10.1.0.4")
}

func TestNeverUsedGoBeforeRestedAndThoseLongestAtRestFirst(t *testing.T) {
	book := newBook(t, "10.1.0.0/29")
	for i := range 3 {
		allocate(t, book, fmt.Sprintf("default/p%d", i), 0)
	}
	for i, a := range []string{"10.1.0.5", "10.1.0.3", "10.1.0.4"} {
		book.Release(addr(a), at(1))
		book.Committed(addr(a), at(10+i))
	}
	for _, want := range []string{"10.1.0.6", "10.1.0.5", "10.1.0.3", "10.1.0.4"} {
		wantAddrs(t, allocate(t, book, "default/new", 1000), want)
	}
}

func TestExhaustionNamesThePoolItsUseAndTheRemedy(t *testing.T) {
	book := newBook(t, "10.1.0.0/24", "fd01::/125")
	for i := range 4 {
		allocate(t, book, fmt.Sprintf("default/p%d", i), 0)
	}
	remedies := map[string]func(){
		"pool fd01::/125 has no free address: 6 used, 0 released, 0 cooling; give the node a larger pod CIDR or fewer pods": func() {},
		"pool fd01::/125 has no free address: 5 used, 1 released, 0 cooling; released ones cool only once the store has taken note": func() {
			book.Release(addr("fd01::3"), at(1))
		},
		"pool fd01::/125 has no free address: 5 used, 0 released, 1 cooling; the next is free in 52s": func() {
			book.Committed(addr("fd01::3"), at(2))
		},
	}
	for _, want := range slices.SortedFunc(maps.Keys(remedies), func(a, b string) int { return strings.Compare(key(a), key(b)) }) {
		remedies[want]()
		before := list(book)
		_, err := book.Allocate("default/new", at(10))
		var exhausted *Exhausted
		if !errors.As(err, &exhausted) || err.Error() != want {
			t.Errorf("error is %v\nwant %s", err, want)
		}
		if diff := cmp.Diff(before, list(book)); diff != "" {
			t.Errorf("a refused allocation changed the book:\n%s", diff)
		}
	}
}

// key orders the messages above as things happen: all used, one released, one cooling.
func key(message string) string {
	switch {
	case strings.Contains(message, "1 released"):
		return "1"
	case strings.Contains(message, "1 cooling"):
		return "2"
	}
	return "0"
}

func TestForgottenAddressIsGivenOutAtOnce(t *testing.T) {
	book := newBook(t, "10.1.0.0/24")
	allocate(t, book, "default/a", 0)
	allocate(t, book, "default/b", 0)
	book.Forget(addr("10.1.0.3"))
	book.Forget(addr("10.1.0.1")) // the router's is not forgotten
	wantAddrs(t, allocate(t, book, "default/c", 0), "10.1.0.3")
	wantAddrs(t, book.Routers(), "10.1.0.1")
}

func TestReleasingWhatIsNotUsedDoesNothing(t *testing.T) {
	book := newBook(t, "10.1.0.0/24")
	before := list(book)
	for _, a := range []string{"10.1.0.1", "10.1.0.2", "10.1.0.77", "192.0.2.1", "fd01::1"} {
		book.Release(addr(a), at(0))
		book.Committed(addr(a), at(0))
	}
	wantList(t, book, before...)
}

func TestRestoredBookGoesOnWhereItWas(t *testing.T) {
	book := newBook(t, "10.1.0.0/24")
	restore := []Address{
		{Addr: addr("10.1.0.6"), Owner: "default/b", State: Used},
		{Addr: addr("10.1.0.4"), Owner: "default/a", State: Released},
		{Addr: addr("10.1.0.5"), Owner: "default/c", State: Cooling, Since: at(0)},
	}
	for _, a := range restore {
		if err := book.Restore(a); err != nil {
			t.Fatal(err)
		}
	}
	wantAddrs(t, allocate(t, book, "default/d", 1), "10.1.0.3") // jumped over, never used
	wantAddrs(t, allocate(t, book, "default/e", 1), "10.1.0.7")
	wantList(t, book,
		"10.1.0.1 10.1.0.0/24 used router", "10.1.0.2 10.1.0.0/24 used health", "10.1.0.3 10.1.0.0/24 used default/d",
		"10.1.0.4 10.1.0.0/24 released default/a", "10.1.0.5 10.1.0.0/24 cooling default/c",
		"10.1.0.6 10.1.0.0/24 used default/b", "10.1.0.7 10.1.0.0/24 used default/e")
}

func TestWhatCannotBeRestored(t *testing.T) {
	book := newBook(t, "10.1.0.0/24", "fd01::/64")
	before := list(book)
	for name, a := range map[string]Address{
		"outside the node's pools": {Addr: addr("10.2.0.5"), State: Used},
		"unknown state":            {Addr: addr("10.1.0.5"), State: "lost"},
		"never given out":          {Addr: addr("10.1.0.255"), State: Used},
		"used by router already":   {Addr: addr("10.1.0.1"), State: Used},
		"too far from fd01::3":     {Addr: addr("fd01::1:0:0:0"), State: Used},
	} {
		a.Owner = "default/web"
		if err := book.Restore(a); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("restore %s: %v, want %q", a.Addr, err, name)
		}
	}
	wantList(t, book, before...)
}

func TestBadPoolsAreRefusedWithTheRemedy(t *testing.T) {
	for want, prefixes := range map[string][]netip.Prefix{
		"give the node at least one":  {},
		"write it as 10.1.0.0/24":     {{}},
		"write 10.1.0.0/24":           {prefix("10.1.0.5/24")},
		"use /29 or /125 or larger":   {prefix("10.1.0.0/30")},
		"already is a prefix":         {prefix("10.1.0.0/24"), prefix("10.2.0.0/24")},
		"an IPv4-mapped prefix":       {prefix("::ffff:10.1.0.0/120")},
		"/125 or larger":              {prefix("fd01::/126")},
		"owner \"\" is empty":         nil,
		"owner \"router\" is empty o": nil,
	} {
		_, err := New(prefixes...)
		if prefixes == nil {
			_, owner, _ := strings.Cut(want, `"`)
			owner, _, _ = strings.Cut(owner, `"`)
			_, err = newBook(t, "10.1.0.0/24").Allocate(owner, at(0))
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pools %v: %v, want %q", prefixes, err, want)
		}
	}
}

// model is the obvious book: every address of the pool with its history, searched from end to end.
type model struct {
	owner     map[netip.Addr]string
	committed map[netip.Addr]time.Time // since when it rests
	used      map[netip.Addr]bool      // at any time
	pool      []netip.Addr
}

func newModel(p netip.Prefix) *model {
	m := &model{
		owner: make(map[netip.Addr]string), committed: make(map[netip.Addr]time.Time), used: make(map[netip.Addr]bool),
	}
	for a := p.Addr().Next(); p.Contains(a.Next()); a = a.Next() {
		m.pool = append(m.pool, a)
	}
	m.pool = m.pool[2:]
	return m
}

// choose is the specification: the lowest never used, else the one longest at rest for 60 s and more.
func (m *model) choose(now time.Time) (best netip.Addr) {
	for _, a := range m.pool {
		if !m.used[a] {
			return a
		}
	}
	for _, a := range m.pool {
		since, rests := m.committed[a]
		if rests && now.Sub(since) >= time.Minute && (!best.IsValid() || since.Before(m.committed[best])) {
			best = a
		}
	}
	return best
}

func TestBookAgreesWithItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := prefix(rapid.SampledFrom([]string{"10.1.0.0/28", "fd01::/124"}).Draw(t, "pool"))
		book, err := New(pool)
		if err != nil {
			t.Fatal(err)
		}
		m, now, count := newModel(pool), at(0), 0
		some := func() netip.Addr { return rapid.SampledFrom(m.pool).Draw(t, "address") }
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				count++
				owner, want := fmt.Sprint("pod-", count), m.choose(now)
				got, err := book.Allocate(owner, now)
				if want.IsValid() != (err == nil) || err == nil && got[0] != want {
					t.Fatalf("allocated %v, %v; want %s", got, err, want)
				}
				if err == nil {
					m.owner[want], m.used[want] = owner, true
					delete(m.committed, want)
				}
			},
			"release": func(*rapid.T) {
				a := some()
				book.Release(a, now)
				if m.owner[a] != "" {
					m.owner[a] = "released"
				}
			},
			"commit": func(*rapid.T) {
				a := some()
				book.Committed(a, now)
				if m.owner[a] == "released" {
					m.committed[a] = now
					delete(m.owner, a)
				}
			},
			"forget": func(*rapid.T) {
				a := some()
				book.Forget(a)
				if o := m.owner[a]; o != "" && o != "released" {
					delete(m.owner, a)
					delete(m.used, a)
				}
			},
			"wait":    func(*rapid.T) { now = now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second) },
			"restart": func(t *rapid.T) { book = restarted(t, pool, book) },
			"":        func(t *rapid.T) { compareWithModel(t, book, m) },
		})
	})
}

// restarted makes a book from what another one lists, in the reverse order.
func restarted(t *rapid.T, pool netip.Prefix, old *Book) *Book {
	book, err := New(pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range slices.Backward(old.List()) {
		if reserved(a.Owner) {
			continue
		}
		if err := book.Restore(a); err != nil {
			t.Fatal(err)
		}
	}
	return book
}

func compareWithModel(t *rapid.T, book *Book, m *model) {
	for _, a := range m.pool {
		got, taken := book.Lookup(a)
		want := Address{}
		_, rests := m.committed[a]
		switch {
		case m.owner[a] == "released":
			want.State = Released
		case m.owner[a] != "":
			want.State, want.Owner = Used, m.owner[a]
		case rests:
			want.State = Cooling
		}
		if taken != (want.State != "") || got.State != want.State || want.Owner != "" && got.Owner != want.Owner {
			t.Fatalf("%s is %+v, want %+v", a, got, want)
		}
	}
}

func TestBookKnowsWhichAddressesAreItsOwn(t *testing.T) {
	book := newBook(t, "10.1.0.0/24", "fd01::/64")
	for text, want := range map[string]bool{
		"10.1.0.0": true, "10.1.0.77": true, "10.1.0.255": true, "10.1.1.0": false, "10.0.255.255": false,
		"fd01::": true, "fd01::1:2:3:4": true, "fd01:0:0:1::": false, "::ffff:10.1.0.7": false,
	} {
		if got := book.Contains(addr(text)); got != want {
			t.Errorf("%s is of the node: %t, want %t", text, got, want)
		}
	}
	if book.Contains(netip.Addr{}) {
		t.Error("no address is of the node")
	}
}

// TestRestingAddressesKeepTheirOrderHoweverTheyAreRestored: the one that rests longest is the next, because it is the one
// that the fewest nodes remember.
func TestRestingAddressesKeepTheirOrderHoweverTheyAreRestored(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		book, err := New(prefix("10.1.0.0/28"))
		if err != nil {
			t.Fatal(err)
		}
		var cooling []Address
		for last := 3; last <= 14; last++ {
			cooling = append(cooling, Address{
				Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(last)}), Owner: "default/a", State: Cooling,
				Since: at(rapid.IntRange(0, 5).Draw(t, "since")),
			})
		}
		for _, a := range rapid.Permutation(cooling).Draw(t, "order") {
			if err := book.Restore(a); err != nil {
				t.Fatal(err)
			}
		}
		slices.SortStableFunc(cooling, func(a, b Address) int { return a.Since.Compare(b.Since) })
		for i, want := range cooling {
			got, err := book.Allocate(fmt.Sprint("pod-", i), at(100))
			if err != nil || got[0] != want.Addr {
				t.Fatalf("address %d is %v, %v; want %s", i, got, err, want.Addr)
			}
		}
	})
}

// TestJournalGoneAstrayCannotFillTheMemory: what lies between the first free address and a restored one is remembered
// address by address, so there is a bound to it.
func TestJournalGoneAstrayCannotFillTheMemory(t *testing.T) {
	// The first free address is fd01::3.
	for text, refused := range map[string]bool{"fd01::10:3": false, "fd01::10:4": true, "fd01::ffff:ffff:ffff:fffe": true} {
		book := newBook(t, "fd01::/64")
		err := book.Restore(Address{Addr: addr(text), Owner: "default/a", State: Used})
		if refused != (err != nil && strings.Contains(err.Error(), "too far")) {
			t.Errorf("restore %s: %v, want refused: %t", text, err, refused)
		}
		wantAddrs(t, allocate(t, book, "default/b", 0), "fd01::3")
	}
}

func TestClaimedAddressesAreTakenWhereverTheyComeFrom(t *testing.T) {
	book := newBook(t, "10.1.0.0/24", "fd01::/64")
	now := time.Unix(1000, 0)
	mine, _ := book.Allocate("a", now)
	foreign, inside := netip.MustParseAddr("10.22.0.5"), mine[0].Next().Next()
	if err := book.Claim([]netip.Addr{foreign, inside}, "b", now); err != nil {
		t.Fatal(err)
	}
	for _, refused := range [][]netip.Addr{{foreign}, {mine[0]}, {book.Routers()[0]}, {book.Pools()[0].Addr()}, {netip.MustParseAddr("10.22.0.9"), inside}} {
		if err := book.Claim(refused, "c", now); err == nil {
			t.Errorf("%v was claimed twice", refused)
		}
	}
	if _, taken := book.Lookup(netip.MustParseAddr("10.22.0.9")); taken {
		t.Error("a claim that was refused took one of its addresses")
	}
	next, _ := book.Allocate("d", now)
	after, _ := book.Allocate("e", now)
	if next[0] == inside || after[0] == inside {
		t.Errorf("claimed %s was given out as well", inside)
	}
	book.Release(foreign, now)
	book.Release(inside, now)
	if err := book.Claim([]netip.Addr{inside, foreign}, "f", now); err != nil {
		t.Errorf("what was released is claimed again: %v", err)
	}
	book.Committed(inside, now) // of the release before
	for _, addr := range []netip.Addr{inside, foreign} {
		if taken, _ := book.Lookup(addr); taken.Owner != "f" || taken.State != Used {
			t.Errorf("%s is %+v", addr, taken)
		}
	}
	book.Release(foreign, now)
	book.Committed(foreign, now)
	if _, taken := book.Lookup(foreign); taken {
		t.Error("an address of no pool is kept after its release was noted")
	}
	book.Claim([]netip.Addr{foreign}, "g", now)
	if book.Forget(foreign); len(book.foreign) != 0 {
		t.Error("an address of no pool is kept although nobody heard of it")
	}
}
