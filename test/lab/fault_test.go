package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tendril.io/tendril/internal/lab"
)

// small is a lab of two nodes with a web server on each, a client, and a policy for the first.
func small(t *testing.T) *cluster {
	t.Helper()
	c := up(t, lab.Config{Nodes: 2})
	c.add(t, "node1", "web-1", "web")
	c.add(t, "node2", "web-2", "web")
	c.add(t, "node1", "client", "client")
	c.add(t, "node1", "stranger", "stranger")
	c.serve(t, "web-1")
	c.serve(t, "web-2")
	c.apply(t, example("web-from-client.yaml"))
	return c
}

// connected waits until every agent says whether the store is there.
func (c *cluster) connected(t *testing.T, want bool) {
	t.Helper()
	for _, node := range c.NodeNames() {
		eventually(t, fmt.Sprintf("%s: store connected %v", node, want), 30*time.Second, func(ctx context.Context) error {
			status, err := c.Status(ctx, node)
			if err == nil && status.StoreConnected != want {
				err = fmt.Errorf("it is %v", status.StoreConnected)
			}
			return err
		})
	}
}

func TestNothingBreaksWhileTheStoreIsAway(t *testing.T) {
	c := small(t)
	end := c.probe(t, c.pods["client"].Place, lab.ProbeHTTP, netip.AddrPortFrom(c.pods["web-2"].Addr(6), 80))
	if err := c.StopStore(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.connected(t, false)
	c.answers(t, "client", "web-1")
	c.answers(t, "client", "web-2")
	c.refuses(t, "stranger", "web-1")

	// New pods come up with the labels of the CNI call, and their node's policies hold for them at once.
	late, err := c.AddPod(t.Context(), lab.PodSpec{Node: "node1", Namespace: namespace, Name: "late", NoRecord: true,
		Labels: map[string]string{"app": "client"}})
	if err != nil {
		t.Fatal(err)
	}
	c.pods["late"] = late
	c.answers(t, "late", "web-1")

	// An agent that starts while the store is away enforces what it knew.
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAgent(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	c.answers(t, "client", "web-2")
	c.answers(t, "late", "web-1")
	c.refuses(t, "stranger", "web-1")

	if err := c.StartStore(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.connected(t, true)
	eventually(t, "other nodes to learn of the pod", 15*time.Second, func(ctx context.Context) error {
		_, err := late.Place.Fetch(ctx, c.pods["web-2"].Addr(4), 80)
		return err
	})
	c.answers(t, "late", "web-2")
	c.refuses(t, "stranger", "web-2")
	end()
}

func TestNothingBreaksWhenTheStoreIsWipedAndFilledAgain(t *testing.T) {
	c := small(t)
	end := c.probe(t, c.pods["client"].Place, lab.ProbeHTTP, netip.AddrPortFrom(c.pods["web-2"].Addr(4), 80))
	before, err := c.Status(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WipeStore(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.NodeNames() {
		eventually(t, node+" to see the new filling", 30*time.Second, func(ctx context.Context) error {
			status, err := c.Status(ctx, node)
			if err == nil && (!status.StoreConnected || status.StoreEpoch == before.StoreEpoch) {
				err = fmt.Errorf("connected %v, epoch %s", status.StoreConnected, status.StoreEpoch)
			}
			return err
		})
	}
	if err := c.WaitConverged(t.Context(), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	c.answers(t, "client", "web-2")
	c.refuses(t, "stranger", "web-2")
	end()

	// What agents know now comes from the new store alone: a restart must not lose anything.
	for _, node := range c.NodeNames() {
		if err := c.KillAgent(t.Context(), node, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := c.StartAgent(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WaitConverged(t.Context(), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	c.answers(t, "client", "web-1")
	c.answers(t, "client", "web-2")
	c.add(t, "node2", "web-4", "web")
	c.serve(t, "web-4")
	c.answers(t, "client", "web-4")
	c.refuses(t, "stranger", "web-4")
}

func TestACutNodeIsBackWhenItsCableIs(t *testing.T) {
	c := small(t)
	if err := c.Cut("node2"); err != nil {
		t.Fatal(err)
	}
	c.refuses(t, "client", "web-2")
	c.answers(t, "client", "web-1")
	if err := c.Restore("node2"); err != nil {
		t.Fatal(err)
	}
	c.connected(t, true)
	c.answers(t, "client", "web-2")
}

// An agent that has not heard of a policy does not miss it: only the store can say whether everybody enforces it.
func TestANodeThatHasNotHeardOfAPolicyIsNotConverged(t *testing.T) {
	c := small(t)
	for _, verb := range []string{"apply", "delete"} {
		c.changesUnheard(t, verb)
	}
}

// changesUnheard applies or deletes a policy while node2 hears of nothing.
func (c *cluster) changesUnheard(t *testing.T, verb string) {
	t.Helper()
	before, err := c.Status(t.Context(), "node2")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Cut("node2"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CLI(t.Context(), verb, "-f", example("web-guard.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitConverged(t.Context(), 300*time.Millisecond); err == nil {
		t.Errorf("all are said to have followed the %s of a policy that node2 cannot have heard of", verb)
	}
	if err := c.Restore("node2"); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitConverged(t.Context(), 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if after, err := c.Status(t.Context(), "node2"); err != nil || after.PolicyRevision <= before.PolicyRevision {
		t.Errorf("%s: node2 when its cable is back: %v, revision %d, want more than %d", verb, err, after.GetPolicyRevision(), before.PolicyRevision)
	}
}

func TestPodsComeAndGoWhileTheirAgentIsAway(t *testing.T) {
	c := small(t)
	gone := c.add(t, "node1", "gone", "client")
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// A deletion waits for the agent in a folder; an addition says what is missing.
	if err := c.RemovePod(t.Context(), gone); err != nil {
		t.Errorf("remove a pod without its agent: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := c.AddPod(ctx, lab.PodSpec{Node: "node1", Namespace: namespace, Name: "early"})
	if err == nil || !strings.Contains(err.Error(), "agent") {
		t.Errorf("add a pod without its agent: %v, want an error that says so", err)
	}
	if err := c.StartAgent(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deletion to be done", 10*time.Second, func(ctx context.Context) error {
		status, err := c.Status(ctx, "node1")
		if err == nil && status.Endpoints != 3 {
			err = fmt.Errorf("%d endpoints, want 3", status.Endpoints)
		}
		return err
	})
	c.add(t, "node1", "early", "client")
	c.answers(t, "early", "web-1")
}

func TestUpWithABrokenAgentSaysWhyAndLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces")
	}
	folder := t.TempDir()
	for _, name := range []string{"tendril", "tendril-cni"} {
		if err := os.Symlink(filepath.Join(os.Getenv(binariesVariable), name), filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\necho 'the dog ate my programs' >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(folder, "tendril-agent"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	name := "t" + randomName()
	t.Cleanup(func() { leaveNothing(t, name) })
	_, err := lab.Up(t.Context(), lab.Config{Name: name, Nodes: 1, BinDir: folder})
	if err == nil || !strings.Contains(err.Error(), "the dog ate my programs") {
		t.Errorf("up: %v, want the agent's last words", err)
	}
	if left := lab.Leftovers(name); len(left) > 0 {
		t.Errorf("a lab that did not come up left %v", left)
	}
}

func TestALabThatLostItsMemoryGoesDownByName(t *testing.T) {
	c := small(t)
	if err := c.KillAgent(t.Context(), "node2", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join("/run/tendril-lab", c.Name)); err != nil {
		t.Fatal(err)
	}
	leaveNothing(t, c.Name)
}

func TestTwoLabsLiveSideBySide(t *testing.T) {
	first, second := small(t), up(t, lab.Config{Nodes: 1})
	second.add(t, "node1", "web-1", "web")
	second.serve(t, "web-1")
	second.add(t, "node1", "stranger", "stranger")
	second.answers(t, "stranger", "web-1") // the other lab's policy is not ours
	leaveNothing(t, second.Name)
	first.answers(t, "client", "web-2")
	first.refuses(t, "stranger", "web-1")
}

func TestTheDemoHolds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces")
	}
	name := "t" + randomName()
	t.Cleanup(func() { leaveNothing(t, name); leaveNothing(t, name+"vx") })
	begin := time.Now()
	demo := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(binariesVariable), "tendril"),
		"--lab", name, "lab", "demo", "--examples", filepath.Join(root(), "examples"))
	out, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	if took := time.Since(begin); took > 2*time.Minute {
		t.Errorf("the demo took %s, want two minutes at most", took)
	}
	for step := range 8 {
		if !strings.Contains(string(out), fmt.Sprintf("\n%d ", step)) {
			t.Errorf("the demo shows no step %d:\n%s", step, out)
		}
	}
	if left := append(lab.Leftovers(name), lab.Leftovers(name+"vx")...); len(left) > 0 {
		t.Errorf("the demo left %v", left)
	}
}
