package cni

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types040 "github.com/containernetworking/cni/pkg/types/040"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const goodConfig = `{"cniVersion":"1.1.0","name":"tendril","type":"tendril-cni"}`

// goodEnv is an ADD that is accepted; changes are applied to it, an empty value removing the variable.
func goodEnv(changes map[string]string) func(string) string {
	env := map[string]string{
		"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/c1",
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u-1",
	}
	maps.Copy(env, changes)
	return func(key string) string { return env[key] }
}

func parse(changes map[string]string, config string) (*Request, error) {
	raw := FromEnvironment(goodEnv(changes), []byte(config))
	return raw.Parse()
}

func TestRequestIsParsedFromEnvironmentAndConfiguration(t *testing.T) {
	got, err := parse(map[string]string{
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0.x;K8S_POD_UID=u-1;" +
			"K8S_POD_INFRA_CONTAINER_ID=c1;OTHERS=a=b;TENDRIL_LABELS=app=web,example.com/tier=,x=1.0;" +
			"TENDRIL_SERVICE_ACCOUNT=sa;TENDRIL_NAMED_PORTS=http:80,dns:53/UDP,s:1/sctp",
	}, `{"cniVersion":"1.0.0","name":"net","type":"tendril-cni","socket":"/s","dataDir":"/d","ipam":{"other":"plugin"}}`)
	if err != nil {
		t.Fatal(err)
	}
	want := &Request{
		Command: Add, ContainerID: "c1", IfName: "eth0", NetnsPath: "/run/netns/c1",
		Args: Args{
			Namespace: "default", Pod: "web-0.x", UID: "u-1", Sandbox: "c1", ServiceAccount: "sa",
			Labels:     map[string]string{"app": "web", "example.com/tier": "", "x": "1.0"},
			NamedPorts: []NamedPort{{"http", 80, 6}, {"dns", 53, 17}, {"s", 1, 132}},
		},
		Config: Config{CNIVersion: "1.0.0", Name: "net", Type: "tendril-cni", Socket: "/s", DataDir: "/d"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestArgumentsFromTheRuntimeWinFieldByField(t *testing.T) {
	config := `{"cniVersion":"1.1.0","name":"n",
		"args":{"tendril":{"labels":{"from":"args"},"serviceAccount":"args","namedPorts":["a:1"]}},
		"runtimeConfig":{"tendril":{"labels":{"from":"runtime"},"serviceAccount":"runtime"}}}`
	got, err := parse(map[string]string{
		"CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;TENDRIL_LABELS=from=env",
	}, config)
	if err != nil {
		t.Fatal(err)
	}
	want := Args{
		Namespace: "default", Pod: "web", Labels: map[string]string{"from": "env"}, ServiceAccount: "runtime",
		NamedPorts: []NamedPort{{"a", 1, 6}},
	}
	if diff := cmp.Diff(want, got.Args); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
}

func TestPodWithoutLabelsDiffersFromPodOfUnknownLabels(t *testing.T) {
	unknown, err := parse(nil, goodConfig)
	if err != nil || unknown.Args.Labels != nil {
		t.Errorf("nobody gave labels: %v, %v; want nil", unknown.Args.Labels, err)
	}
	none, err := parse(map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;TENDRIL_LABELS="}, goodConfig)
	if err != nil || none.Args.Labels == nil || len(none.Args.Labels) != 0 {
		t.Errorf("given as empty: %v, %v; want an empty set", none.Args.Labels, err)
	}
}

// Podman gives a container's name as the pod's, with capitals and underscores, and no namespace.
func TestContainersOfRuntimesWithoutNamespacesAreInTheDefaultOne(t *testing.T) {
	got, err := parse(map[string]string{"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=;K8S_POD_NAME=Quiet_Fox.1"}, goodConfig)
	if err != nil || got.Args.Namespace != DefaultNamespace || got.Args.Pod != "Quiet_Fox.1" {
		t.Errorf("pod is %s/%s, %v", got.Args.Namespace, got.Args.Pod, err)
	}
	if got, err := parse(map[string]string{"CNI_ARGS": "IgnoreUnknown=1"}, goodConfig); err != nil || got.Args.Namespace != "" {
		t.Errorf("without a pod the namespace is %q, %v", got.Args.Namespace, err)
	}
}

// pod is CNI_ARGS with more pairs.
func pod(more string) map[string]string {
	return map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;" + more}
}

func TestBadEnvironmentIsRefusedByNameWithTheRemedy(t *testing.T) {
	for _, c := range []struct {
		change map[string]string
		field  string
		remedy string
	}{
		{map[string]string{"CNI_COMMAND": ""}, "CNI_COMMAND", "use ADD"},
		{map[string]string{"CNI_COMMAND": "add"}, "CNI_COMMAND", "use ADD"},
		{map[string]string{"CNI_CONTAINERID": ""}, "CNI_CONTAINERID", "start with"},
		{map[string]string{"CNI_CONTAINERID": "../x"}, "CNI_CONTAINERID", "start with"},
		{map[string]string{"CNI_CONTAINERID": strings.Repeat("a", 300)}, "CNI_CONTAINERID", "at most 255"},
		{map[string]string{"CNI_IFNAME": ""}, "CNI_IFNAME", "1 to 15"},
		{map[string]string{"CNI_IFNAME": "sixteen-bytes-xx"}, "CNI_IFNAME", "1 to 15"},
		{map[string]string{"CNI_IFNAME": "a/b"}, "CNI_IFNAME", "without '/'"},
		{map[string]string{"CNI_IFNAME": "eth%d"}, "CNI_IFNAME", "'%'"},
		{map[string]string{"CNI_IFNAME": ".."}, "CNI_IFNAME", "1 to 15"},
		{map[string]string{"CNI_IFNAME": "lo"}, "CNI_IFNAME", "another name"},
		{map[string]string{"CNI_NETNS": ""}, "CNI_NETNS", "give the path"},
		{map[string]string{"CNI_NETNS": "run/netns/x"}, "CNI_NETNS", "absolute"},
		{map[string]string{"CNI_ARGS": "K8S_POD_NAME"}, "CNI_ARGS", "KEY=VALUE"},
		{map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=default"}, "CNI_ARGS", "name the pod"},
		{map[string]string{"CNI_ARGS": "TENDRIL_LABELS=a=b"}, "CNI_ARGS", "name the pod"},
		{pod("K8S_POD_UID=a/b"), "K8S_POD_UID", "without '/'"},
		{map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=b"}, "K8S_POD_NAMESPACE", "use letters"},
		{map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=a;K8S_POD_NAME=_b"}, "K8S_POD_NAME", "use letters"},
		{pod("TENDRIL_SERVICE_ACCOUNT=a_b"), "TENDRIL_SERVICE_ACCOUNT", "lower-case"},
		{pod("TENDRIL_LABELS=app"), "TENDRIL_LABELS", "key=value"},
		{pod("TENDRIL_LABELS=a=1,a=2"), "TENDRIL_LABELS", "twice"},
		{pod("TENDRIL_LABELS=-a=1"), "label key", "DNS prefix"},
		{pod("TENDRIL_LABELS=a/b/c=1"), "label key", "DNS prefix"},
		{pod("TENDRIL_LABELS=a=b c"), "label a", "at most 63"},
		{pod("TENDRIL_LABELS=a=" + strings.Repeat("x", 64)), "label a", "at most 63"},
		{pod("TENDRIL_NAMED_PORTS=http"), "TENDRIL_NAMED_PORTS", "http:80/tcp"},
		{pod("TENDRIL_NAMED_PORTS=http:0"), "TENDRIL_NAMED_PORTS", "http:80/tcp"},
		{pod("TENDRIL_NAMED_PORTS=http:70000"), "TENDRIL_NAMED_PORTS", "http:80/tcp"},
		{pod("TENDRIL_NAMED_PORTS=http:80/icmp"), "TENDRIL_NAMED_PORTS", "http:80/tcp"},
		{pod("TENDRIL_NAMED_PORTS=HTTP:80"), "TENDRIL_NAMED_PORTS", "http:80/tcp"},
	} {
		_, err := parse(c.change, goodConfig)
		refused(t, err, CodeInvalidEnvironment, c.field, c.remedy)
	}
}

func TestHostPortsAreTheRuntimesAlone(t *testing.T) {
	config := func(mappings string) string {
		return `{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"portMappings":[` + mappings + `]}}`
	}
	got, err := parse(pod(""), config(`{"hostPort":8080,"containerPort":80,"protocol":"TCP"},{"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"192.0.2.1"},
		{"hostPort":54,"containerPort":53,"hostIP":"::ffff:127.0.0.1"},{"hostPort":8080,"containerPort":80,"hostIP":"0.0.0.0"},{"hostPort":8080,"containerPort":81,"protocol":"sctp","hostIP":"2001:db8::1"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []HostPort{
		{Port: 8080, Target: 80, Protocol: 6}, {Addr: netip.MustParseAddr("192.0.2.1"), Port: 53, Target: 5353, Protocol: 17},
		{Addr: netip.MustParseAddr("127.0.0.1"), Port: 54, Target: 53, Protocol: 6}, {Addr: netip.MustParseAddr("2001:db8::1"), Port: 8080, Target: 81, Protocol: 132},
	}
	if diff := cmp.Diff(want, got.Args.HostPorts, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("host ports (-want +got):\n%s", diff)
	}
	for mappings, remedy := range map[string]string{
		`{"hostPort":0,"containerPort":80}`:                                                          "use 1 to 65535",
		`{"hostPort":80,"containerPort":70000}`:                                                      "use 1 to 65535",
		`{"hostPort":80,"containerPort":80,"protocol":"icmp"}`:                                       "use tcp, udp or sctp",
		`{"hostPort":80,"containerPort":80,"hostIP":"224.0.0.1"}`:                                    "an address of the node",
		`{"hostPort":80,"containerPort":80,"hostIP":"node"}`:                                         "an address of the node",
		`{"hostPort":80,"containerPort":80},{"hostPort":80,"containerPort":81,"hostIP":"192.0.2.1"}`: "portMappings[1]",
	} {
		_, err := parse(pod(""), config(mappings))
		refused(t, err, CodeInvalidEnvironment, "runtimeConfig.portMappings", remedy)
	}
}

func TestBandwidthIsRead(t *testing.T) {
	got, err := parse(pod(""), `{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"bandwidth":{"ingressRate":1000,"ingressBurst":4294967295,"egressRate":2000,"egressBurst":1}}}`)
	if err != nil || got.Args.Bandwidth != (Bandwidth{IngressRate: 1000, EgressRate: 2000}) {
		t.Errorf("bandwidth is %+v, %v", got, err)
	}
}

// A runtime calls DEL for what ADD refused, with the same arguments, until it succeeds.
func TestWhatAddRefusedForItsArgumentsCanBeDeleted(t *testing.T) {
	for args, config := range map[string]string{
		"TENDRIL_LABELS=-": goodConfig,
		"":                 `{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80}]}}`,
	} {
		environment := pod(args)
		if _, err := parse(environment, config); err == nil {
			t.Errorf("%q: ADD accepts it", args)
		}
		environment["CNI_COMMAND"] = "DEL"
		got, err := parse(environment, config)
		if err != nil || got.ContainerID == "" {
			t.Errorf("%q: DEL: %+v, %v", args, got, err)
		}
	}
}

func refused(t *testing.T, err error, code Code, says ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted; want an error that says %q", says)
		return
	}
	if got := AsError(err).Code; got != code {
		t.Errorf("%v: code %d, want %d", err, got, code)
	}
	for _, want := range says {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

func TestBadConfigurationIsRefusedByFieldWithTheRemedy(t *testing.T) {
	for _, c := range []struct {
		config string
		code   Code
		says   []string
	}{
		{"", CodeDecode, []string{"empty", "standard input"}},
		{"{", CodeDecode, []string{"not valid JSON"}},
		{`{"name":"n"}`, CodeIncompatibleVersion, []string{"0.1.0", "use one of 0.3.0"}},
		{`{"cniVersion":"2.0.0","name":"n"}`, CodeIncompatibleVersion, []string{"2.0.0"}},
		{`{"cniVersion":"1.1.0"}`, CodeInvalidConfig, []string{"name", "start with"}},
		{`{"cniVersion":"1.1.0","name":"a b"}`, CodeInvalidConfig, []string{"name", "start with"}},
		{`{"cniVersion":"1.1.0","name":"n","socket":"run/x"}`, CodeInvalidConfig, []string{"socket", "absolute"}},
		{`{"cniVersion":"1.1.0","name":"n","dataDir":"x"}`, CodeInvalidConfig, []string{"dataDir", "absolute"}},
		{`{"cniVersion":"1.1.0","name":"n","socket":"/` + strings.Repeat("x", 200) + `"}`, CodeInvalidConfig, []string{"at most 107"}},
		{`{"cniVersion":"1.1.0","name":"n","args":{"tendril":{"namedPorts":["x"]}}}`, CodeInvalidEnvironment, []string{"args.tendril.namedPorts"}},
	} {
		_, err := parse(nil, c.config)
		refused(t, err, c.code, c.says...)
	}
}

func TestCommandsAreRefusedBeforeTheirVersion(t *testing.T) {
	for command, since := range map[string]string{"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"} {
		for i, version := range Versions() {
			_, err := parse(map[string]string{"CNI_COMMAND": command}, `{"cniVersion":"`+version+`","name":"n","cni.dev/valid-attachments":[]}`)
			if allowed := i >= slices.Index(Versions(), since); allowed != (err == nil) {
				t.Errorf("%s with cniVersion %s: %v", command, version, err)
			}
		}
	}
}

func TestDeletionNeedsNoNamespaceAndStatusNoContainer(t *testing.T) {
	for _, change := range []map[string]string{
		{"CNI_COMMAND": "DEL", "CNI_NETNS": ""},
		{"CNI_COMMAND": "STATUS", "CNI_NETNS": "", "CNI_CONTAINERID": "", "CNI_IFNAME": ""},
		{"CNI_COMMAND": "GC", "CNI_NETNS": "", "CNI_CONTAINERID": "", "CNI_IFNAME": ""},
	} {
		if _, err := parse(change, gcConfig("[]")); err != nil {
			t.Errorf("%v: %v", change, err)
		}
	}
}

// gcConfig is a configuration with what the runtime says may stay.
func gcConfig(valid string) string {
	return `{"cniVersion":"1.1.0","name":"tendril","type":"tendril-cni","cni.dev/valid-attachments":` + valid + `}`
}

func TestGarbageCollectionWantsTheListOfWhatMayStay(t *testing.T) {
	gc := map[string]string{"CNI_COMMAND": "GC"}
	_, err := parse(gc, goodConfig)
	refused(t, err, CodeInvalidConfig, "cni.dev/valid-attachments", "[] if nothing may")
	for valid, want := range map[string][]Attachment{
		"[]":                                    {},
		"null":                                  {}, // a nil slice of the CNI project's library
		`[{"containerID":"a","ifname":"eth0"}]`: {{"a", "eth0"}},
	} {
		request, err := parse(gc, gcConfig(valid))
		if err != nil {
			t.Errorf("list %s: %v", valid, err)
			continue
		}
		if diff := cmp.Diff(attachments(want), request.Config.ValidAttachments); diff != "" {
			t.Errorf("list %s (-want +got):\n%s", valid, diff)
		}
	}
	_, err = parse(gc, gcConfig(`{"containerID":"a"}`))
	refused(t, err, CodeDecode, "not valid JSON")
}

func testResult() *Result {
	return &Result{
		Interfaces: []Interface{
			{Name: "tnd1", MAC: "02:00:00:00:00:01", MTU: 1500},
			{Name: "eth0", MAC: "02:00:00:00:00:02", MTU: 1500, Sandbox: "/run/netns/c1"},
		},
		IPs: []IP{
			{netip.MustParsePrefix("10.1.0.3/32"), netip.MustParseAddr("10.1.0.1"), 1},
			{netip.MustParsePrefix("fd01::3/128"), netip.MustParseAddr("fd01::1"), 1},
		},
		Routes: []Route{
			{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.1.0.1"), 1450},
			{netip.MustParsePrefix("::/0"), netip.MustParseAddr("fd01::1"), 1450},
		},
	}
}

func TestResultOfEachVersionIsReadByTheCNIProjectsLibrary(t *testing.T) {
	for _, version := range Versions() {
		encoded, err := testResult().Encode(version)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := create.Create(version, encoded)
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		got, err := types100.GetResult(parsed)
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		var lines []string
		for _, ip := range got.IPs {
			lines = append(lines, got.Interfaces[*ip.Interface].Name+" "+ip.Address.String()+" "+ip.Gateway.String())
		}
		for _, r := range got.Routes {
			lines = append(lines, r.Dst.String()+" "+r.GW.String())
		}
		want := []string{"eth0 10.1.0.3/32 10.1.0.1", "eth0 fd01::3/128 fd01::1", "0.0.0.0/0 10.1.0.1", "::/0 fd01::1"}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
		if newest := version == "1.1.0"; newest != (got.Interfaces[1].Mtu == 1500) || newest != (got.Routes[0].MTU == 1450) {
			t.Errorf("%s: MTU of device and route are %d and %d", version, got.Interfaces[1].Mtu, got.Routes[0].MTU)
		}
	}
	if _, err := testResult().Encode("0.2.0"); AsError(err).Code != CodeIncompatibleVersion {
		t.Errorf("encoding in a version we do not speak: %v", err)
	}
}

func TestOldResultsNameTheirFamily(t *testing.T) {
	encoded, err := testResult().Encode("0.4.0")
	if err != nil {
		t.Fatal(err)
	}
	var old types040.Result
	if err := json.Unmarshal(encoded, &old); err != nil {
		t.Fatal(err)
	}
	if old.IPs[0].Version != "4" || old.IPs[1].Version != "6" {
		t.Errorf("families are %q and %q", old.IPs[0].Version, old.IPs[1].Version)
	}
}

func TestErrorIsReadByTheCNIProjectsLibrary(t *testing.T) {
	encoded, err := json.Marshal(Errorf(CodeTryAgainLater, "try again later", "because %d", 7))
	if err != nil {
		t.Fatal(err)
	}
	var got types.Error
	if err := json.Unmarshal(encoded, &got); err != nil {
		t.Fatal(err)
	}
	want := types.Error{Code: types.ErrTryAgainLater, Msg: "try again later", Details: "because 7"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("ADD", "c1", "eth0", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;TENDRIL_LABELS=a=b", "/n", []byte(goodConfig))
	f.Add("DEL", "", "", ";=;", "", []byte(`{"cniVersion":"0.4.0","name":"n","prevResult":null}`))
	f.Fuzz(func(t *testing.T, command, container, ifName, args, netns string, config []byte) {
		raw := Raw{Command(command), container, ifName, args, netns, config}
		request, err := raw.Parse()
		if err != nil {
			if known := AsError(err); known.Code == CodeInternal {
				t.Errorf("error without a code of its own: %v", err)
			}
			return
		}
		if request.Config.Name == "" || request.Config.Socket == "" || !slices.Contains(Versions(), request.Config.CNIVersion) {
			t.Errorf("accepted configuration is incomplete: %+v", request.Config)
		}
		if strings.ContainsAny(request.ContainerID+request.IfName+request.Args.Namespace+request.Args.Pod+request.Args.UID, "/\x00") {
			t.Errorf("accepted a name that cannot be part of a key or path: %+v", request)
		}
	})
}
