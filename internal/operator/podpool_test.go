package operator

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
	"pgregory.net/rapid"

	storev1 "tendril.io/tendril/api/store/v1"
)

func TestAPodPoolIsReadWholeOrRefusedWithARemedy(t *testing.T) {
	for text, says := range map[string]string{
		"default=10.0.0.0/16:24,fd00::/48:64":  "",
		"10.0.0.0/16:24":                       "write NAME=PREFIX:BITS",
		"a=10.0.0.0/16":                        "write PREFIX:BITS",
		"a=":                                   "write PREFIX:BITS",
		"a=10.0.0.1/16:24":                     "write 10.0.0.0/16",
		"a=10.0.0.0/16:15":                     "16 to 30 bits",
		"a=10.0.0.0/16:31":                     "16 to 30 bits",
		"a=10.0.0.0/16:x":                      "16 to 30 bits",
		"a=10.0.0.0/16:24,10.1.0.0/16:24":      "second range of its family",
		"a=10.0.0.0/16:24,fd00::/48:64,::/0:1": "second range of its family",
	} {
		pool, err := ParsePodPool(text)
		if says == "" {
			want := PodPool{"default", []PodRange{{netip.MustParsePrefix("10.0.0.0/16"), 24}, {netip.MustParsePrefix("fd00::/48"), 64}}}
			if err != nil || !slices.Equal(pool.Ranges, want.Ranges) || pool.Name != want.Name {
				t.Errorf("%s: got %v, %v, want %v", text, pool, err, want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want an error with %q", text, err, says)
		}
	}
}

// The reference tries every prefix of the range in order.
func TestTheNextPrefixIsTheLowestThatOverlapsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := netip.AddrFrom4([4]byte{255, 255, 255, 0}) // at the end of all addresses
		if rapid.Bool().Draw(t, "within") {
			at = netip.AddrFrom4([4]byte{10, 0, 0, 0})
		}
		r := PodRange{netip.PrefixFrom(at, 24), rapid.IntRange(24, 28).Draw(t, "bits")}
		var taken []netip.Prefix
		for range rapid.IntRange(0, 12).Draw(t, "count") {
			bytes := at.As4()
			bytes[3] = rapid.Byte().Draw(t, "last")
			taken = append(taken, netip.PrefixFrom(netip.AddrFrom4(bytes), rapid.IntRange(23, 30).Draw(t, "length")).Masked())
		}
		slices.SortFunc(taken, byAddr)
		var want netip.Prefix
		for i := range 1 << (r.Bits - 24) {
			bytes := at.As4()
			bytes[3] = byte(i << (32 - r.Bits))
			p := netip.PrefixFrom(netip.AddrFrom4(bytes), r.Bits)
			if !slices.ContainsFunc(taken, p.Overlaps) {
				want = p
				break
			}
		}
		if got, ok := r.next(taken); got != want || ok != want.IsValid() {
			t.Fatalf("%v of %v: got %v, %v, want %v", r, taken, got, ok, want)
		}
	})
}

// bare is a node without pod CIDRs.
func bare(name, pool string) *corev1.Node {
	n := node()
	n.Name, n.UID = name, types.UID("uid-"+name)
	if pool != "" {
		n.Annotations = map[string]string{AnnotationPodPool: pool}
	}
	return n
}

// serveSpecs has the fake API server take what is applied to Nodes, as a real one does.
func serveSpecs(c *cluster, refuse map[string]int) {
	c.objects.PrependReactor("patch", "nodes", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchActionImpl)
		if refuse[patch.Name]--; refuse[patch.Name] >= 0 {
			return true, nil, errors.New("refused")
		}
		var body corev1.Node
		if err := json.Unmarshal(patch.Patch, &body); err != nil || patch.PatchType != types.ApplyPatchType || body.UID != types.UID("uid-"+patch.Name) {
			c.t.Errorf("patch %s: %v", patch.Patch, err)
		}
		object, err := c.objects.Tracker().Get(patch.GetResource(), "", patch.Name)
		if err != nil {
			return true, nil, err
		}
		stored := raw(c.t, object).DeepCopy()
		stored.Object["spec"] = map[string]any{"podCIDR": body.Spec.PodCIDR, "podCIDRs": toAny(body.Spec.PodCIDRs)}
		return true, stored, c.objects.Tracker().Update(patch.GetResource(), stored, "")
	})
}

func toAny(texts []string) (list []any) {
	for _, text := range texts {
		list = append(list, text)
	}
	return list
}

// cidrs are those of the nodes of the API server, by name.
func (c *cluster) cidrs() map[string]string {
	list, err := c.in("nodes", "").List(c.t.Context(), metav1.ListOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	all := map[string]string{}
	for i := range list.Items {
		var texts []string
		for _, prefix := range prefixesOf(&list.Items[i]) {
			texts = append(texts, prefix.String())
		}
		all[list.Items[i].GetName()] = strings.Join(texts, " ")
	}
	return all
}

func TestNodesGetPodCIDRsOfTheirPool(t *testing.T) {
	has := bare("b", "")
	has.Spec.PodCIDR = "10.0.0.0/24" // by the field's older form
	c := prepare(t, bare("a", ""), has, bare("c", "edge"), bare("d", "nobody"))
	serveSpecs(c, map[string]int{"a": 1})
	// An agent whose prefixes are from its own configuration, and which has no Node.
	c.memory.extra = map[string]*storev1.Node{"guest": {PodCidrs: []string{"10.0.1.0/25"}}}
	for _, text := range []string{"default=10.0.0.0/22:24,fd00::/62:64", "edge=10.9.0.0/24:24"} {
		pool, err := ParsePodPool(text)
		if err != nil {
			t.Fatal(err)
		}
		c.config.PodPools = append(c.config.PodPools, pool)
	}
	c.run()
	want := map[string]string{"a": "10.0.2.0/24 fd00::/64", "b": "10.0.0.0/24", "c": "10.9.0.0/24", "d": ""}
	c.until(func() string { return cmp.Diff(want, c.cidrs()) })
	c.until(func() string {
		record, _ := c.memory.get("nodelabels/a").(*storev1.NodeLabels)
		return cmp.Diff([]string{"10.0.2.0/24", "fd00::/64"}, record.GetPodCidrs())
	})

	// One more finds room, the next does not, until a node goes.
	for _, name := range []string{"e", "f"} {
		if _, err := c.in("nodes", "").Create(t.Context(), raw(t, bare(name, "")), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	want["e"], want["f"] = "10.0.3.0/24 fd00:0:0:1::/64", ""
	c.until(func() string { return cmp.Diff(want, c.cidrs()) })
	c.remove("nodes", "", "a")
	delete(want, "a")
	want["f"] = "10.0.2.0/24 fd00::/64"
	c.until(func() string { return cmp.Diff(want, c.cidrs()) })
}
