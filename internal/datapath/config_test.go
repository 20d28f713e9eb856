package datapath

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"tendril.io/tendril/bpf"
)

func TestConfigNamesWhatCannotBe(t *testing.T) {
	for want, spoil := range map[string]func(*Config){
		`root "": give an absolute folder`:                  func(c *Config) { c.Root = "" },
		`root "relative": give an absolute folder`:          func(c *Config) { c.Root = "relative" },
		`root "/": give an absolute folder`:                 func(c *Config) { c.Root = "/" },
		`root "/sys/fs/bpf/a.b": bpffs allows no dot`:       func(c *Config) { c.Root = "/sys/fs/bpf/a.b" },
		`cgroup "leaf": give an absolute folder`:            func(c *Config) { c.Cgroup = "leaf" },
		"node.class_words 1024: give a power of two, at mo": func(c *Config) { c.Node.ClassWords = 1024 },
		"node.class_words 6: give a power of two":           func(c *Config) { c.Node.ClassWords = 6 },
		"sizes[flows] is 0: leave it out":                   func(c *Config) { c.Sizes = map[string]uint32{"flows": 0} },
		"node.nat_port_min 0 and nat_port_max 60999":        func(c *Config) { c.Node.NATPortMin = 0 },
		"node.nat_port_min 61000 and nat_port_max 60999":    func(c *Config) { c.Node.NATPortMin = 61000 },
		"node.overlay_ifindex is 0 though feature tunnel":   func(c *Config) { c.Node.Features |= bpf.FeatureTunnel },
		"node.features has neither ipv4 nor ipv6: turn at ": func(c *Config) { c.Node.Features &^= bpf.FeatureIPv4 | bpf.FeatureIPv6 },
	} {
		cfg := testConfig("/sys/fs/bpf/tendril")
		if err := cfg.Validate(); err != nil {
			t.Fatalf("a good configuration: %v", err)
		}
		spoil(&cfg)
		err := cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), "datapath config: "+want) {
			t.Errorf("got %v, want it to say %q", err, want)
		}
		if _, openErr := Open(t.Context(), cfg); openErr == nil || openErr.Error() != err.Error() {
			t.Errorf("open says %v, validate %v", openErr, err)
		}
	}
}

func TestSizeOfAnUnknownMapNamesTheKnownOnes(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	cfg.Sizes["adresses"] = 5
	_, err := Open(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "sizes[adresses]: there is no such map; there are addresses, affinities, announcements, assignments,") {
		t.Errorf("got %v", err)
	}
}

func TestMapThatCannotBeMadeLeavesNoOther(t *testing.T) {
	cfg := testConfig(rootFolder(t))
	cfg.Sizes["events"] = 1000 // a ring buffer's size must be a power of 2
	if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "open map events: create with 1000 entries") {
		t.Errorf("got %v", err)
	}
	if left := must(listFolder(cfg.Root + "/" + mapsFolder)); len(left) > 0 {
		t.Errorf("left pinned: %v", left)
	}
}

func TestNeededFeatureThatLacksIsNamedWithARemedy(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{ebpf.ErrNotSupported, "kernel feature frob (for tests) is missing: run Linux 6.1 or newer"},
		{errors.New("operation not permitted"), "kernel feature frob (for tests) cannot be tried: run as root"},
	} {
		err := require([]featureProbe{
			{"optional", false, "nothing", func() error { return ebpf.ErrNotSupported }},
			{"frob", true, "tests", func() error { return c.err }},
		})
		var feature *FeatureError
		if !errors.As(err, &feature) || !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestFeaturesOfThisKernel(t *testing.T) {
	rootFolder(t) // needs root
	for _, f := range Features() {
		t.Logf("%-22s %v %s", f.Name, f.Available, f.Detail)
		if f.Needed && !f.Available {
			t.Errorf("this kernel lacks %s, or the probe is wrong: %s", f.Name, f.Detail)
		}
	}
	if err := RequireFeatures(); err != nil {
		t.Error(err)
	}
}

// The probe for TCX must agree with what attaching does.
func TestProbeForTCXAgreesWithAttaching(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	err := d.AttachUplink(testDevice(t))
	var need *NeedClsactError
	if has := tryTCX() == nil; has != (err == nil) || !has != errors.As(err, &need) {
		t.Errorf("probe says %v, attaching says %v", has, err)
	}
}
