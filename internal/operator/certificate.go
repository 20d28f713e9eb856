package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"tendril.io/tendril/internal/store"
)

// TokenAudience is what agents' tokens are for: one that is good at the API server is not good here, nor the other way round.
const TokenAudience = "store.tendril.io"

// caKey is where the ConfigMap has the authority's certificate. Agents' pods do not start before it is there.
const caKey = "ca.crt"

// KeepAuthority returns the certificate and key of the cluster's authority, in PEM. They are in the Secret of that name; the certificate also in the
// ConfigMap of that name, which agents mount. Where there is none, make makes it. Of replicas that find the Secret empty one is first, and all others take what it wrote.
func KeepAuthority(ctx context.Context, client kubernetes.Interface, namespace, name string, make func() (cert, key []byte, err error)) (cert, key []byte, err error) {
	for cert == nil {
		cert, key, err = authority(ctx, client, namespace, name, make)
		if err != nil && !apierrors.IsConflict(err) {
			return nil, nil, fmt.Errorf("authority in secret %s/%s: %w", namespace, name, err)
		}
	}
	known, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil && known.Data[caKey] != string(cert) {
		patch := marshal(map[string]any{"data": map[string]string{caKey: string(cert)}})
		_, err = client.CoreV1().ConfigMaps(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return nil, nil, fmt.Errorf("authority in config map %s/%s: %w", namespace, name, err)
	}
	return cert, key, nil
}

// authority reads the Secret, or writes it if it is empty and nobody else was faster.
func authority(ctx context.Context, client kubernetes.Interface, namespace, name string, make func() (cert, key []byte, err error)) (cert, key []byte, err error) {
	secret, err := client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	if cert := secret.Data[corev1.TLSCertKey]; len(cert) > 0 {
		return cert, secret.Data[corev1.TLSPrivateKeyKey], nil
	}
	if cert, key, err = make(); err != nil {
		return nil, nil, err
	}
	patch := marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": secret.ResourceVersion}, // else a conflict
		"data":     map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key},
	})
	if _, err = client.CoreV1().Secrets(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
		return nil, nil, err
	}
	return cert, key, nil
}

// marshal is of maps that have nothing to fail for.
func marshal(object any) []byte {
	raw, _ := json.Marshal(object)
	return raw
}

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
