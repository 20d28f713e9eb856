package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"tendril.io/tendril/deploy/helm"
	"tendril.io/tendril/internal/node"
)

func TestAConfigurationThatCannotBeEndsTheAgentBeforeItTouchesTheNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: without it the agent says that first")
	}
	folder := t.TempDir()
	bad := filepath.Join(folder, "bad.json")
	if err := os.WriteFile(bad, []byte(`{"node":"n","run_dir":"`+folder+`/run"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--config", filepath.Join(folder, "none.json")}, "read configuration"},
		{[]string{"--config", bad}, "store: required"},
		{[]string{"--config", bad, "extra"}, "unknown command"},
		{[]string{"--configuration", bad}, "unknown flag"},
	} {
		c := command()
		c.SetArgs(test.args)
		c.SetOut(io.Discard)
		c.SetErr(io.Discard)
		if err := c.Execute(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.args, err, test.want)
		}
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v (%v), want the configuration alone", entries, err)
	}
}

func TestTheChartsConfigurationIsOneThatAgentsTake(t *testing.T) {
	values, err := helm.Defaults()
	if err != nil {
		t.Fatal(err)
	}
	values["operator"].(map[string]any)["node"], values["operator"].(map[string]any)["address"] = "n1", "192.0.2.1"
	objects, err := helm.Render(values, "kube-system")
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		text, found, _ := unstructured.NestedString(object.Object, "data", "agent.json")
		if !found {
			continue
		}
		path := filepath.Join(t.TempDir(), "agent.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		config, err := node.Load(path, "n2")
		if err != nil || config.Node != "n2" || config.Store[0] != "192.0.2.1:2379" || !config.Masquerade {
			t.Errorf("got %+v, %v", config, err)
		}
		return
	}
	t.Error("the chart has no agent.json")
}
