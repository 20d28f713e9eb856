package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"tendril.io/tendril/deploy/helm"
)

// newUninstallCommand takes tendril out of a Kubernetes cluster.
func newUninstallCommand() *cobra.Command {
	var i installation
	cmd := &cobra.Command{
		Use:     "uninstall",
		GroupID: groupApply,
		Short:   "Take tendril out of a Kubernetes cluster; pods that still run lose their network",
		Long: `Uninstall ends agents and operator, has a pod on every node take away what the agent left there (programs, maps, devices, routes, addresses,
files), and deletes the objects that install made. Give it the same --set as install. If a node cannot be cleaned it says so and leaves the
objects that are needed to try again.`,
		Example: `  tendril uninstall`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return i.uninstall(cmd.Context(), cmd.OutOrStdout()) },
	}
	i.flags(cmd)
	return cmd
}

func (i *installation) uninstall(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	values, c, err := i.values(ctx)
	if err != nil {
		return err
	}
	installed, err := helm.Render(values, i.namespace)
	if err != nil {
		return err
	}
	slices.Reverse(installed) // pods first
	for _, object := range installed {
		if kind := object.GetKind(); kind != "DaemonSet" && kind != "Deployment" {
			continue
		}
		if err := c.remove(ctx, object); err != nil {
			return err
		}
		fmt.Fprintf(out, "ended %s\n", nameOf(object))
	}
	if err := i.clean(ctx, out, c, values); err != nil {
		return err
	}
	for _, object := range append(installed, i.lease()) {
		if err := c.remove(ctx, object); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "tendril is gone")
	return nil
}

// lease is the one object that the operator makes itself.
func (i *installation) lease() *unstructured.Unstructured {
	lease := &unstructured.Unstructured{}
	lease.SetAPIVersion("coordination.k8s.io/v1")
	lease.SetKind("Lease")
	lease.SetNamespace(i.namespace)
	lease.SetName("tendril-operator")
	return lease
}

// clean has a pod on each node take away what the agent left there.
func (i *installation) clean(ctx context.Context, out io.Writer, c *cluster, values helm.Values) error {
	nodes, err := c.list(ctx, corev1.SchemeGroupVersion.WithKind("Node"), "", metav1.ListOptions{})
	if err != nil {
		return err
	}
	names := make([]any, len(nodes))
	for n := range nodes {
		names[n] = nodes[n].GetName()
	}
	values["remove"] = map[string]any{"nodes": names}
	objects, err := helm.Render(values, i.namespace)
	if err != nil {
		return err
	}
	for _, object := range objects { // the configuration as well: it may have been deleted by hand
		if err := c.apply(ctx, object); err != nil {
			return err
		}
	}
	var failed []error
	for _, object := range objects {
		if object.GetKind() != "Pod" {
			continue
		}
		if err := c.awaitEnd(ctx, object); err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintf(out, "cleaned node of %s\n", nameOf(object))
		failed = append(failed, c.remove(ctx, object))
	}
	return errors.Join(failed...)
}
