package operator

import (
	"errors"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
)

// emptyAuthority is what the chart brings.
func emptyAuthority() *fake.Clientset {
	meta := metav1.ObjectMeta{Namespace: "kube-system", Name: "tendril-authority", ResourceVersion: "7"}
	return fake.NewClientset(&corev1.Secret{ObjectMeta: meta}, &corev1.ConfigMap{ObjectMeta: meta})
}

func TestReplicasAgreeOnOneAuthority(t *testing.T) {
	client := emptyAuthority()
	theirs, theirKey, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	// Another replica writes between our read and our write.
	client.PrependReactor("patch", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if patch := string(action.(clienttesting.PatchAction).GetPatch()); !strings.Contains(patch, `"resourceVersion":"7"`) {
			t.Errorf("the write does not depend on what was read: %s", patch)
		}
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "tendril-authority", ResourceVersion: "8"},
			Data:       map[string][]byte{"tls.crt": theirs, "tls.key": theirKey},
		}
		if err := client.Tracker().Update(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, secret, "kube-system"); err != nil {
			t.Fatal(err)
		}
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, "tendril-authority", errors.New("changed"))
	})
	cert, key, err := KeepAuthority(t.Context(), client, "kube-system", "tendril-authority", server.MakeAuthority)
	if err != nil || string(cert) != string(theirs) || string(key) != string(theirKey) {
		t.Errorf("got another authority than the faster replica's, %v", err)
	}
	known, err := client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "tendril-authority", metav1.GetOptions{})
	if err != nil || known.Data["ca.crt"] != string(theirs) {
		t.Errorf("the config map has %v, %v", known, err)
	}
	if strings.Contains(known.String(), string(theirKey)) {
		t.Error("the config map has the key")
	}
}

func TestAnAuthorityIsMadeOnceAndKept(t *testing.T) {
	client := emptyAuthority()
	first, _, err := KeepAuthority(t.Context(), client, "kube-system", "tendril-authority", server.MakeAuthority)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := KeepAuthority(t.Context(), client, "kube-system", "tendril-authority", server.MakeAuthority)
	if err != nil || string(again) != string(first) {
		t.Errorf("the second time another one, %v", err)
	}
	if _, _, err := KeepAuthority(t.Context(), client, "kube-system", "none", server.MakeAuthority); err == nil || !strings.Contains(err.Error(), "secret kube-system/none") {
		t.Errorf("without a Secret: got %v", err)
	}
}

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
