package bpf

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A CPU tells so many clients that nobody is there as UNREACHABLE_RATE and UNREACHABLE_BURST allow, by the instant up to which places are
// taken. The rest is dropped as before, and counted. The test sets that instant, since packets alone would measure the machine.
func TestClientsAreToldAtAPaceThatNobodyIsThere(t *testing.T) {
	needRoot(t)
	s := newStage(t)
	for _, command := range []string{"endpoint 1 10.1.0.2 fd01::2 peer=20", "service udp 10.96.0.9:53"} {
		if _, err := s.do(command); err != nil {
			t.Fatal(err)
		}
	}
	const place = time.Second / time.Duration(UnreachableRate)
	const burst = place * time.Duration(UnreachableBurst)
	for _, c := range []struct {
		name  string
		taken time.Duration // from now
		told  bool
	}{
		{"nothing was sent for long", -time.Hour, true},
		{"half of a burst was sent", burst / 2, true},
		{"a burst was sent, and more at a later time", burst + time.Hour, false},
		{"all of a burst but a place was sent a minute ago", burst - place - time.Minute, true},
	} {
		before := []uint64{s.tally(t, TallyUnreachableSent), s.tally(t, TallyUnreachableHeld)}
		began := monotonic(t)
		taken := uint64(max(0, int64(began)+int64(c.taken)))
		s.pace(t, taken)
		answer, err := s.do("from_pod 1 udp 10.1.0.2:1 > 10.96.0.9:53")
		ended := monotonic(t)
		if err != nil || strings.HasPrefix(answer, "redirect: no-backend") != c.told || !strings.Contains(answer, "no-backend") {
			t.Errorf("%s: %s (%v), want an answer: %v", c.name, answer, err, c.told)
		}
		sent, held := s.tally(t, TallyUnreachableSent)-before[0], s.tally(t, TallyUnreachableHeld)-before[1]
		if sent+held != 1 || sent == 1 != c.told {
			t.Errorf("%s: counted %d sent and %d held", c.name, sent, held)
		}
		least, most := max(taken, began)+uint64(place), max(taken, ended)+uint64(place)
		if !c.told {
			least, most = taken, taken
		}
		if got := slices.Max(s.paces(t)); got < least || got > most {
			t.Errorf("%s: places are taken up to %d, want %d to %d", c.name, got, least, most)
		}
	}
}

// monotonic is the programs' clock.
func monotonic(t *testing.T) uint64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return uint64(now.Nano())
}

// pace sets the instant of every CPU, since a test does not choose the one that it runs on.
func (s *stage) pace(t *testing.T, taken uint64) {
	t.Helper()
	all := slices.Repeat([]uint64{taken}, len(s.paces(t)))
	if err := s.maps["unreachable_pace"].Put(uint32(0), all); err != nil {
		t.Fatal(err)
	}
}

// paces are the instants of all CPUs.
func (s *stage) paces(t *testing.T) (taken []uint64) {
	t.Helper()
	if err := s.maps["unreachable_pace"].Lookup(uint32(0), &taken); err != nil {
		t.Fatal(err)
	}
	return taken
}

// tally is what all CPUs have counted.
func (s *stage) tally(t *testing.T, which Tally) (sum uint64) {
	t.Helper()
	var counts []uint64
	if err := s.maps["tallies"].Lookup(uint32(which), &counts); err != nil {
		t.Fatal(err)
	}
	for _, count := range counts {
		sum += count
	}
	return sum
}
