package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"tendril.io/tendril/internal/kube"
)

// newPreflightCommand reads a cluster's policies as this release would.
func newPreflightCommand() *cobra.Command {
	var kubeconfig string
	cmd := &cobra.Command{
		Use:     "preflight",
		GroupID: groupApply,
		Short:   "Name the policies of a Kubernetes cluster that this release cannot honour, before it is installed or updated",
		Long: `Name the policies of a Kubernetes cluster that this release cannot honour, before it is installed or updated.

Every policy object that the API server has is read as agents of this release would. The API server takes more than can be honoured, and an
agent that was never able to read a policy closes what it selects, or its whole namespace: see docs/policy.md. The cluster is not changed.
Status 1 if there is such a policy.

What a node lacks, or has left of another network, the agents' init container says in its log: kubectl -n kube-system logs ds/tendril-agent -c install`,
		Example: `  tendril preflight
  tendril preflight --kubeconfig admin.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialCluster(kubeconfig)
			if err != nil {
				return err
			}
			return preflight(cmd.Context(), c, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "file that leads to the cluster's API server (default: $KUBECONFIG, else ~/.kube/config)")
	return cmd
}

// preflight prints what would be refused, and fails if there is any.
func preflight(ctx context.Context, c *cluster, out io.Writer) error {
	policies, err := c.policies(ctx)
	if err != nil {
		return err
	}
	refused := 0
	for _, policy := range policies {
		if err := readable(policy); err != nil {
			refused++
			fmt.Fprintf(out, "%s: %v\n  until then %s\n", fullName(policy), err, meanwhile(policy))
		}
	}
	if refused > 0 {
		return fmt.Errorf("%d of %d policies cannot be honoured: mend or remove them first", refused, len(policies))
	}
	fmt.Fprintf(out, "all %d policies can be honoured\n", len(policies))
	return nil
}

// policies are all of the cluster. A kind that the API server does not know has none; of a kind in several versions one is asked for.
func (c *cluster) policies(ctx context.Context) (all []unstructured.Unstructured, err error) {
	known := map[string]bool{}
	for _, kind := range kube.Kinds() {
		if !kube.IsPolicy(kind.Kind) || known[kind.Kind] {
			continue
		}
		list, err := c.list(ctx, kind, "", metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		known[kind.Kind] = true
		all = append(all, list...)
	}
	return all, nil
}

// readable says what is wrong with a policy.
func readable(policy unstructured.Unstructured) error {
	text, err := json.Marshal(policy.Object)
	if err != nil {
		return err
	}
	object, err := kube.DecodeServed(text)
	if err != nil {
		return err
	}
	parsed, err := object.Policy()
	if err != nil {
		return err
	}
	return parsed.Validate()
}

// meanwhile is what agents do about a policy that they never could read.
func meanwhile(policy unstructured.Unstructured) string {
	if namespace := policy.GetNamespace(); namespace != "" {
		return "agents that start isolate what it may select: every pod of namespace " + namespace
	}
	return "agents that start isolate what it may select: every pod"
}

// fullName is the policy's kind, namespace and name.
func fullName(policy unstructured.Unstructured) string {
	return strings.TrimSuffix(policy.GetKind()+"/"+policy.GetNamespace(), "/") + "/" + policy.GetName()
}
