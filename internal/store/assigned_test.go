package store_test

import (
	"fmt"
	"testing"

	storev1 "tendril.io/tendril/api/store/v1"
	. "tendril.io/tendril/internal/store"
)

func TestANodeReadsItsPodCIDRsBeforeItHasTables(t *testing.T) {
	w := newWorld(t)
	w.fill(
		Record{Key: "nodelabels/n1", Value: &storev1.NodeLabels{PodCidrs: []string{"10.0.1.0/24", "fd00:1::/64"}}},
		Record{Key: "nodelabels/n2", Value: &storev1.NodeLabels{Labels: map[string]string{"role": "edge"}}},
		Record{Key: "nodelabels/n4", Value: &storev1.NodeLabels{PodCidrs: []string{"10.0.1.0"}}},
	)
	for node, want := range map[string]string{
		"n1": "[10.0.1.0/24 fd00:1::/64] <nil>",
		"n2": "[] <nil>",
		"n3": "[] <nil>",
		"n4": `[] key "nodelabels/n4": pod_cidrs: netip.ParsePrefix("10.0.1.0"): no '/'`,
	} {
		client, err := Dial(Config{
			Endpoints: []string{w.clientAddr}, Publish: []string{w.publishAddr}, Cluster: cluster, Node: node, JournalPath: t.TempDir() + "/journal",
		})
		if err != nil {
			t.Fatal(err)
		}
		cidrs, err := client.PodCIDRs(t.Context())
		if got := fmt.Sprint(cidrs, " ", err); got != want {
			t.Errorf("%s: got %s, want %s", node, got, want)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}
