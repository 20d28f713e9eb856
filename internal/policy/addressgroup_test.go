package policy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/policy"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func group(name string, ranges ...string) policy.Group {
	return policy.Group{Kind: policy.GroupCIDR, Name: name, Prefixes: prefixes(ranges...)}
}

func (n *node) setGroup(t testing.TB, g policy.Group) {
	t.Helper()
	if err := n.engine.SetGroup(g); err != nil {
		t.Fatal(err)
	}
}

func (n *node) fromGroup(t testing.TB, ref policy.GroupRef) {
	t.Helper()
	mustSet(t, n.engine, allow("db", "db", policy.Rule{Peers: []policy.Peer{{Group: &ref}}}))
	n.flush(t, nil)
}

func TestGroupHoldsTheAddressesOfTheMoment(t *testing.T) {
	n := shop(t)
	n.fromGroup(t, policy.GroupRef{Kind: policy.GroupCIDR, Name: "office", Except: prefixes("9.9.9.9/32")})
	for _, step := range []struct {
		ranges []string
		want   map[string]string
	}{
		{nil, map[string]string{"9.9.9.8": "deny", "8.8.8.8": "deny"}},
		{[]string{"9.9.9.0/24", "::ffff:8.8.8.8/128"}, map[string]string{"9.9.9.8": "allow", "9.9.9.9": "deny", "8.8.8.8": "allow", "8.8.8.9": "deny"}},
		{[]string{"10.0.0.3/32"}, map[string]string{"9.9.9.8": "deny", "10.0.0.3": "allow", "10.0.0.2": "deny"}},
	} {
		n.setGroup(t, group("office", step.ranges...))
		if delta := n.flush(t, nil); len(delta.Programs) != 0 || delta.Changed != (step.ranges != nil) {
			t.Errorf("group of %v: got %+v, want no program to change, and the verdict epoch to rise if an address moved", step.ranges, delta)
		}
		for addr, want := range step.want {
			if got := n.judge(t, packetTo(1, addr, 80)).Action; got != want {
				t.Errorf("group of %v: from %s: got %s, want %s", step.ranges, addr, got, want)
			}
		}
	}
	n.engine.DeleteGroup(policy.GroupCIDR, "", "office")
	n.flush(t, nil)
	if got := n.judge(t, packetTo(1, "10.0.0.3", 80)).Action; got != "deny" {
		t.Errorf("after the group has gone: got %s, want deny", got)
	}
}

func TestGroupsAreFoundByLabelsAndNamespace(t *testing.T) {
	tier := label.MustSelector(label.Equals("tier", "db"))
	service := func(namespace, name, tier, prefix string) policy.Group {
		return policy.Group{
			Kind: policy.GroupService, Namespace: namespace, Name: name, Prefixes: prefixes(prefix),
			Labels: label.SetOf(map[string]string{"tier": tier}),
		}
	}
	for sentence, test := range map[string]struct {
		ref  policy.GroupRef
		want string // last numbers of the addresses that are held
	}{
		"by name":                       {policy.GroupRef{Kind: policy.GroupService, Namespace: "shop", Name: "a"}, "1"},
		"by name in any namespace":      {policy.GroupRef{Kind: policy.GroupService, Name: "a"}, "1 3"},
		"by labels":                     {policy.GroupRef{Kind: policy.GroupService, Labels: &tier}, "1 3"},
		"by labels in one namespace":    {policy.GroupRef{Kind: policy.GroupService, Namespace: "shop", Labels: &tier}, "1"},
		"of another kind":               {policy.GroupRef{Kind: policy.GroupCIDR, Name: "a"}, "4"},
		"of what is not there":          {policy.GroupRef{Kind: policy.GroupService, Namespace: "shop", Name: "z"}, ""},
		"of what is inside the cluster": {policy.GroupRef{Kind: policy.GroupService, Namespace: "shop", Name: "pod", OutsideOnly: true}, ""},
	} {
		n := shop(t)
		n.setGroup(t, service("shop", "a", "db", "9.0.0.1/32"))
		n.setGroup(t, service("shop", "b", "web", "9.0.0.2/32"))
		n.setGroup(t, service("till", "a", "db", "9.0.0.3/32"))
		n.setGroup(t, service("shop", "pod", "", "10.0.0.2/32"))
		n.setGroup(t, group("a", "9.0.0.4/32"))
		n.fromGroup(t, test.ref)
		var got []string
		for i := range 6 {
			if n.judge(t, packetTo(1, fmt.Sprint("9.0.0.", i), 80)).Action == "allow" {
				got = append(got, fmt.Sprint(i))
			}
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("%s: got %q, want %q", sentence, got, test.want)
		}
		if got := n.judge(t, packetTo(1, "10.0.0.2", 80)).Action; got != "deny" {
			t.Errorf("%s: a pod: got %s, want deny", sentence, got)
		}
	}
}

// A group that changes costs what changes, however large it is.
func TestChangedGroupTouchesTheDifference(t *testing.T) {
	n := crowd(t, 1)
	n.fromGroup(t, policy.GroupRef{Kind: policy.GroupCIDR, Name: "office"})
	g := group("office")
	for i := range 1000 {
		n.engine.SetAddress(stranger(i))
		g.Prefixes = append(g.Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32))
	}
	n.setGroup(t, g)
	n.flush(t, nil)
	g.Prefixes = append(g.Prefixes[1:], prefixes("9.9.9.9/32")...)
	n.setGroup(t, g)
	delta := n.flush(t, nil)
	if got, want := delta.Work.AddressesEvaluated, 2; got != want {
		t.Errorf("got %d addresses looked at, want %d: %+v", got, want, delta.Work)
	}
	if len(delta.Set) != 2 || delta.Work.ProgramsCompiled != 0 {
		t.Errorf("got %+v, want two addresses written and no program", delta)
	}
	n.setGroup(t, g)
	if delta := n.flush(t, nil); !delta.Empty() || delta.Changed || delta.Work != (policy.Work{}) {
		t.Errorf("after hearing the same again: got %+v, want nothing", delta)
	}
}

// While a group changes from a range to one inside it, or back, what both hold is held.
func TestAddressThatStaysInAGroupIsNeverOutOfIt(t *testing.T) {
	n := shop(t)
	n.fromGroup(t, policy.GroupRef{Kind: policy.GroupCIDR, Name: "office"})
	ranges := []string{"0.0.0.0/0", "9.9.0.0/16", "0.0.0.0/0", "9.0.0.0/8", "9.0.0.0/8", "9.9.9.0/24", "9.9.0.0/16"}
	n.setGroup(t, group("office", ranges[0]))
	n.flush(t, nil)
	for _, next := range ranges[1:] {
		n.setGroup(t, group("office", next))
		n.flush(t, func(stage string) {
			if got := n.judge(t, packetTo(1, "9.9.9.9", 80)).Action; got != "allow" {
				t.Errorf("on the way to %s, after a row of %s: got %s, want allow", next, stage, got)
			}
		})
	}
}

func TestProofSaysWhichGroupDoesNotHoldThePeer(t *testing.T) {
	n := shop(t)
	n.fromGroup(t, policy.GroupRef{Kind: policy.GroupCIDR, Name: "office", Except: prefixes("9.0.0.0/8", "8.0.0.0/8")})
	unknown := "the rule wants cidr group office except 8.0.0.0/8 and 9.0.0.0/8, which this node does not know: is there such an object?"
	if got := n.ingressProof("7.7.7.7", tcp, 80).Nearest; !strings.HasSuffix(got, unknown) {
		t.Errorf("got %q, want %q", got, unknown)
	}
	if err := n.engine.SetGroup(policy.Group{Kind: policy.GroupCIDR, Name: "office"}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.engine.Flush(); err != nil {
		t.Fatal(err)
	}
	if got, want := n.ingressProof("7.7.7.7", tcp, 80).Nearest, "peer 7.7.7.7 is not in cidr group office except 8.0.0.0/8 and 9.0.0.0/8"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	services := label.MustSelector(label.Equals("tier", "db"))
	for want, ref := range map[string]policy.GroupRef{
		"service shop/db":                   {Kind: policy.GroupService, Namespace: "shop", Name: "db"},
		"service */db":                      {Kind: policy.GroupService, Name: "db"},
		"services tier=db of any namespace": {Kind: policy.GroupService, Labels: &services},
		"services tier=db of namespace shop, outside the cluster": {Kind: policy.GroupService, Namespace: "shop", Labels: &services, OutsideOnly: true},
		"cidr groups tier=db": {Kind: policy.GroupCIDR, Labels: &services},
	} {
		if got := ref.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestInvalidGroupIsRefusedByName(t *testing.T) {
	n := shop(t)
	if err := n.engine.SetGroup(policy.Group{Kind: policy.GroupCIDR, Name: "office", Prefixes: []netip.Prefix{{}}}); err == nil || !strings.Contains(err.Error(), "cidr group office: prefix invalid Prefix: want") {
		t.Errorf("got error %v, want the group and the prefix named", err)
	}
	any := label.MustSelector()
	for want, ref := range map[string]policy.GroupRef{
		`no such kind of group "dns"`:                            {Kind: "dns", Name: "x"},
		"cidr: give the group's name or a selector of labels":    {Kind: policy.GroupCIDR},
		"service: give the group's name or a selector of labels": {Kind: policy.GroupService, Name: "x", Labels: &any},
		`cidr group x: has no namespace, remove "shop"`:          {Kind: policy.GroupCIDR, Name: "x", Namespace: "shop"},
		`no object can have such a name`:                         {Kind: policy.GroupService, Name: "a/b"},
		"range ::ffff:10.0.0.0/104: want an IPv4 or IPv6":        {Kind: policy.GroupCIDR, Name: "x", Except: prefixes("::ffff:10.0.0.0/104")},
	} {
		p := allow("db", "db", policy.Rule{Peers: []policy.Peer{{Group: &ref}}})
		if err := n.engine.SetPolicy(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got error %v, want %q", ref, err, want)
		}
	}
}
