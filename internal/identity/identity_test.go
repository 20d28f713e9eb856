package identity_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

type who struct {
	cluster, namespace, account string
	labels                      map[string]string
}

func (w who) id() identity.ID {
	return identity.Of(w.cluster, w.namespace, w.account, label.SetOf(w.labels))
}

func (w who) encoding() []byte {
	return identity.AppendEncoding(nil, w.cluster, w.namespace, w.account, label.SetOf(w.labels))
}

func TestEncodingIsAsDocumented(t *testing.T) {
	got := hex.EncodeToString(who{"c", "ns", "", map[string]string{"b": "2", "a": ""}}.encoding())
	want := hex.EncodeToString([]byte("tendril-identity\x01" + "\x01c" + "\x02ns" + "\x00" + "\x02" + "\x01a\x00" + "\x01b\x012"))
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// The golden identities must never change: nodes of different releases must agree on them.
func TestGoldenIdentities(t *testing.T) {
	for _, golden := range []struct {
		who  who
		want string
	}{
		{who{"", "", "", nil}, "0e15ddcbf521b45d799134caabce7d7e"},
		{who{"lab", "shop", "default", map[string]string{"app": "web"}}, "f62719bd3abb0121f55ec1c61ed1b61a"},
		{who{"lab", "shop", "default", map[string]string{"app": "web", "example.com/tier": "front"}}, "fa4ded88d772a62a62de371b7e5766c3"},
		{who{"lab", strings.Repeat("a", 200), "", map[string]string{"k": strings.Repeat("v", 63)}}, "5836f5f5e70b736841bb6a67c306430b"},
	} {
		if got := golden.who.id().String(); got != golden.want {
			t.Errorf("%+v: got %s, want %s", golden.who, got, golden.want)
		}
	}
}

func drawWho(t *rapid.T) who {
	text := rapid.StringOfN(rapid.SampledFrom([]rune("ab\x01\x00")), 0, 3, -1)
	return who{text.Draw(t, "cluster"), text.Draw(t, "namespace"), text.Draw(t, "account"), rapid.MapOfN(text, text, 0, 3).Draw(t, "labels")}
}

func TestEncodingIsInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawWho(t), drawWho(t)
		same := a.cluster == b.cluster && a.namespace == b.namespace && a.account == b.account && label.SetOf(a.labels).Equal(label.SetOf(b.labels))
		if bytes.Equal(a.encoding(), b.encoding()) != same || (a.id() == b.id()) != same {
			t.Fatalf("%+v and %+v: same %v, encodings\n%x\n%x", a, b, same, a.encoding(), b.encoding())
		}
	})
}

func TestIDPrintsAndParses(t *testing.T) {
	id := who{cluster: "lab", namespace: "shop"}.id()
	got, err := identity.Parse(id.String())
	if err != nil || got != id {
		t.Errorf("got %v, %v, want %v", got, err, id)
	}
	for _, bad := range []string{"", "12", strings.Repeat("g", 32), id.String() + "00"} {
		if _, err := identity.Parse(bad); err == nil {
			t.Errorf("Parse(%q): got no error, want one", bad)
		}
	}
	if id.IsZero() || !(identity.ID{}).IsZero() {
		t.Errorf("only the zero ID is nobody's")
	}
}

func TestShortFormIsNeverAReservedNumber(t *testing.T) {
	if got := (identity.ID{}).Short(); got < 1<<31 {
		t.Errorf("got %d, want at least 2^31", got)
	}
	if got, want := (identity.ID{0x01, 0x02, 0x03, 0x04}).Short(), uint32(0x81020304); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestReservedIdentitiesHaveTheDatapathsNumbersAndNames(t *testing.T) {
	for _, r := range identity.AllReserved() {
		if got, want := r.Name(), bpf.ReservedPeer(r).String(); got != want {
			t.Errorf("reserved identity %d: got name %q, the datapath says %q", r, got, want)
		}
		if got, err := identity.ParseReserved(r.String()); err != nil || got != r {
			t.Errorf("ParseReserved(%s): got %v, %v", r, got, err)
		}
		if uint32(r) >= identity.FirstFree {
			t.Errorf("%s has number %d, which is free for others", r, r)
		}
	}
	if _, err := identity.ParseReserved("reserved:nobody"); err == nil {
		t.Error("ParseReserved(reserved:nobody): got no error, want one")
	}
	if got, want := identity.Reserved(99).String(), "reserved:99"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestIdentityDoesNotAllocate(t *testing.T) {
	labels := label.SetOf(map[string]string{"app": "web", "tier": "front"})
	if n := testing.AllocsPerRun(100, func() { identity.Of("lab", "shop", "default", labels) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}
