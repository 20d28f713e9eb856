package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/testkit"
)

// binariesVariable names the folder of the binaries, once TestMain has built them, or if somebody else has.
const binariesVariable = "TENDRIL_TEST_BINARIES"

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

// runTests builds the binaries that labs run, from this checkout, and takes them away again.
func runTests(m *testing.M) int {
	if server := os.Getenv(askVariable); server != "" {
		return runAsk(server)
	}
	if os.Getenv(exchangeVariable) != "" {
		return runExchanges()
	}
	if name := os.Getenv(witnessVariable); name != "" {
		return runWitness(name)
	}
	if target := os.Getenv(floodVariable); target != "" {
		return runFlood(target)
	}
	if os.Geteuid() != 0 {
		return m.Run() // every test says why it is skipped
	}
	return testkit.WithBinaries(root(), binariesVariable, m.Run)
}

// root is the checkout's folder, seen from this package's.
func root() string { return filepath.Join("..", "..") }

func example(name string) string { return filepath.Join(root(), "examples", name) }

// cluster is a lab with the pods of the story: web servers, clients, a name server.
type cluster struct {
	*lab.Lab
	pods map[string]*lab.Pod
}

// namespace of all pods.
const namespace = "shop"

// up builds a lab under a name of its own. When the test ends it goes, and must leave nothing behind.
func up(t *testing.T, config lab.Config) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces, cgroups and BPF programs")
	}
	config.Name = "t" + randomName()
	config.BinDir = os.Getenv(binariesVariable)
	t.Cleanup(func() { leaveNothing(t, config.Name) })
	l, err := lab.Up(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLab(t, l) })
	return &cluster{Lab: l, pods: map[string]*lab.Pod{}}
}

// closeLab shows what the agents had to say where the test failed, before it is lost.
func closeLab(t *testing.T, l *lab.Lab) {
	if t.Failed() {
		for _, node := range l.NodeNames() {
			t.Logf("agent of %s:\n%s", node, testkit.LastLines(l.AgentLog(node), 40))
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// leaveNothing takes the lab down and looks for what is left: namespaces, pins, cgroups, files, processes.
func leaveNothing(t *testing.T, name string) {
	t.Helper()
	if err := lab.Down(context.Background(), name); err != nil {
		t.Error(err)
	}
	if left := lab.Leftovers(name); len(left) > 0 {
		t.Errorf("after down there is still %v", left)
	}
	if left := processesOf(name); len(left) > 0 {
		t.Errorf("after down there still runs %q", left)
	}
}

// processesOf finds processes whose command line has the lab's folder in it.
func processesOf(name string) []string {
	var found []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		line := strings.ReplaceAll(string(raw), "\x00", " ")
		if err == nil && strings.Contains(line, "/tendril-lab/"+name+"/") {
			found = append(found, line)
		}
	}
	return found
}

func randomName() string {
	raw := make([]byte, 4)
	_, _ = rand.Read(raw)
	return hex.EncodeToString(raw)
}

// add makes a pod in the story's namespace with the label app.
func (c *cluster) add(t *testing.T, node, name, app string) *lab.Pod {
	t.Helper()
	pod, err := c.AddPod(t.Context(), lab.PodSpec{Node: node, Namespace: namespace, Name: name, Labels: map[string]string{"app": app}})
	if err != nil {
		t.Fatal(err)
	}
	c.pods[name] = pod
	return pod
}

// serve starts a web server in a pod.
func (c *cluster) serve(t *testing.T, name string) {
	t.Helper()
	if _, err := c.StartNginx(t.Context(), c.pods[name].Place, name, 80); err != nil {
		t.Fatal(err)
	}
}

// answers wants the web server of a pod to answer from to, at every address, and to see who asks.
func (c *cluster) answers(t *testing.T, from, to string) {
	t.Helper()
	for _, addr := range c.pods[to].Addrs {
		answer, err := c.pods[from].Place.Fetch(t.Context(), addr, 80)
		if err != nil {
			t.Errorf("%s asks %s: %v", from, to, err)
			continue
		}
		if answer.Name != to || answer.Sees != c.pods[from].Addr(familyOf(addr)) {
			t.Errorf("%s asks %s at %s: got %+v", from, to, addr, answer)
		}
	}
}

// refuses wants no answer at any address.
func (c *cluster) refuses(t *testing.T, from, to string) {
	t.Helper()
	for _, addr := range c.pods[to].Addrs {
		if answer, err := c.pods[from].Place.Fetch(t.Context(), addr, 80); err == nil {
			t.Errorf("%s asks %s at %s and is answered: %+v", from, to, addr, answer)
		}
	}
}

// eventually polls and fails the test where the time runs out.
func eventually(t *testing.T, what string, within time.Duration, check func(context.Context) error) {
	t.Helper()
	if err := lab.Wait(t.Context(), what, within, check); err != nil {
		t.Fatal(err)
	}
}

// probe starts an open-loop probe, every two milliseconds or for new connections every twenty, which must lose nothing
// until the returned function is called.
func (c *cluster) probe(t *testing.T, from lab.Place, kind lab.ProbeKind, target netip.AddrPort) (end func()) {
	t.Helper()
	interval := 2 * time.Millisecond
	if kind == lab.ProbeConnect {
		interval = 20 * time.Millisecond
	}
	process, err := c.StartProbe(t.Context(), from, kind, target, interval)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		result, err := lab.EndProbe(t.Context(), process)
		if err != nil {
			t.Fatal(err)
		}
		if !result.Clean() {
			t.Errorf("probe %s of %s: %+v, want nothing lost, reset or refused", kind, target, result)
		}
	}
}

// apply applies examples or other manifests, which must be accepted.
func (c *cluster) apply(t *testing.T, files ...string) {
	t.Helper()
	if _, err := c.Apply(t.Context(), files...); err != nil {
		t.Fatal(err)
	}
}

// manifest writes a manifest to a file of the test.
func manifest(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return 4
	}
	return 6
}
