package opinion

import (
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// A label that is missing is not in any list: so says Kubernetes, and so do we. cyclonus' matcher does not think so. None
// of its cases has such a pod; where one comes, this says who is right.
func TestNotInHoldsWhereTheLabelIsMissingAsKubernetesSays(t *testing.T) {
	s := setStage(t, newWorld(), corev1.ProtocolTCP)
	s.reset(t)
	selector := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "absent", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"a"}},
	}}
	if err := s.state.CreatePolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "not-in"},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: selector, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}); err != nil {
		t.Fatal(err)
	}
	third, err := metav1.LabelSelectorAsSelector(&selector)
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.place.(*world).judge(s.addrs["y/a"][0], s.addrs["x/a"][0], 6, 80)
	if err != nil {
		t.Fatal(err)
	}
	pod := map[string]string{"pod": "a"}
	if ours := !v.ingress; ours != third.Matches(labels.Set(pod)) {
		t.Errorf("we select the pod: %t, Kubernetes %t", ours, !ours)
	}
	if kube.IsLabelsMatchLabelSelector(pod, selector) {
		t.Error("cyclonus agrees by now: take the difference out of docs/conformance.md")
	}
}
