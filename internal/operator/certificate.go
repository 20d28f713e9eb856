package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"tendril.io/tendril/internal/store"
)

// TokenAudience is what agents' tokens are for: one that is good at the API server is not good here, nor the other way round.
const TokenAudience = "store.tendril.io"

// Tokens asks the API server about tokens of agents' pods.
type Tokens struct {
	Client  kubernetes.Interface
	Account string // of agents: system:serviceaccount:<namespace>:<name>
}

// What the API server says of a token that is bound to a pod (KEP 4193, on since Kubernetes 1.30).
const extraNode = "authentication.kubernetes.io/node-name"

// Node is what an authority asks. The API server checks signature, time and audience, and that the pod still is; a token is bound to the pod that it was
// made for, and the pod to its node, so a token that was carried elsewhere still proves the old node and no other.
func (t Tokens) Node(ctx context.Context, token string) (string, error) {
	if token == "" {
		return "", &store.Refusal{Reason: "there is none"}
	}
	review, err := t.Client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask the API server: %w", err)
	}
	user, nodes := review.Status.User, review.Status.User.Extra[extraNode]
	switch {
	case !review.Status.Authenticated:
		return "", &store.Refusal{Reason: "the API server does not believe it: " + review.Status.Error}
	// An API server of old would not know of audiences, and say so by their absence.
	case !slices.Contains(review.Status.Audiences, TokenAudience):
		return "", &store.Refusal{Reason: fmt.Sprintf("it is for %v, not for %s", review.Status.Audiences, TokenAudience)}
	case user.Username != t.Account:
		return "", &store.Refusal{Reason: fmt.Sprintf("it is of %s, and agents are %s", user.Username, t.Account)}
	case len(nodes) != 1:
		return "", errors.New("the API server does not say which node its pod is on: that needs a token of a pod, and Kubernetes 1.30")
	}
	return nodes[0], nil
}
