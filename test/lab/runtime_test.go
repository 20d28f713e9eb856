package lab

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/lab"
)

// These tests run the plugin under runtimes other than kubelet's: what is theirs is built or installed as it is shipped.

// buildPlugins builds cnitool and the standard plugins (test/cni) into the folder of the binaries, once.
func buildPlugins(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return // up says why nothing is tested
	}
	if _, err := os.Stat(filepath.Join(os.Getenv(binariesVariable), "cnitool")); err == nil {
		return
	}
	build := exec.Command("go", "-C", filepath.Join(root(), "test", "cni"), "build", "-o", os.Getenv(binariesVariable)+"/", "tool")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the standard plugins: %v\n%s", err, out)
	}
}

// network is a list of plugins as a runtime on node1 finds it, under a name of its own: libcni keeps results by that name.
type network struct {
	name, folder string
}

// results is where libcni keeps what ADD answered, wherever the runtime comes from.
const results = "/var/lib/cni/results"

// writeNetwork writes a list of plugins.
func (c *cluster) writeNetwork(t *testing.T, version string, plugins ...any) network {
	t.Helper()
	return c.writeNetworkNamed(t, "net", version, plugins...)
}

// writeNetworkNamed is for a second one.
func (c *cluster) writeNetworkNamed(t *testing.T, name, version string, plugins ...any) network {
	t.Helper()
	n := network{"tendril-" + c.Name + "-" + name, t.TempDir()}
	list, err := json.Marshal(map[string]any{"cniVersion": version, "name": n.name, "plugins": plugins})
	if err == nil {
		err = os.WriteFile(filepath.Join(n.folder, "10-test.conflist"), list, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, path := range n.cached(t) {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	})
	return n
}

// cached lists the results that libcni keeps for the network.
func (n network) cached(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(results, n.name+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// tendrilPlugin is the plugin's entry in a list: the lab's network with what a runtime may say besides.
func (c *cluster) tendrilPlugin(t *testing.T, more map[string]any) map[string]any {
	t.Helper()
	config := c.NetworkConfig("node1")
	entry := map[string]any{"type": config.Type, "socket": config.Socket, "dataDir": config.DataDir}
	for key, value := range more {
		entry[key] = value
	}
	return entry
}

// cnitool runs libcni's own runtime on node1, for a container of which only the network namespace exists. The container's labels
// come as a capability: cnitool takes no argument with two equals signs.
func (c *cluster) cnitool(ctx context.Context, n network, command, container string) (string, error) {
	node, err := c.Node("node1")
	if err != nil {
		return "", err
	}
	labels, err := json.Marshal(map[string]any{
		"tendril":   map[string]any{"labels": map[string]string{"app": "client"}},
		"bandwidth": map[string]int64{"ingressRate": 1_000_000, "ingressBurst": 1_000_000, "egressRate": 2_000_000, "egressBurst": 2_000_000},
	})
	if err != nil {
		return "", err
	}
	args := fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s", namespace, filepath.Base(container))
	return node.Exec(ctx, "env", "CNI_PATH="+c.BinDir, "NETCONFPATH="+n.folder, args, "CAP_ARGS="+string(labels),
		filepath.Join(c.BinDir, "cnitool"), command, n.name, container)
}

// container makes a network namespace on the machine, as a runtime does before it asks for a network.
func (c *cluster) container(t *testing.T, name string) lab.Place {
	t.Helper()
	full := "tendril-" + c.Name + "-" + name
	if out, err := exec.Command("ip", "netns", "add", full).CombinedOutput(); err != nil {
		t.Fatalf("make namespace %s: %v: %s", full, err, out)
	}
	node, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	return lab.Place{Name: name, Netns: "/run/netns/" + full, Cgroup: node.Cgroup}
}

// endpoint finds a pod of node1 as its agent has it; nil: there is none.
func (c *cluster) endpoint(t *testing.T, pod string) *agentv1.Endpoint {
	t.Helper()
	agent, err := c.Agent("node1")
	if err != nil {
		t.Fatal(err)
	}
	list, err := agent.ListEndpoints(t.Context(), &agentv1.ListEndpointsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(list.Endpoints, func(e *agentv1.Endpoint) bool { return e.Pod == pod })
	if at < 0 {
		return nil
	}
	return list.Endpoints[at]
}

// addrsOf reads the addresses of an endpoint.
func addrsOf(t *testing.T, e *agentv1.Endpoint) (addrs []netip.Addr) {
	t.Helper()
	for _, text := range e.GetIps() {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, addr)
	}
	return addrs
}

// resultAddrs reads the addresses that a runtime was told.
func resultAddrs(t *testing.T, result string) (addrs []netip.Addr) {
	t.Helper()
	var told struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal([]byte(result), &told); err != nil {
		t.Fatalf("result %q: %v", result, err)
	}
	for _, ip := range told.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	return addrs
}

// mustCNI wants cnitool to succeed.
func (c *cluster) mustCNI(t *testing.T, n network, command, container string) string {
	t.Helper()
	out, err := c.cnitool(t.Context(), n, command, container)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCnitoolDrivesThePlugin(t *testing.T) {
	buildPlugins(t)
	c := small(t)
	n := c.writeNetwork(t, "1.1.0", c.tendrilPlugin(t, map[string]any{"capabilities": map[string]bool{"tendril": true, "bandwidth": true}}))
	pod := c.container(t, "tool")

	c.mustCNI(t, n, "status", pod.Netns)
	first := c.mustCNI(t, n, "add", pod.Netns)
	if again := c.mustCNI(t, n, "add", pod.Netns); again != first {
		t.Errorf("the same container added again: %s; before: %s", again, first)
	}
	if cached := n.cached(t); len(cached) != 1 {
		t.Errorf("results kept: %v, want one", cached)
	}
	c.mustCNI(t, n, "check", pod.Netns)
	addrs := resultAddrs(t, first)
	if e := c.endpoint(t, filepath.Base(pod.Netns)); !slices.Equal(addrsOf(t, e), addrs) || len(addrs) != 2 {
		t.Errorf("the agent has %v, the runtime was told %v", e, addrs)
	}
	for _, addr := range addrs {
		if answer, err := pod.Fetch(t.Context(), c.pods["web-1"].Addr(familyOf(addr)), 80); err != nil || answer.Sees != addr {
			t.Errorf("the container asks web-1: %+v, %v", answer, err)
		}
	}
	if e := c.endpoint(t, filepath.Base(pod.Netns)); len(e.GetNotes()) != 2 || !strings.Contains(e.GetNotes()[0], "egress-bandwidth of 2000000 bit/s is not enforced") {
		t.Errorf("notes of a container with a limit: %q", e.GetNotes())
	}
	if out, err := c.CLI(t.Context(), "status", "--node", "node1"); err != nil || !strings.Contains(out, "egress-bandwidth of 2000000") {
		t.Errorf("status says nothing of it: %v\n%s", err, out)
	}
	c.checkNotices(t, n, pod)
	c.deletesWithoutAgent(t, n, pod)
	c.collects(t, n)
}

// checkNotices takes the pod's address away and wants CHECK to say so.
func (c *cluster) checkNotices(t *testing.T, n network, pod lab.Place) {
	t.Helper()
	if _, err := pod.Exec(t.Context(), "ip", "address", "flush", "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.cnitool(t.Context(), n, "check", pod.Netns); err == nil || !strings.Contains(err.Error(), "lacks address") {
		t.Errorf("CHECK without the address: %v", err)
	}
}

// deletesWithoutAgent wants ADD to ask for patience, STATUS and DEL to succeed while the agent is away, and the agent to do what it missed.
func (c *cluster) deletesWithoutAgent(t *testing.T, n network, pod lab.Place) {
	t.Helper()
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.mustCNI(t, n, "status", pod.Netns)
	late := c.container(t, "late")
	if _, err := c.cnitool(t.Context(), n, "add", late.Netns); err == nil || !strings.Contains(err.Error(), "try again later") {
		t.Errorf("ADD without agent: %v", err)
	}
	c.mustCNI(t, n, "del", pod.Netns)
	if cached := n.cached(t); len(cached) != 0 {
		t.Errorf("results kept after DEL: %v", cached)
	}
	if err := c.StartAgent(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(pod.Netns)
	eventually(t, "the agent to do the queued deletion", time.Minute, func(context.Context) error {
		if e := c.endpoint(t, name); e != nil {
			return fmt.Errorf("it still has %v", e)
		}
		return nil
	})
	c.mustCNI(t, n, "del", pod.Netns) // unknown by now
	c.mustCNI(t, n, "add", late.Netns)
}

// collects wants GC to remove what the runtime has forgotten, and nothing of it or of other networks that is valid. cnitool names no
// valid container; libcni then deletes those that it remembers, and the plugin refuses to take a missing list for an empty one.
func (c *cluster) collects(t *testing.T, n network) {
	t.Helper()
	valid, forgotten := c.container(t, "valid"), c.container(t, "forgotten")
	c.mustCNI(t, n, "add", forgotten.Netns)
	for _, path := range n.cached(t) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	c.mustCNI(t, n, "add", valid.Netns)
	list, err := libcni.LoadConfList(n.folder, n.name)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512([]byte(valid.Netns)) // cnitool's name for a container
	keep := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: fmt.Sprintf("cnitool-%x", sum[:10]), IfName: "eth0"}}}
	if err := libcni.NewCNIConfig([]string{c.BinDir}, nil).GCNetworkList(t.Context(), list, keep); err != nil {
		t.Fatal(err)
	}
	if e := c.endpoint(t, filepath.Base(forgotten.Netns)); e != nil {
		t.Errorf("after GC the agent still has %v", e)
	}
	c.mustCNI(t, n, "check", valid.Netns)
	if _, err := c.cnitool(t.Context(), n, "gc", "/none"); err == nil || !strings.Contains(err.Error(), "list of valid attachments is missing") {
		t.Errorf("GC without a list: %v", err)
	}
	if e := c.endpoint(t, filepath.Base(valid.Netns)); e != nil || len(n.cached(t)) > 0 {
		t.Errorf("after cnitool gc there is %v", e)
	}
	c.answers(t, "client", "web-1")
}

// podman is a container engine on node1 with folders of its own, which takes its networks from CNI plugins.
type podman struct {
	lab.Place
	folder string
	global []string
}

// newPodman sets one up. Whoever runs the test may have another podman: only folders of the test are used. Since 4.0 podman
// prefers its own netavark, and since 5.0 it has CNI only where it was built with the tag cni.
func (c *cluster) newPodman(t *testing.T, n network) *podman {
	t.Helper()
	if _, err := exec.LookPath("podman"); err != nil {
		t.Fatalf("%v: install it (test/install.sh runtimes)", err)
	}
	node, err := c.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	p := &podman{Place: node, folder: filepath.Join("/run/tendril-lab", c.Name, "podman")} // podman takes no path over 50 bytes
	if err := os.Mkdir(p.folder, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [%q]\n", c.BinDir)
	if err := os.WriteFile(filepath.Join(p.folder, "containers.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	p.global = []string{
		"env", "CONTAINERS_CONF=" + filepath.Join(p.folder, "containers.conf"), "podman",
		"--root", filepath.Join(p.folder, "root"), "--runroot", filepath.Join(p.folder, "run"), "--tmpdir", filepath.Join(p.folder, "tmp"),
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--network-config-dir", n.folder,
	}
	// A container's root needs no image: the machine's own programs will do.
	for link, target := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		if err := errors.Join(os.MkdirAll(p.rootfs(), 0o755), os.Symlink(target, filepath.Join(p.rootfs(), link))); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if _, err := p.do(context.Background(), "rm", "--all", "--force", "--time", "0"); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *podman) rootfs() string { return filepath.Join(p.folder, "rootfs") }

// do runs podman.
func (p *podman) do(ctx context.Context, args ...string) (string, error) {
	out, err := p.Exec(ctx, append(slices.Clone(p.global), args...)...)
	return strings.TrimSpace(out), err
}

// must wants it to succeed.
func (p *podman) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.do(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// run is the command that runs a program in a new container. The container stays in the cgroup of the lab's node.
func (p *podman) run(n network, name string, program ...string) []string {
	return append([]string{
		"run", "--detach", "--cgroups", "disabled", "--network", n.name, "--volume", "/usr:/usr:ro", "--name", name, "--rootfs", p.rootfs(),
	}, program...)
}

// container is where the container's network is.
func (p *podman) container(t *testing.T, name string) lab.Place {
	t.Helper()
	return lab.Place{Name: name, Netns: p.must(t, "inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name), Cgroup: p.Cgroup}
}

// mayRaiseLimits says whether this process has CAP_SYS_RESOURCE, which root has on most machines.
func mayRaiseLimits(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestPodmanRunsContainersOnTheNetwork(t *testing.T) {
	if !mayRaiseLimits(t) {
		t.Skip("needs CAP_SYS_RESOURCE: podman gives each container limits above those of whoever started it")
	}
	c := up(t, lab.Config{Nodes: 2})
	c.add(t, "node1", "web-1", "web")
	c.add(t, "node1", "client", "client")
	c.add(t, "node1", "stranger", "stranger")
	c.serve(t, "web-1")
	n := c.writeNetwork(t, "1.0.0", c.tendrilPlugin(t, map[string]any{ // podman 4.3 knows no newer version
		"args": map[string]any{"tendril": map[string]any{"labels": map[string]string{"app": "fox"}}},
	}))
	c.apply(t, manifest(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-from-fox, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: fox}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: fox-from-client, namespace: default}
spec:
  podSelector: {matchLabels: {app: fox}}
  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}]}]
`))
	p := c.newPodman(t, n)
	p.must(t, p.run(n, "Quiet_Fox", "sleep", "infinity")...)
	fox := p.container(t, "Quiet_Fox")
	if _, err := c.StartNginx(t.Context(), fox, "fox", 80); err != nil {
		t.Fatal(err)
	}
	addrs := addrsOf(t, c.endpoint(t, "Quiet_Fox"))
	told := p.must(t, "inspect", "--format", "{{(index .NetworkSettings.Networks \""+n.name+"\").IPAddress}}", "Quiet_Fox")
	if len(addrs) != 2 || told != addrs[0].String() {
		t.Fatalf("podman was told %s, the agent has %v", told, addrs)
	}
	for _, addr := range addrs {
		if out, err := p.do(t.Context(), "exec", "Quiet_Fox", "curl", "-sS", "-m", "5", "http://"+netip.AddrPortFrom(c.pods["web-1"].Addr(familyOf(addr)), 80).String()); err != nil || out != "web-1 sees "+addr.String() {
			t.Errorf("the container asks web-1: %q, %v", out, err)
		}
		if answer, err := c.pods["client"].Place.Fetch(t.Context(), addr, 80); err != nil || answer.Name != "fox" {
			t.Errorf("client asks the container at %s: %+v, %v", addr, answer, err)
		}
		if answer, err := c.pods["stranger"].Place.Fetch(t.Context(), addr, 80); err == nil {
			t.Errorf("stranger asks the container at %s and is answered: %+v", addr, answer)
		}
	}
	c.podmanComesAndGoes(t, p, n)
}

// podmanComesAndGoes restarts the container, and removes it while the agent is away.
func (c *cluster) podmanComesAndGoes(t *testing.T, p *podman, n network) {
	t.Helper()
	before := c.endpoint(t, "Quiet_Fox")
	p.must(t, "restart", "--time", "0", "Quiet_Fox")
	if now := c.endpoint(t, "Quiet_Fox"); now == nil || slices.Equal(now.Ips, before.Ips) {
		t.Errorf("restarted, the container is %v; before: %v", now, before)
	}
	if err := c.KillAgent(t.Context(), "node1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := p.do(t.Context(), p.run(n, "early", "true")...); err == nil || !strings.Contains(err.Error(), "try again later") {
		t.Errorf("a container without agent: %v", err)
	}
	p.must(t, "rm", "--force", "--time", "0", "Quiet_Fox")
	if err := c.StartAgent(t.Context(), "node1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent to do the queued deletion", time.Minute, func(context.Context) error {
		if e := c.endpoint(t, "Quiet_Fox"); e != nil {
			return fmt.Errorf("it still has %v", e)
		}
		return nil
	})
}
