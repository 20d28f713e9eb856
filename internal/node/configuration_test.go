package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/policy"
)

// configMap is a folder as kubelet mounts a ConfigMap: the file is a link through a link that is replaced.
type configMap struct {
	t       *testing.T
	folder  string
	version int
}

func (m *configMap) path() string { return filepath.Join(m.folder, "agent.json") }

// write replaces what the folder shows, in one step.
func (m *configMap) write(text string) {
	m.t.Helper()
	m.version++
	data := "..version" + string(rune('0'+m.version))
	must := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(m.folder, data), 0o755))
	must(os.WriteFile(filepath.Join(m.folder, data, "agent.json"), []byte(text), 0o644))
	must(os.Symlink(data, filepath.Join(m.folder, "..data_tmp")))
	must(os.Rename(filepath.Join(m.folder, "..data_tmp"), filepath.Join(m.folder, "..data")))
	if m.version == 1 {
		must(os.Symlink(filepath.Join("..data", "agent.json"), m.path()))
	}
}

// following is an agent that does nothing but follow its configuration. It says in moved where its store was to go.
func following(t *testing.T, path string, moved *atomic.Value) *Agent {
	t.Helper()
	config, err := Load(path, "node1")
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{config: config, configuration: newConfiguration(config), flows: flow.NewRing(config.FlowHistory), log: slog.New(slog.DiscardHandler)}
	a.configuration.move = func(store, publish []string) error {
		moved.Store(fmt.Sprint(store, publish))
		return nil
	}
	done := make(chan error)
	go func() { done <- a.followConfiguration(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

// soon waits for what the agent says of its configuration.
func soon(t *testing.T, a *Agent, what string, holds func(problems string) bool) {
	t.Helper()
	said := ""
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		said = ""
		for _, p := range a.configuration.problems() {
			said += p.GetObject() + ": " + p.GetMessage() + "; " + p.GetRemedy() + "\n"
		}
		if holds(said) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s; problems:\n%s", what, said)
		}
	}
}

func TestAnAgentFollowsItsConfigMap(t *testing.T) {
	const rest = `"store": ["s:1"], "publish": ["p:1"]`
	m := &configMap{t: t, folder: t.TempDir()}
	m.write(`{` + rest + `}`)
	var moved atomic.Value
	a := following(t, m.path(), &moved)
	start, changed := a.configuration.InForce()

	m.write(`{` + rest + `, "lb_mode": "dsr", "flow_history": 100}`)
	<-changed
	inForce, _ := a.configuration.InForce()
	if inForce.LBMode != LBModeDSR || inForce.Node != "node1" || start.LBMode != LBModeSNAT {
		t.Errorf("in force is %+v; at the start it was %+v", inForce, start)
	}
	soon(t, a, "the history has the new size", func(said string) bool { return said == "" && a.flows.Len() == 128 })
	digest := inForce.origin.digest

	m.write(`{` + rest + `, "lb_mode": "direct", "flow_history": "many", "no_masquerade": ["10.0.0.1"], "uplnk": "eth0"}`)
	soon(t, a, "all mistakes of reading are named", func(said string) bool {
		return strings.Contains(said, "configuration "+m.path()+`: flow_history: "many" is not a whole number; correct the file`) &&
			strings.Contains(said, `no_masquerade: ["10.0.0.1"] is not a list of prefixes`) && strings.Contains(said, `unknown field "uplnk"`)
	})
	m.write(`{` + rest + `, "lb_mode": "direct", "flow_history": 7}`)
	soon(t, a, "the value is named", func(said string) bool { return strings.Contains(said, `lb_mode: "direct" is neither snat nor dsr`) })
	if now, _ := a.configuration.InForce(); now != inForce || a.flows.Len() != 128 || a.configuration.message().GetDigest() != digest || !a.configuration.message().GetRefused() {
		t.Errorf("a file with a mistake changed what is in force: %+v", now)
	}

	m.write(`{` + rest + `, "mode": "vxlan", "flow_history": 1000}`)
	soon(t, a, "what needs a restart waits", func(said string) bool {
		return strings.Contains(said, `mode: "native" is in force, the file says "vxlan", which waits for a restart of the agent; restart the agent`)
	})
	message := a.configuration.message()
	if w := message.GetWaiting(); len(w) != 1 || w[0].GetKey() != "mode" || message.GetDigest() == digest || message.GetRefused() || a.flows.Len() != 1024 {
		t.Errorf("the agent says %+v", message)
	}
	_, rows := showConfiguration(a)
	shown := map[string][]string{}
	for _, row := range rows {
		shown[row[0]] = row
	}
	if row := shown["mode"]; len(row) != 4 || row[1] != "restart" || row[2] != `"native"` || row[3] != `"vxlan"` {
		t.Errorf("the table shows %v in %v", row, maps.Keys(shown))
	}

	m.write(`{"store": ["s:1", "s2:1"], "publish": ["p:1", "p2:1"]}`)
	soon(t, a, "the store's client goes to other addresses", func(said string) bool { return said == "" && moved.Load() == "[s:1 s2:1] [p:1 p2:1]" })
	m.write(`{` + rest + `}`)
	soon(t, a, "nothing waits any more", func(said string) bool { return said == "" && moved.Load() == "[s:1] [p:1]" })
	if now, _ := a.configuration.InForce(); len(changes(start, now)) != 0 {
		t.Errorf("with the first file again, it differs by %+v", changes(start, now))
	}
}

// An editor may truncate the file before it writes it anew, or put another one in its place.
func TestAnAgentFollowsAPlainFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.json")
	write := func(to, text string) {
		t.Helper()
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const form = `{"store": ["s:1"], "publish": ["p:1"], "flow_history": `
	write(path, form+"1}")
	a := following(t, path, new(atomic.Value))
	write(path, form)
	write(path, form+"16}")
	soon(t, a, "the file is followed", func(said string) bool { return said == "" && a.flows.Len() == 16 })
	write(path+".new", form+"32}")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	soon(t, a, "its successor is followed", func(said string) bool { return said == "" && a.flows.Len() == 32 })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	soon(t, a, "the file is missed", func(said string) bool { return strings.Contains(said, "no such file") && a.flows.Len() == 32 })
	write(path, form+"64}")
	soon(t, a, "it is followed again", func(said string) bool { return said == "" && a.flows.Len() == 64 })
}

// settingsOf stands for an agent's configuration.
func settingsOf(config Config) *configuration { return newConfiguration(config.withDefaults()) }

func TestThePolicyLoopFollowsTheConfiguration(t *testing.T) {
	settings := settingsOf(Config{})
	n := startNode1(t)
	n.loop.configured = settings.InForce
	close(n.loaded)
	n.policy(allowClients, 1)
	n.labelled("web", "node1", map[string]string{"app": "web"})
	n.endpoint(1, "web", "10.244.1.5")
	eventually(t, "the node reaches its pod", func() bool { return n.datapath.judge(1, "172.30.0.1", 80) == bpf.ActionAllow })
	outside := netip.MustParsePrefix("198.51.100.0/24")
	keeps := func() (keeps bool) {
		n.datapath.with(func() { keeps = n.datapath.kernel.Rows[outside].Flags&uint32(bpf.AddressFlagNoMasquerade) != 0 })
		return keeps
	}
	for _, deny := range []bool{true, false} {
		next := Config{DenyLocalHost: deny, HostTrialSeconds: 7}.withDefaults()
		if deny {
			next.NoMasquerade = []netip.Prefix{outside}
		}
		settings.adopt(&next, &next)
		eventually(t, "it follows", func() bool {
			return (n.datapath.judge(1, "172.30.0.1", 80) != bpf.ActionAllow) == deny && keeps() == deny
		})
	}
	n.loop.Read(func(*policy.Engine) {
		if n.loop.trial.period != 7*time.Second {
			t.Errorf("trials last %s, want 7 s", n.loop.trial.period)
		}
	})
}

// The folder may be one where something is written all the time.
func TestAnAgentFollowsItsFileInABusyFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.json")
	const form = `{"store": ["s:1"], "publish": ["p:1"], "flow_history": `
	if err := os.WriteFile(path, []byte(form+"1}"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := following(t, path, new(atomic.Value))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for t.Context().Err() == nil && a.flows.Len() != 16 {
			_ = os.WriteFile(path+".log", nil, 0o600)
		}
	}()
	time.Sleep(2 * gathering) // it has begun
	if err := os.WriteFile(path, []byte(form+"16}"), 0o600); err != nil {
		t.Fatal(err)
	}
	soon(t, a, "the file is followed", func(string) bool { return a.flows.Len() == 16 })
	<-ended
}

// What the kernel does not take is not in force, with nothing of the same file; it is tried again.
func TestAConfigurationThatTheKernelRefusesChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(`{"store": ["s:1"], "publish": ["p:1"], "flow_history": `+text+"}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("16")
	config, err := Load(path, "node1")
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{config: config, configuration: newConfiguration(config), flows: flow.NewRing(16), log: slog.New(slog.DiscardHandler)}
	refusal := errors.New("load programs: no memory")
	var loaded []*Config
	a.configuration.load = func(_ context.Context, config *Config) (uint32, error) {
		loaded = append(loaded, config)
		return 2, refusal
	}
	write(`32, "masquerade": true, "half_open_limit": 7`)
	taken := a.takeOver(t.Context())
	problems := a.configuration.problems()
	if now, _ := a.configuration.InForce(); taken || now.Masquerade || a.flows.Len() != 16 || len(problems) != 1 ||
		problems[0].GetMessage() != refusal.Error() || !strings.HasPrefix(problems[0].GetRemedy(), "take the change back if this lasts") {
		t.Errorf("refused by the kernel: taken over %v, in force %+v, history %d, problems %v", taken, now, a.flows.Len(), problems)
	}
	refusal = nil
	taken = a.takeOver(t.Context())
	if now, _ := a.configuration.InForce(); !taken || !now.Masquerade || now.HalfOpenLimit != 7 || a.flows.Len() != 32 || len(a.configuration.problems()) != 0 {
		t.Errorf("then taken over %v, in force %+v, history %d, problems %v", taken, now, a.flows.Len(), a.configuration.problems())
	}
	write(`64, "masquerade": true, "half_open_limit": 7`) // no program knows of the history
	if taken := a.takeOver(t.Context()); !taken || a.flows.Len() != 64 || len(loaded) != 2 {
		t.Errorf("without a change for programs: taken over %v, %d loads", taken, len(loaded))
	}
	if version, err := a.configuration.reload(t.Context()); err != nil || version != 2 || loaded[2].HalfOpenLimit != 7 {
		t.Errorf("a reload on request: version %d, %v, with %+v", version, err, loaded[2])
	}
}
