package store

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAKeyIsItsKindAndNamesWithSlashes(t *testing.T) {
	hash := [16]byte{0xab, 15: 0x01}
	keys := map[string]Key{
		"epoch":               {Kind: KindEpoch},
		"nodes/n1":            NodeKey("n1"),
		"alive/n1":            AliveKey("n1"),
		"acks/n1":             AckKey("n1"),
		"ips/n1/10.0.0.1":     IPKey("n1", netip.MustParseAddr("::ffff:10.0.0.1")),
		"ips/n1/fd00::1":      IPKey("n1", netip.MustParseAddr("fd00:0::1")),
		"pods/n1/default/web": PodKey("n1", "default", "web"),
		"labels/ab000000000000000000000000000001": LabelsKey(hash),
		"namespaces/default":                      NamespaceKey("default"),
		"nodelabels/n1":                           NodeLabelsKey("n1"),
		"egressgateways/partners":                 EgressKey("partners"),
		"cidrgroups/office":                       CIDRGroupKey("office"),
		"services/default/web":                    ServiceKey("default", "web"),
		"endpoints/default/web/web-x1":            EndpointsKey("default", "web", "web-x1"),
		"policies/NetworkPolicy/default/deny":     PolicyKey("NetworkPolicy", "default", "deny"),
		"policies/ClusterNetworkPolicy/-/deny":    PolicyKey("ClusterNetworkPolicy", "", "deny"),
		"synced/e1/pods":                          syncedKey("e1", KindPod),
		"synced/e1/ips/n1":                        syncedNodeKey("e1", "n1"),
		"counters/policies":                       policyCounter(),
	}
	for text, key := range keys {
		if got := key.String(); got != text {
			t.Errorf("%#v prints %q, want %q", key, got, text)
		}
		if err := key.Check(); err != nil {
			t.Errorf("%q is refused: %v", text, err)
		}
		parsed, err := ParseKey(text)
		if err != nil {
			t.Errorf("parse: %v", err)
		}
		if diff := cmp.Diff(key, parsed); diff != "" {
			t.Errorf("%q (-made +parsed):\n%s", text, diff)
		}
	}
}

func TestAKeyThatIsNotOneSaysWhy(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "unknown kind",
		"flavours/x":                        "unknown kind",
		"nodes":                             "want 1 names",
		"nodes/":                            "a name is empty",
		"nodes/a/b":                         "want 1 names",
		"pods/n1/default":                   "want 3 names",
		"pods/n1/default/a/b":               "want 3 names",
		"pods/n1//a":                        "a name is empty",
		"epoch/1":                           "want 0 names",
		"nodes/a b":                         "space or a control character",
		"nodes/a\x00":                       "space or a control character",
		"nodes/\xff":                        "not UTF-8",
		"nodes/" + strings.Repeat("x", 254): "254 bytes",
		"ips/n1/10.0.0.01":                  "IPv4",
		"ips/n1/FD00::1":                    `must be written "fd00::1"`,
		"ips/n1/::ffff:10.0.0.1":            `must be written "10.0.0.1"`,
		"ips/n1/fe80::1%eth0":               `must be written "fe80::1"`,
		"labels/abc":                        "32 lower-case hex digits",
		"labels/AB000000000000000000000000000001": "32 lower-case hex digits",
		"synced/e1":     "want 2 names",
		"synced/e1/ips": "want 3 names",
	} {
		_, err := ParseKey(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want one with %q", text, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "key ") {
			t.Errorf("%q: error %q does not name the key", text, err)
		}
	}
}

func TestANameWithASlashCannotMakeAnotherKey(t *testing.T) {
	for _, key := range []Key{
		NodeKey("a/b"), PodKey("n1", "ns/x", "web"), ServiceKey("", "web"), ServiceKey("default", ""), PodKey("n1", "", "web"),
	} {
		if err := key.Check(); err == nil {
			t.Errorf("%#v is accepted as %q", key, key)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, text := range []string{"epoch", "nodes/n1", "ips/n1/10.0.0.1", "pods/n1/a/b", "synced/e/ips/n", "synced/e/pods", "labels/00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParseKey(text)
		if err != nil {
			if errors.Is(err, errUnknownKind) && newMessage(kindOf(text)) != nil {
				t.Errorf("%q: a known kind is called unknown", text)
			}
			return
		}
		if got := key.String(); got != text {
			t.Errorf("%q prints as %q", text, got)
		}
		if err := key.Check(); err != nil {
			t.Errorf("%q parses but is refused: %v", text, err)
		}
	})
}
