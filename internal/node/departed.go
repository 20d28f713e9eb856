package node

import (
	"sync"
	"time"

	"tendril.io/tendril/internal/flow"
)

// departed remembers for a while who had an address, or a pod's uid, that is nobody's now. Flow records are named when they are read,
// and the most asked-for ones are of a pod that has just gone. It holds at most two generations of departedMax names:
// what is older than one and a half departedFor on average is forgotten as a whole, without a list in order of age.
type departed[Key comparable] struct {
	now func() time.Time

	mu       sync.Mutex
	young    map[Key]flow.PartyInfo
	old      map[Key]flow.PartyInfo
	turnedAt time.Time
}

// A generation ends after departedFor or departedMax names (about 200 B each), whichever is first.
const (
	departedFor = 5 * time.Minute
	departedMax = 4096
)

func newDeparted[Key comparable]() *departed[Key] {
	return &departed[Key]{now: time.Now, young: map[Key]flow.PartyInfo{}}
}

// note remembers who had a key.
func (d *departed[Key]) note(key Key, who flow.PartyInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn()
	d.young[key] = who
}

// find returns who had a key last.
func (d *departed[Key]) find(key Key) (flow.PartyInfo, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn()
	if who, ok := d.young[key]; ok {
		return who, true
	}
	who, ok := d.old[key]
	return who, ok
}

// turn lets the older generation go when the younger one's time is over. The caller holds mu.
func (d *departed[Key]) turn() {
	now := d.now()
	if d.turnedAt.IsZero() {
		d.turnedAt = now
	}
	age := now.Sub(d.turnedAt)
	if age < departedFor && len(d.young) < departedMax {
		return
	}
	d.old, d.young, d.turnedAt = d.young, map[Key]flow.PartyInfo{}, now
	if age >= 2*departedFor { // nobody looked for so long that both are too old
		d.old = nil
	}
}
