package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
files), and deletes the objects that install made. Image and folders are those of the objects that are there, whoever installed them; where they
were deleted by hand, give the same --set as to install. If a node cannot be cleaned it says so and leaves the objects that are needed to try again.`,
		Example: `  tendril uninstall
  tendril uninstall --timeout 1m --kubeconfig admin.kubeconfig`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return i.uninstall(cmd.Context(), cmd.OutOrStdout()) },
	}
	i.flags(cmd)
	return cmd
}

func (i *installation) uninstall(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	c, err := dialCluster(i.kubeconfig)
	if err != nil {
		return err
	}
	values, err := i.asInstalled(ctx, c)
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
	if err := i.forget(ctx, c, installed); err != nil {
		return err
	}
	fmt.Fprintln(out, "tendril is gone")
	return nil
}

// forget deletes what install made, and what the operator made for itself. The other kinds that it defined stay: their objects are the users'.
func (i *installation) forget(ctx context.Context, c *cluster, installed []*unstructured.Unstructured) error {
	for _, object := range append(installed, i.lease(), identityDefinition()) {
		if err := c.remove(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

// asInstalled are the values that the objects which are there were made of, as far as cleaning needs them. What the flags say goes first.
func (i *installation) asInstalled(ctx context.Context, c *cluster) (helm.Values, error) {
	values, err := helm.Defaults()
	if err != nil {
		return nil, err
	}
	found, err := c.installed(ctx, i.namespace)
	if err != nil {
		return nil, err
	}
	for _, assignment := range append(found, "operator.node=none", "operator.address=192.0.2.1") { // no operator is started any more
		if err := values.Set(assignment); err != nil {
			return nil, fmt.Errorf("as installed: %w", err)
		}
	}
	return values, i.setIn(values)
}

// installed reads values from the workloads, or from the pods of an earlier try, which had taken the workloads away.
func (c *cluster) installed(ctx context.Context, namespace string) (found []string, err error) {
	var specs []corev1.PodSpec
	daemons, err := get[appsv1.DaemonSet](ctx, c, appsv1.SchemeGroupVersion.WithKind("DaemonSet"), namespace, agentName)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	if err == nil {
		specs = append(specs, daemons.Spec.Template.Spec)
	}
	deployment, err := get[appsv1.Deployment](ctx, c, appsv1.SchemeGroupVersion.WithKind("Deployment"), namespace, operatorName)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	if err == nil {
		specs = append(specs, deployment.Spec.Template.Spec)
	}
	pods, err := listAs[corev1.Pod](ctx, c, corev1.SchemeGroupVersion.WithKind("Pod"), namespace, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=tendril-remove"})
	if err != nil {
		return nil, err
	}
	for i := range pods {
		specs = append(specs, pods[i].Spec)
	}
	for i := range specs {
		found = append(found, valuesIn(&specs[i])...)
	}
	return found, nil
}

// valuesIn says which values of the chart a pod was made of.
func valuesIn(spec *corev1.PodSpec) (found []string) {
	set := func(name, text string) { found = append(found, fmt.Sprintf("%s=%q", name, text)) }
	folders := map[string]string{"cni-bin": "cni.binDir", "cni-conf": "cni.confDir", "store": "operator.storeDir"}
	for _, volume := range spec.Volumes {
		if name := folders[volume.Name]; name != "" && volume.HostPath != nil {
			set(name, volume.HostPath.Path)
		}
	}
	for _, container := range spec.Containers {
		if container.Name == "agent" || container.Name == "remove" {
			set("image.agent", container.Image)
			if container.ImagePullPolicy != "" {
				set("image.pullPolicy", string(container.ImagePullPolicy))
			}
		}
		for _, argument := range container.Args {
			if folder, ok := strings.CutPrefix(argument, "--folder="); ok {
				set("operator.storeDir", folder)
			}
		}
	}
	return found
}

// identityDefinition is that of the kind whose objects are all the operator's; they go with it.
func identityDefinition() *unstructured.Unstructured {
	definition := &unstructured.Unstructured{}
	definition.SetAPIVersion("apiextensions.k8s.io/v1")
	definition.SetKind("CustomResourceDefinition")
	definition.SetName("identities.tendril.io")
	return definition
}

// lease is the operator's.
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
	for _, object := range objects {
		there := false
		if object.GetKind() == "ConfigMap" { // that is the agents' own, which says where they put what; it may have been deleted by hand
			if there, err = c.has(ctx, object); err != nil {
				return err
			}
		}
		if there {
			continue
		}
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
