// Command helm compares what Helm makes of the chart with what `tendril install --dry-run` does:
//
//	helm CHART NAMESPACE [NAME=VALUE...] < MANIFESTS
//
// A module of its own, for Helm is no part of the product and wants other versions of Kubernetes' libraries than the cluster.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Args[1:], os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "helm:", err)
		os.Exit(1)
	}
}

func run(args []string, manifests io.Reader) error {
	if len(args) < 2 {
		return errors.New("usage: helm CHART NAMESPACE [NAME=VALUE...] < MANIFESTS")
	}
	want, err := render(args[0], args[1], args[2:])
	if err != nil {
		return err
	}
	text, err := io.ReadAll(manifests)
	if err != nil {
		return err
	}
	got := map[string]any{}
	if err := collect(string(text), got); err != nil {
		return err
	}
	if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
		return fmt.Errorf("%d objects by Helm, %d by tendril install (-helm +tendril):\n%s", len(want), len(got), diff)
	}
	fmt.Printf("%d objects, the same by Helm and by tendril install\n", len(want))
	return nil
}

// render has Helm render the chart.
func render(folder, namespace string, set []string) (map[string]any, error) {
	chart, err := loader.Load(folder)
	if err != nil {
		return nil, err
	}
	given := map[string]any{}
	for _, assignment := range set {
		if err := strvals.ParseInto(assignment, given); err != nil {
			return nil, err
		}
	}
	options := common.ReleaseOptions{Name: "tendril", Namespace: namespace, IsInstall: true}
	values, err := util.ToRenderValues(chart, given, options, nil)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(chart, values)
	if err != nil {
		return nil, err
	}
	objects := map[string]any{}
	for name, text := range files {
		if err := collect(text, objects); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return objects, nil
}

// collect adds the objects of a text, by kind and name.
func collect(text string, objects map[string]any) error {
	for document := range strings.SplitSeq("\n"+text, "\n---") {
		object := map[string]any{}
		if err := yaml.UnmarshalStrict([]byte(document), &object); err != nil {
			return err
		}
		if len(object) == 0 {
			continue
		}
		metadata, _ := object["metadata"].(map[string]any)
		objects[fmt.Sprint(object["kind"], " ", metadata["name"])] = object
	}
	return nil
}
