package operator

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
)

func TestEveryCustomKindThatIsReadIsDefined(t *testing.T) {
	own, err := ownDefinitions()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, definition := range append(own, readDefinitions()...) {
		got = append(got, definition.GetName())
	}
	want := []string{
		"loadbalancerpools.tendril.io", "egressgateways.tendril.io", "identities.tendril.io", "ciliumcidrgroups.cilium.io", "ciliumnetworkpolicies.cilium.io",
		"ciliumclusterwidenetworkpolicies.cilium.io", "clusternetworkpolicies.policy.networking.k8s.io",
		"adminnetworkpolicies.policy.networking.k8s.io", "baselineadminnetworkpolicies.policy.networking.k8s.io",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("definitions (-want +got):\n%s", diff)
	}
}

func TestOwnKindsAreAppliedAndOthersLeftAsTheyAre(t *testing.T) {
	c := prepare(t)
	var mu sync.Mutex
	var did []string
	note := func(what string) { mu.Lock(); did = append(did, what); mu.Unlock() }
	refuse := true
	c.objects.PrependReactor("*", "customresourcedefinitions", func(action clienttesting.Action) (bool, runtime.Object, error) {
		switch action := action.(type) {
		case clienttesting.PatchActionImpl:
			if action.PatchType != types.ApplyPatchType || action.PatchOptions.FieldManager != fieldManager {
				t.Errorf("patch %+v", action)
			}
			note("apply " + action.Name)
			return true, nil, nil
		case clienttesting.CreateActionImpl:
			name := action.Object.(interface{ GetName() string }).GetName()
			if strings.HasPrefix(name, "ciliumcidr") {
				return true, nil, apierrors.NewAlreadyExists(definitions.GroupResource(), name)
			}
			if strings.HasPrefix(name, "admin") && refuse {
				refuse = false
				return true, nil, apierrors.NewForbidden(definitions.GroupResource(), name, errAway)
			}
			note("create " + name)
			return true, action.Object, nil
		}
		t.Errorf("%s %s", action.GetVerb(), action.GetResource())
		return true, nil, nil
	})
	err := define(t.Context(), c.config)
	if err == nil || !strings.Contains(err.Error(), "define adminnetworkpolicies") || strings.Count(err.Error(), "define") != 1 {
		t.Errorf("got %v, want the one that was refused", err)
	}
	if len(did) != 7 || !slices.Contains(did, "apply egressgateways.tendril.io") || !slices.Contains(did, "apply loadbalancerpools.tendril.io") {
		t.Errorf("did %q, want three applied and four created", did)
	}
	if err := define(t.Context(), c.config); err != nil {
		t.Error(err)
	}
}
