package cni

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// after parses an ADD whose configuration has a prevResult.
func after(t *testing.T, result string) (*Previous, error) {
	t.Helper()
	request, err := parse(nil, `{"cniVersion":"1.1.0","name":"n","prevResult":`+result+`}`)
	if err != nil {
		t.Fatal(err)
	}
	return request.Previous()
}

func TestPreviousHasTheAddressesOfThePodsDevice(t *testing.T) {
	for result, want := range map[string][]netip.Addr{
		// of bridge, which names itself and both ends
		`{"interfaces":[{"name":"cni0"},{"name":"veth1"},{"name":"eth0","sandbox":"/n"}],"ips":[{"interface":2,"address":"fd22::5/64"},{"interface":2,"address":"10.22.0.5/24"}]}`: {
			netip.MustParseAddr("10.22.0.5"), netip.MustParseAddr("fd22::5")},
		// the host's end has an address, too
		`{"interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.22.0.1/24"},{"interface":1,"address":"10.22.0.5/24"}]}`: {
			netip.MustParseAddr("10.22.0.5")},
		// before 1.0 nobody need say whose it is
		`{"ips":[{"version":"4","address":"10.22.0.5/24"}]}`: {netip.MustParseAddr("10.22.0.5")},
	} {
		got, err := after(t, result)
		if err != nil {
			t.Errorf("%s: %v", result, err)
			continue
		}
		if diff := cmp.Diff(want, got.Addrs, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: addresses (-want +got):\n%s", result, diff)
		}
		if encoded, err := (&Result{Previous: got.Raw}).Encode("1.1.0"); err != nil || string(encoded) != result {
			t.Errorf("passed on as %s, %v", encoded, err)
		}
	}
	for _, none := range []string{"null", `null,"x":1`} {
		if got, err := after(t, none); got != nil || err != nil {
			t.Errorf("%s: %+v, %v; want nothing", none, got, err)
		}
	}
}

func TestPreviousThatNoPodCanHaveIsRefused(t *testing.T) {
	for result, want := range map[string]struct {
		code Code
		says string
	}{
		`[]`:                                   {CodeDecode, "the plugin before"},
		`{}`:                                   {CodeInvalidConfig, "give the plugin before tendril-cni an ipam"},
		`{"ips":[{"address":"10.22.0"}]}`:      {CodeDecode, "the plugin before"},
		`{"ips":[{"address":"fe80::1/64"}]}`:   {CodeInvalidConfig, "global unicast"},
		`{"ips":[{"address":"127.0.0.1/8"}]}`:  {CodeInvalidConfig, "global unicast"},
		`{"ips":[{"address":"224.0.0.1/32"}]}`: {CodeInvalidConfig, "global unicast"},
		`{"ips":[{"address":"10.22.0.5/24"},{"address":"10.22.0.6/24"}]}`:                                                                            {CodeUnsupportedField, "one range a family"},
		`{"ips":[{"address":"10.22.0.5/24"},{"address":"::ffff:10.22.0.6/120"}]}`:                                                                    {CodeUnsupportedField, "one range a family"},
		`{"interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"interface":-1,"address":"10.22.0.5/24"},{"interface":7,"address":"10.22.0.5/24"}]}`: {CodeInvalidConfig, "no address"},
		`{"interfaces":[{"name":"net1","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.22.0.5/24"}]}`:                                           {CodeInvalidConfig, "device eth0"},
	} {
		_, err := after(t, result)
		refused(t, err, want.code, want.says)
	}
}
