package operator

import (
	"errors"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"tendril.io/tendril/internal/store"
)

func TestATokenProvesTheNodeOfItsPod(t *testing.T) {
	const agents = "system:serviceaccount:kube-system:tendril-agent"
	believed := func(user, node string, audiences ...string) authenticationv1.TokenReviewStatus {
		status := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: audiences, User: authenticationv1.UserInfo{Username: user}}
		if node != "" {
			status.User.Extra = map[string]authenticationv1.ExtraValue{extraNode: {node}}
		}
		return status
	}
	for name, test := range map[string]struct {
		status  authenticationv1.TokenReviewStatus
		refused bool
		want    string // the node, or what the error says
	}{
		"an agent's":               {believed(agents, "n1", TokenAudience), false, "n1"},
		"expired":                  {authenticationv1.TokenReviewStatus{Error: "token has expired"}, true, "token has expired"},
		"another account's":        {believed("system:serviceaccount:shop:web", "n1", TokenAudience), true, "it is of system:serviceaccount:shop:web"},
		"for the API server":       {believed(agents, "n1", "https://kubernetes.default.svc"), true, "not for " + TokenAudience},
		"of a server without them": {believed(agents, "n1"), true, "not for " + TokenAudience},
		"of no pod":                {believed(agents, "", TokenAudience), false, "Kubernetes 1.30"},
	} {
		client := fake.NewClientset()
		client.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
			review := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
			if review.Spec.Token != "secret" || !slices.Equal(review.Spec.Audiences, []string{TokenAudience}) {
				t.Errorf("asked about %+v", review.Spec)
			}
			review.Status = test.status
			return true, review, nil
		})
		node, err := Tokens{Client: client, Account: agents}.Node(t.Context(), "secret")
		var refusal *store.Refusal
		if errors.As(err, &refusal) != test.refused {
			t.Errorf("%s: got %v, refusal wanted: %t", name, err, test.refused)
		}
		if got := node; err != nil {
			got = err.Error()
			if !strings.Contains(got, test.want) {
				t.Errorf("%s: got %q, want %q", name, got, test.want)
			}
		} else if got != test.want {
			t.Errorf("%s: got node %q, want %q", name, got, test.want)
		}
	}
	if _, err := (Tokens{}).Node(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Errorf("no token: got %v", err)
	}
}
