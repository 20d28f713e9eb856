package netlink

import (
	"os/exec"
	"slices"
	"testing"
)

func TestChainsAreListedByName(t *testing.T) {
	node := newNode(t)
	if names, err := node.Chains(); err != nil || len(names) != 0 {
		t.Errorf("in a new namespace: %v, %v", names, err)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, to make chains with: test/install.sh bench")
	}
	err := enter(node.namespace, func() error {
		return exec.Command("nft", "add table ip te; add chain ip te TE-ONE; add chain ip te TE-TWO; add table ip6 te; add chain ip6 te TE-ONE").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	names, err := node.Chains()
	slices.Sort(names)
	if want := []string{"TE-ONE", "TE-TWO"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("chains are %v, %v; want %v", names, err, want)
	}
}
