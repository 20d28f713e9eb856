package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// comparePrefixes compares prefixes as values.
func comparePrefixes() cmp.Option {
	return cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
}

func TestANodeTakesItsPodCIDRsFromTheStoreAndRemembersThem(t *testing.T) {
	first, second := netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.2.0/24")
	tiny := netip.MustParsePrefix("10.0.3.0/31")
	folder := t.TempDir()
	// answers of the store, one after the other; the last is repeated.
	for _, test := range []struct {
		sentence string
		answers  [][]netip.Prefix // nil: the store is away
		want     netip.Prefix
		asked    int
		left     []netip.Prefix
	}{
		{"a new node waits for the store, then for the operator", [][]netip.Prefix{nil, {}, {first}}, first, 3, nil},
		{"while the store is away they are the last ones", [][]netip.Prefix{nil}, first, 1, nil},
		{"what the store says counts, and the last ones are left", [][]netip.Prefix{{second}}, second, 1, []netip.Prefix{first}},
		{"prefixes without room are not taken", [][]netip.Prefix{{tiny}}, second, 1, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			ask := func(context.Context) ([]netip.Prefix, error) {
				answer := test.answers[min(asked, len(test.answers)-1)]
				asked++
				if answer == nil {
					return nil, errors.New("away")
				}
				return answer, nil
			}
			a := &Agent{config: Config{StateDir: folder}, log: slog.New(slog.DiscardHandler)}
			var left []netip.Prefix
			got, err := a.givenCIDRs(t.Context(), ask, func(old []netip.Prefix) error { left = old; return nil })
			if err != nil {
				t.Fatalf("%s: %v", test.sentence, err)
			}
			if diff := cmp.Diff(test.left, left, comparePrefixes()); diff != "" {
				t.Errorf("%s: left (-want +got):\n%s", test.sentence, diff)
			}
			if diff := cmp.Diff([]netip.Prefix{test.want}, got, comparePrefixes()); diff != "" || asked != test.asked {
				t.Errorf("%s: asked %d times, want %d (-want +got):\n%s", test.sentence, asked, test.asked, diff)
			}
		})
	}
}
