package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigurationNamesEveryMistakeAtOnce(t *testing.T) {
	for _, test := range []struct {
		name, file string
		want       []string // nil: it is valid
	}{
		{"complete", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24","fd00::/64"]}`, nil},
		{"no pod CIDRs: the store has them", `{"node":"n","store":["s:1"],"publish":["p:1"]}`, nil},
		{"Kubernetes' folders", `{"node":"n","store":["s:1"],"publish":["p:1"],"cni_bin_dir":"bin","ready_addr":"7470"}`,
			[]string{`cni_bin_dir: "bin" is not an absolute path`, "ready_addr: address 7470: missing port in address"}},
		{"empty", `{}`, []string{"node: required", "store: required", "publish: required"}},
		{"addresses", `{"node":"n","store":["s","http://s:1"],"publish":["p"],"pod_cidrs":["10.0.0.0/24"]}`,
			[]string{`store: "s" is not host:port`, `store: "http://s:1" is not host:port`, `publish: "p" is not host:port`}},
		{"not an object", `["node"]`, []string{"it has to be one JSON object"}},
		{"values of other forms", `{"masquerade":"yes","vni":-1,"tunnel_port":65536,"store":"s:1","mode":1,"map_sizes":[],"no_masquerade":["10.0.0.0/99"]}`, []string{
			`masquerade: "yes" is not true or false`, "vni: -1 is not a whole number from 0 to 4294967295", "tunnel_port: 65536 is not a whole number from 0 to 65535",
			`store: "s:1" is not a list of strings`, "mode: 1 is not a string", "map_sizes: [] is not an object of numbers", `no_masquerade: ["10.0.0.0/99"] is not a list of prefixes`,
		}},
		{"unknown field", `{"nodes":"n"}`, []string{`unknown field "nodes"`}},
		{"not JSON", `node: n`, []string{"invalid character"}},
		{"host bits", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.7/24"]}`,
			[]string{"pod_cidrs[0]: 10.0.0.7/24 has host bits set; write 10.0.0.0/24"}},
		{"two of a family", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24","10.0.1.0/24"]}`,
			[]string{"pod_cidrs[1]: 10.0.1.0/24 is a second prefix of its family"}},
		{"no room", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/30"]}`, []string{"has no room for pods"}},
		{"mode", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"mode":"gre"}`,
			[]string{`mode: "gre" is neither native nor vxlan`}},
		{"mapped", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["::ffff:10.0.0.0/120"]}`,
			[]string{"pod_cidrs[0]: ::ffff:10.0.0.0/120 is IPv4 in IPv6's form"}},
		{"empty", `{"node":"n","store":["s:1"],"publish":["p:1"],"no_masquerade":["10.0.0.0/8",""],"pod_cidrs":[""]}`,
			[]string{"no_masquerade[1]: an empty string is no prefix; leave it out", "pod_cidrs[0]: an empty string"}},
		{"host bits outside", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"no_masquerade":["10.9.0.1/8"]}`,
			[]string{"no_masquerade[0]: 10.9.0.1/8 has host bits set; write 10.0.0.0/8"}},
		{"node ports' host bits", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"node_port_addresses":["fd00::/8","172.30.0.1/24"]}`,
			[]string{"node_port_addresses[1]: 172.30.0.1/24 has host bits set; write 172.30.0.0/24"}},
		{"one folder twice", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"run_dir":"/x","state_dir":"/x"}`,
			[]string{`state_dir: "/x" is run_dir too`}},
		{"numbers", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"vni":16777216,"flow_history":-1}`,
			[]string{"vni: 16777216 does not fit 24 bits", "flow_history: -1 is not within 0 to 4194304; leave it out for"}},
		{"too short a lease", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"alive_lease_seconds":4}`,
			[]string{"alive_lease_seconds: 4 is not within 5 to 3600; leave it out for"}},
		{"no way back", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"lb_mode":"xdp"}`,
			[]string{`lb_mode: "xdp" is neither snat nor dsr`}},
		{"no such XDP", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"xdp":"on"}`,
			[]string{`xdp: "on" is none of off, auto, native and generic`}},
		{"no prime", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"maglev_size":65536}`,
			[]string{"maglev_size: maglev size 65536: must be a prime, the nearest below is 65521"}},
		{"two objects", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"]} {}`, []string{"it has to be one JSON object"}},
		{"relative path", `{"node":"n","store":["s:1"],"publish":["p:1"],"pod_cidrs":["10.0.0.0/24"],"run_dir":"run"}`,
			[]string{`run_dir: "run" is not an absolute path`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "agent.json")
			if err := os.WriteFile(path, []byte(test.file), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(path, "")
			if len(test.want) == 0 && err != nil {
				t.Fatalf("got %v, want no error", err)
			}
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want it to contain %q", err, want)
				}
			}
		})
	}
}

func TestDefaultsFillWhatTheFileLeavesOut(t *testing.T) {
	got := Config{}.withDefaults()
	if got.Mode != ModeNative || got.BPFRoot != "/sys/fs/bpf/tendril" || got.VNI != 7471 || got.TunnelPort != 8472 || got.HalfOpenLimit == 0 {
		t.Errorf("unexpected defaults: %+v", got)
	}
}
