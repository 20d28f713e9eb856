package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/operator"
)

// authorityReplaced asks for another authority as an administrator would, and brings the ConfigMap to agents as kubelet would. Agents have the store all
// the while, and one that starts afterwards shows a certificate of the authority of before.
func (c *cluster) authorityReplaced(t *testing.T) {
	secrets, name := c.typed.CoreV1().Secrets(namespace), "tendril-authority"
	first, err := secrets.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patch := fmt.Sprintf(`{"metadata": {"annotations": {%q: "now"}}}`, operator.AnnotationReplace)
	if _, err := secrets.Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ConfigMap to have the next authority beside this one", func(ctx context.Context) error {
		bundle := c.authority(t)
		if count := strings.Count(bundle, "BEGIN CERTIFICATE"); count != 2 || !strings.Contains(bundle, strings.TrimSpace(string(first.Data[corev1.TLSCertKey]))) {
			return fmt.Errorf("%d certificates: %s", count, bundle)
		}
		c.write(t, "ca.crt", bundle)
		return nil
	})
	c.authorityIsIn(t, "told")
	eventually(t, "the next authority to issue", func(ctx context.Context) error {
		if err := c.agentsAreFine(ctx); err != nil {
			t.Error(err)
		}
		now, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if err == nil && (string(now.Data[corev1.TLSCertKey]) == string(first.Data[corev1.TLSCertKey]) || string(now.Data["previous.crt"]) != string(first.Data[corev1.TLSCertKey])) {
			err = errors.New("not yet")
		}
		return err
	})
	c.authorityIsIn(t, "issues")
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgentWith(t.Context(), "node1", c.settings["node1"]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all agents to have the store", c.agentsAreFine)
}

// authorityIsIn waits until `tendril status` knows the stage, and when the next one begins.
func (c *cluster) authorityIsIn(t *testing.T, stage string) {
	kubeconfig := c.writeKubeconfig(t, "admin", adminToken)
	eventually(t, "the status to say that the stage is "+stage, func(ctx context.Context) error {
		out, err := c.Control().Exec(ctx, filepath.Join(binaries(), "tendril"), "status", "--kubeconfig", kubeconfig, "-o", "json")
		if err != nil {
			return err
		}
		var status struct {
			Authority struct {
				Stage string    `json:"stage"`
				Ends  time.Time `json:"stage_ends"`
			} `json:"authority"`
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if got := status.Authority; got.Stage != stage || got.Ends.IsZero() {
			return fmt.Errorf("it says %v", got)
		}
		return nil
	})
}

// agentsAreFine says what agents say is wrong between them and the store.
func (c *cluster) agentsAreFine(ctx context.Context) error {
	for _, node := range c.NodeNames() {
		client, err := c.Agent(node)
		if err != nil {
			return err
		}
		status, err := client.Status(ctx, &agentv1.StatusRequest{})
		if err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
		wrong := slices.ContainsFunc(status.GetProblems(), func(p *agentv1.Problem) bool { return p.GetObject() == "certificate" })
		if !status.GetStoreConnected() || wrong {
			return fmt.Errorf("%s: the store is connected: %t, problems %v", node, status.GetStoreConnected(), status.GetProblems())
		}
	}
	return nil
}
