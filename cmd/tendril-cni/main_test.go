package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"tendril.io/tendril/internal/cni"
)

// TestMain builds the plugin as it is shipped: these tests run it the way a container runtime does.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "te-plugin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "tendril-cni"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build plugin: %v\n%s", err, output)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	os.Setenv("TE_PLUGIN_DIR", dir)
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

func plugin() string { return filepath.Join(os.Getenv("TE_PLUGIN_DIR"), "tendril-cni") }

// site is a node's folders and configuration.
type site struct {
	dir    string
	socket string
}

func newSite(t testing.TB) site {
	t.Helper()
	dir := t.TempDir()
	return site{dir, filepath.Join(dir, "cni.sock")}
}

func (s site) config(version string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"tendril","type":"tendril-cni","socket":%q,"dataDir":%q}`, version, s.socket, s.dir)
}

// listen starts an agent that answers with handler, until the returned function is called.
func (s site) listen(t testing.TB, handler cni.Handler) (stop func()) {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cni.Serve(ctx, listener, handler) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// exec runs the plugin with an environment and returns what it printed and its exit status.
func (s site) exec(t testing.TB, config string, env ...string) (stdout string, status int) {
	t.Helper()
	command := exec.Command(plugin())
	command.Env, command.Stdin = env, strings.NewReader(config)
	var out, diagnostics bytes.Buffer
	command.Stdout, command.Stderr = &out, &diagnostics
	err := command.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if diagnostics.Len() > 0 {
		t.Errorf("plugin wrote to stderr: %s", &diagnostics)
	}
	return out.String(), command.ProcessState.ExitCode()
}

// answers is a handler with fixed answers.
type answers struct {
	mutex sync.Mutex
	asked []cni.Command
	netns bool // a namespace came with the last command
	fail  error
	// of the last command's configuration
	version string
	valid   []cni.Attachment
}

func (a *answers) note(request *cni.Request) error {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.asked, a.netns = append(a.asked, request.Command), request.Netns != nil
	a.version, a.valid = request.Config.CNIVersion, request.Config.ValidAttachments
	return a.fail
}

func (a *answers) Add(_ context.Context, request *cni.Request) (*cni.Result, error) {
	return &cni.Result{
		Interfaces: []cni.Interface{{Name: "tnd1"}, {Name: request.IfName, MAC: "02:00:00:00:00:01", Sandbox: request.NetnsPath}},
		IPs:        []cni.IP{{Address: netip.MustParsePrefix("10.1.0.3/32"), Gateway: netip.MustParseAddr("10.1.0.1"), Interface: 1}},
	}, a.note(request)
}
func (a *answers) Del(_ context.Context, request *cni.Request) error   { return a.note(request) }
func (a *answers) Check(_ context.Context, request *cni.Request) error { return a.note(request) }
func (a *answers) GC(_ context.Context, request *cni.Request) error    { return a.note(request) }

func TestRuntimesOwnLibraryCanDriveThePlugin(t *testing.T) {
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			s, a := newSite(t), &answers{}
			s.listen(t, a)
			list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"tendril","plugins":[%s]}`, version, s.config(version)))
			if err != nil {
				t.Fatal(err)
			}
			runtime := libcni.NewCNIConfigWithCacheDir([]string{os.Getenv("TE_PLUGIN_DIR")}, s.dir, nil)
			container := &libcni.RuntimeConf{
				ContainerID: "c1", NetNS: "/proc/self/ns/net", IfName: "eth0",
				Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "web"}},
			}
			added, err := runtime.AddNetworkList(t.Context(), list, container)
			if err != nil {
				t.Fatal(err)
			}
			result, err := types100.GetResult(added)
			if err != nil || len(result.IPs) != 1 || result.IPs[0].Address.String() != "10.1.0.3/32" || !a.netns {
				t.Errorf("result is %+v, %v; namespace came: %v", result, err, a.netns)
			}
			want := []cni.Command{cni.Add, cni.Check, cni.Del}
			steps := []error{
				runtime.CheckNetworkList(t.Context(), list, container),
				runtime.DelNetworkList(t.Context(), list, container),
			}
			if version == "1.1.0" {
				want = append(want, cni.GC)
				steps = append(steps, runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{}))
			}
			if err := errors.Join(steps...); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(want, a.asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

// listOf is a network as the agent writes it for every runtime: with versions to choose from, or none but 1.0.0.
func (s site) listOf(t *testing.T, versions ...string) *libcni.NetworkConfigList {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "cniVersions": append([]string{}, versions...), "name": "tendril",
		"plugins": []any{map[string]string{"type": "tendril-cni", "socket": s.socket, "dataDir": s.dir}},
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestAContainerOfAnOlderVersionIsCheckedAndDeletedByTheNewest(t *testing.T) {
	s, a := newSite(t), &answers{}
	s.listen(t, a)
	runtime := libcni.NewCNIConfigWithCacheDir([]string{os.Getenv("TE_PLUGIN_DIR")}, s.dir, nil)
	container := &libcni.RuntimeConf{ContainerID: "c1", NetNS: "/proc/self/ns/net", IfName: "eth0"}
	if _, err := runtime.AddNetworkList(t.Context(), s.listOf(t), container); err != nil || a.version != "1.0.0" {
		t.Fatalf("ADD by version %s: %v", a.version, err)
	}
	updated := s.listOf(t, "1.0.0", "1.1.0")
	if err := runtime.CheckNetworkList(t.Context(), updated, container); err != nil || a.version != "1.1.0" {
		t.Errorf("CHECK by version %s: %v", a.version, err)
	}
	if err := runtime.DelNetworkList(t.Context(), updated, container); err != nil {
		t.Error(err)
	}
}

func TestRuntimesOwnLibraryTakesTheNewestVersionAndAsksForStatus(t *testing.T) {
	s, a := newSite(t), &answers{}
	list, runtime := s.listOf(t, "1.0.0", "1.1.0"), libcni.NewCNIConfigWithCacheDir([]string{os.Getenv("TE_PLUGIN_DIR")}, s.dir, nil)
	refused := func(when string) {
		t.Helper()
		err := runtime.GetStatusNetworkList(t.Context(), list)
		if failed := (*types.Error)(nil); !errors.As(err, &failed) || failed.Code != uint(cni.CodeUnavailable) || !strings.Contains(failed.Details, s.dir) {
			t.Errorf("STATUS %s: %v, want code %d and the folder", when, err, cni.CodeUnavailable)
		}
	}
	holds := func(when string) {
		t.Helper()
		if err := runtime.GetStatusNetworkList(t.Context(), list); err != nil {
			t.Errorf("STATUS %s: %v", when, err)
		}
	}
	refused("after a boot")
	stop := s.listen(t, a)
	refused("while the first agent starts")
	if err := cni.MarkReady(s.socket); err != nil {
		t.Fatal(err)
	}
	holds("when the agent is ready")
	a.fail = cni.Errorf(cni.CodeTryAgainLater, "no address for the pod", "pool 10.1.0.0/24")
	holds("while the pool is full")
	a.fail = nil
	valid := []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}}
	if err := runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		t.Error(err)
	}
	if a.version != "1.1.0" || !slices.Equal(a.valid, []cni.Attachment{{ContainerID: "c1", IfName: "eth0"}}) {
		t.Errorf("GC by version %s, valid %v", a.version, a.valid)
	}
	stop()
	holds("without an agent")
	if diff := cmp.Diff([]cni.Command{cni.GC}, a.asked); diff != "" {
		t.Errorf("the agent was asked (-want +got):\n%s", diff)
	}
}

func TestGCWaitsForAnAgentThatIsBeingRestarted(t *testing.T) {
	s, a := newSite(t), &answers{}
	started := make(chan struct{})
	go func() {
		defer close(started)
		time.Sleep(2 * delPatience)
		s.listen(t, a)
	}()
	runtime := libcni.NewCNIConfigWithCacheDir([]string{os.Getenv("TE_PLUGIN_DIR")}, s.dir, nil)
	err := runtime.GCNetworkList(t.Context(), s.listOf(t, "1.1.0"), &libcni.GCArgs{}) // as CRI-O without pods: the list is null
	<-started
	if err != nil || a.valid == nil || len(a.valid) > 0 {
		t.Errorf("GC: %v, valid %#v; want an empty list", err, a.valid)
	}
}

func TestVersionNeedsNoAgent(t *testing.T) {
	for asked, want := range map[string]string{
		`{"cniVersion":"1.0.0"}`: "1.0.0", `{"cniVersion":"9.9.9"}`: "1.1.0", `{}`: "1.1.0",
	} {
		out, status := newSite(t).exec(t, asked, "CNI_COMMAND=VERSION")
		want := fmt.Sprintf(`{"cniVersion":%q,"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`, want)
		if out != want || status != 0 {
			t.Errorf("asked %s: %s, status %d; want %s", asked, out, status, want)
		}
	}
}

// failure reads an error that the plugin printed.
func failure(t *testing.T, out string, status int) *types.Error {
	t.Helper()
	var printed struct {
		CNIVersion string `json:"cniVersion"`
		types.Error
	}
	if err := json.Unmarshal([]byte(out), &printed); err != nil || status != 1 || printed.CNIVersion == "" {
		t.Fatalf("printed %q, status %d; want a CNI error", out, status)
	}
	return &printed.Error
}

// environment of a command on container c1.
func environment(command, netns string) []string {
	return []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=" + netns,
		"CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
	}
}

func TestErrorsAreJSONWithCodeFieldAndRemedy(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		config string
		env    []string
		code   cni.Code
		says   string
	}{
		{s.config("1.1.0"), nil, cni.CodeInvalidEnvironment, "CNI_COMMAND"},
		{s.config("1.1.0"), environment("ADD", "/no/such/netns"), cni.CodeInvalidEnvironment, "CNI_NETNS"},
		{s.config("7.0.0"), environment("ADD", "/proc/self/ns/net"), cni.CodeIncompatibleVersion, "use one of"},
		{"{", environment("ADD", "/proc/self/ns/net"), cni.CodeDecode, "not valid JSON"},
		{"", []string{"CNI_COMMAND=VERSION"}, cni.CodeDecode, "not valid JSON"},
		{s.config("1.1.0"), environment("STATUS", ""), cni.CodeUnavailable, "has been ready"},
		{s.config("1.1.0"), environment("CHECK", "/proc/self/ns/net"), cni.CodeTryAgainLater, "does not answer"},
	} {
		out, status := s.exec(t, c.config, c.env...)
		got := failure(t, out, status)
		if got.Code != uint(c.code) || !strings.Contains(got.Msg+got.Details, c.says) {
			t.Errorf("%v: printed %s; want code %d and %q", c.env, out, c.code, c.says)
		}
	}
}

func TestAgentsErrorIsPrinted(t *testing.T) {
	s := newSite(t)
	s.listen(t, &answers{fail: cni.Errorf(cni.CodeTryAgainLater, "no address for the pod", "pool 10.1.0.0/24")})
	out, status := s.exec(t, s.config("1.1.0"), environment("ADD", "/proc/self/ns/net")...)
	want := &types.Error{Code: types.ErrTryAgainLater, Msg: "no address for the pod", Details: "pool 10.1.0.0/24"}
	if diff := cmp.Diff(want, failure(t, out, status)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestAddWaitsForAnAgentThatIsBeingRestarted(t *testing.T) {
	s, a := newSite(t), &answers{}
	started := make(chan struct{})
	go func() {
		defer close(started)
		time.Sleep(300 * time.Millisecond)
		s.listen(t, a)
	}()
	out, status := s.exec(t, s.config("1.1.0"), environment("ADD", "/proc/self/ns/net")...)
	<-started
	if status != 0 || !strings.Contains(out, "10.1.0.3") {
		t.Errorf("printed %s, status %d", out, status)
	}
}

func TestDeletionWithoutAgentIsQueuedAndSucceeds(t *testing.T) {
	s := newSite(t)
	for range 2 { // runtimes repeat deletions
		if out, status := s.exec(t, s.config("1.1.0"), environment("DEL", "/gone")...); status != 0 || out != "" {
			t.Fatalf("printed %q, status %d", out, status)
		}
	}
	var done []cni.Attachment
	err := cni.NewQueue(s.dir).Drain(func(request *cni.Request) error {
		done = append(done, request.Attachment())
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]cni.Attachment{{ContainerID: "c1", IfName: "eth0"}}, done); diff != "" {
		t.Errorf("queued (-want +got):\n%s", diff)
	}
}

func TestDeletionThatCannotEvenBeQueuedIsToBeRepeated(t *testing.T) {
	s := newSite(t)
	if err := os.WriteFile(filepath.Join(s.dir, "deletions"), nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	out, status := s.exec(t, s.config("1.1.0"), environment("DEL", "")...)
	if got := failure(t, out, status); got.Code != types.ErrTryAgainLater {
		t.Errorf("printed %s", out)
	}
}

// BenchmarkPlugin prints what running the plugin costs beyond what the agent does, beside running a program that does
// nothing.
func BenchmarkPlugin(b *testing.B) {
	s := newSite(b)
	s.listen(b, &answers{})
	var empty, whole time.Duration
	for b.Loop() {
		start := time.Now()
		if err := exec.Command("/bin/true").Run(); err != nil {
			b.Fatal(err)
		}
		empty += time.Since(start)
		start = time.Now()
		if out, status := s.exec(b, s.config("1.1.0"), environment("ADD", "/proc/self/ns/net")...); status != 0 {
			b.Fatal(out)
		}
		whole += time.Since(start)
	}
	b.ReportMetric(float64(empty.Microseconds())/float64(b.N), "true-us")
	b.ReportMetric(float64(whole.Microseconds())/float64(b.N), "plugin-us")
}
