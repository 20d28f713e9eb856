package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	lib "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tendril.io/tendril/internal/table"
)

// kernel is a socket whose other end plays the kernel, and what it has sent so far is all that it will send.
func kernel(t *testing.T, datagrams ...[]byte) *conn {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ends[0]) })
	for _, datagram := range datagrams {
		if err := unix.Send(ends[1], datagram, 0); err != nil {
			t.Fatal(err)
		}
	}
	unix.SetNonblock(ends[0], true) // waiting for more fails at once
	t.Cleanup(func() { unix.Close(ends[1]) })
	return &conn{fd: ends[0], spoilt: true, buffer: make([]byte, 1<<12)}
}

// answer is a message of the kernel.
func answer(kind, flags uint16, sequence uint32, body []byte) []byte {
	out := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	out = binary.NativeEndian.AppendUint16(out, kind)
	out = binary.NativeEndian.AppendUint16(out, flags)
	out = binary.NativeEndian.AppendUint32(out, sequence)
	return append(append(out, 0, 0, 0, 0), body...)
}

// acknowledged is struct nlmsgerr with the header of the request, as NETLINK_CAP_ACK leaves it.
func acknowledged(sequence uint32, errno unix.Errno, attributes ...byte) []byte {
	body := binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))
	body = append(body, make([]byte, unix.SizeofNlMsghdr)...)
	flags := uint16(0)
	if len(attributes) > 0 {
		flags = 0x200 // NLM_F_ACK_TLVS
	}
	return answer(unix.NLMSG_ERROR, flags, sequence, append(body, attributes...))
}

func TestAnswersOfTheKernel(t *testing.T) {
	batch := []message{{what: "first"}, {what: "second", absent: true}, {what: "third", present: true}}
	reason := attributeText(nil, unix.NLMSGERR_ATTR_MSG, "because of the moon")
	for name, c := range map[string]struct {
		datagrams [][]byte
		err       string // "": none
		data      []string
		spoilt    bool
	}{
		"one datagram for each": {
			datagrams: [][]byte{acknowledged(5, 0), acknowledged(6, 0), acknowledged(7, 0)},
		},
		"all in one datagram": {
			datagrams: [][]byte{slices.Concat(acknowledged(5, 0), acknowledged(6, 0), acknowledged(7, 0))},
		},
		"what is absent need not be removed, what is present not added": {
			datagrams: [][]byte{acknowledged(5, 0), acknowledged(6, unix.ENODEV), acknowledged(7, unix.EEXIST)},
		},
		"the first failure counts, and the others are read all the same": {
			datagrams: [][]byte{acknowledged(5, unix.EPERM), acknowledged(6, unix.EBUSY), acknowledged(7, unix.ENODEV)},
			err:       "first: operation not permitted",
		},
		"the kernel's own words": {
			datagrams: [][]byte{acknowledged(5, unix.EINVAL, reason...), acknowledged(6, 0), acknowledged(7, 0)},
			err:       "first: invalid argument (because of the moon)",
		},
		"data comes before its acknowledgement": {
			datagrams: [][]byte{acknowledged(5, 0), answer(unix.RTM_NEWLINK, 0, 6, []byte("link")), acknowledged(6, 0), acknowledged(7, 0)},
			data:      []string{"link"},
		},
		"answers to an earlier batch are passed over": {
			datagrams: [][]byte{acknowledged(4, unix.EPERM), acknowledged(5, 0), acknowledged(900, unix.EPERM), acknowledged(6, 0), acknowledged(7, 0)},
		},
		"an acknowledgement without an error number": {
			datagrams: [][]byte{answer(unix.NLMSG_ERROR, 0, 5, nil), acknowledged(6, 0), acknowledged(7, 0)},
			err:       "first: acknowledgement of 0 bytes",
		},
		"one that never comes spoils the socket": {
			datagrams: [][]byte{acknowledged(5, 0), acknowledged(6, 0)},
			err:       "third: receive:", spoilt: true,
		},
		"a datagram cut off spoils the socket": {
			datagrams: [][]byte{acknowledged(5, 0)[:20]},
			err:       "first: receive:", spoilt: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := kernel(t, c.datagrams...)
			data, err := c2.answers(batch, 5)
			if (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
				t.Errorf("error is %v, want %q", err, c.err)
			}
			var got []string
			for _, body := range data {
				got = append(got, string(body))
			}
			if diff := cmp.Diff(c.data, got); diff != "" && c.err == "" {
				t.Errorf("data (-want +got):\n%s", diff)
			}
			if c2.spoilt != c.spoilt {
				t.Errorf("spoilt is %t, want %t", c2.spoilt, c.spoilt)
			}
		})
	}
}

func TestSpoiltSocketIsNotUsedAgain(t *testing.T) {
	node := newNode(t)
	spoilt := kernel(t)
	node.release(spoilt)
	c, err := node.conn()
	if err != nil {
		t.Fatal(err)
	}
	defer node.release(c)
	if c == spoilt {
		t.Error("the next batch would read the answers to an earlier one")
	}
}

func TestTornDumpIsNeverTakenForAWholeOne(t *testing.T) {
	other := errors.New("no memory")
	for name, c := range map[string]struct {
		outcomes []error // of the readings, the last one repeated
		tries    int
		err      error
	}{
		"whole at once":           {[]error{nil}, 1, nil},
		"whole at the third time": {[]error{lib.ErrDumpInterrupted, lib.ErrDumpInterrupted, nil}, 3, nil},
		"torn each time":          {[]error{lib.ErrDumpInterrupted}, 5, lib.ErrDumpInterrupted},
		"another error":           {[]error{other}, 1, other},
	} {
		tries := 0
		rows, err := again(func() ([]int, error) {
			tries++
			return []int{tries}, c.outcomes[min(tries, len(c.outcomes))-1]
		})
		if tries != c.tries || !errors.Is(err, c.err) || (err == nil) != (len(rows) == 1) {
			t.Errorf("%s: %d tries, rows %v, %v; want %d tries and %v", name, tries, rows, err, c.tries, c.err)
		}
	}
}

func TestUnwantedRoutes(t *testing.T) {
	devices := map[int]string{1: "lo", 2: "te-up", 3: "te-down"}
	route := func(to string, device, inTable int) lib.Route {
		return lib.Route{Dst: ipNet(prefix(to)), LinkIndex: device, Table: inTable}
	}
	wanted := []*table.RouteWanted{
		{Prefix: prefix("10.2.0.0/24"), Device: "te-up"},
		{Prefix: prefix("fd02::/64"), Device: "te-up", Table: 7},
		{Prefix: prefix("10.9.0.0/24"), Device: "te-gone"},
	}
	var got []string
	for _, r := range unwanted([]lib.Route{
		route("10.2.0.0/24", 2, unix.RT_TABLE_MAIN), // wanted; no table is the main one
		route("10.2.0.0/24", 3, unix.RT_TABLE_MAIN), // by another device
		route("10.2.0.0/24", 2, 7),                  // in another table
		route("10.2.0.0/25", 2, unix.RT_TABLE_MAIN), // another prefix
		route("fd02::/64", 2, 7),                    // wanted
		route("fd02::/64", 2, unix.RT_TABLE_MAIN),   // in another table
		route("10.9.0.0/24", 9, unix.RT_TABLE_MAIN), // of a device without a name
	}, devices, slices.Values(wanted)) {
		got = append(got, fmt.Sprintf("%s dev %d table %d", r.Dst, r.LinkIndex, r.Table))
	}
	want := []string{
		"10.2.0.0/24 dev 3 table 254", "10.2.0.0/24 dev 2 table 7", "10.2.0.0/25 dev 2 table 254", "fd02::/64 dev 2 table 254",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("unwanted (-want +got):\n%s", diff)
	}
}

func TestPairThatCannotBeFinishedLeavesNothing(t *testing.T) {
	for name, spoil := range map[string]func(*Pair){
		"an address twice":        func(p *Pair) { p.Addrs = append(p.Addrs, p.Addrs[0]) },
		"an MTU below IPv6's":     func(p *Pair) { p.DeviceMTU = 1000 },
		"a gateway that is ::1":   func(p *Pair) { p.Routers = []netip.Addr{addr("::1")} },
		"a device name too long":  func(p *Pair) { p.Device = "te-sixteen-bytes" },
		"a multicast MAC":         func(p *Pair) { p.PodMAC[0] |= 1 },
		"a pod's name that is lo": func(p *Pair) { p.IfName = "lo" },
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), newNamespace(t)
			pair := testPair(pod, 0)
			spoil(&pair)
			if _, err := node.CreatePair(pair); err == nil {
				t.Fatal("the pair was made")
			}
			for where, h := range map[string]*Handle{"node": node, "pod": inside(t, pod)} {
				if s, err := h.Snapshot(); err != nil || len(s.Devices) != 1 {
					t.Errorf("devices left in the %s: %+v, %v; want lo alone", where, s.Devices, err)
				}
			}
		})
	}
}

func TestOverlayWithAForeignLinkAddressIsMadeAnew(t *testing.T) {
	node := newNode(t)
	foreign := &lib.Vxlan{LinkAttrs: lib.LinkAttrs{Name: OverlayDevice}, FlowBased: true, Port: 8472}
	if err := node.lib.LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	if _, err := node.EnsureOverlay(Overlay{Port: 8472, MTU: 1400}); err != nil {
		t.Fatal(err)
	}
	link, err := node.lib.LinkByName(OverlayDevice)
	mac := OverlayMAC()
	if err != nil || !slices.Equal(link.Attrs().HardwareAddr, mac[:]) {
		t.Errorf("overlay device is %+v, %v; want the link address that every node expects", link, err)
	}
}
