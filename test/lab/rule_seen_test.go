package lab

import (
	"encoding/binary"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	vishvananda "github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/internal/lab"
)

// What testNoRules wants not to be there is seen where it is.
func TestARuleAndATrackedConnectionAreSeen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a table of nftables")
	}
	// A network of the test's own, which ends with this thread: the machine's rules and connections are not to be touched.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	here := lab.Place{Name: "test", Netns: "/proc/thread-self/ns/net"}
	if found, err := kernelRules(here); err != nil || len(found) > 0 {
		t.Fatalf("at first: %q, %v, want nothing", found, err)
	}
	makeTable(t)
	tuple := vishvananda.IPTuple{SrcIP: net.IPv4(192, 0, 2, 1), DstIP: net.IPv4(192, 0, 2, 2), SrcPort: 1, DstPort: 2, Protocol: unix.IPPROTO_UDP}
	reverse := vishvananda.IPTuple{SrcIP: tuple.DstIP, DstIP: tuple.SrcIP, SrcPort: 2, DstPort: 1, Protocol: unix.IPPROTO_UDP}
	flow := &vishvananda.ConntrackFlow{FamilyType: unix.AF_INET, Forward: tuple, Reverse: reverse, TimeOut: 100}
	if err := vishvananda.ConntrackCreate(vishvananda.ConntrackTable, unix.AF_INET, flow); err != nil {
		t.Fatal(err)
	}
	found, err := kernelRules(here)
	text := strings.Join(found, "\n")
	if err != nil || !strings.Contains(text, "nftables table") || !strings.Contains(text, "conntrack: ") {
		t.Errorf("found %q, %v, want the table and the connection", found, err)
	}
}

// makeTable makes a table of nftables, which takes a batch (linux/netfilter/nfnetlink.h).
func makeTable(t *testing.T) {
	t.Helper()
	var batch []byte
	// The kernel takes this resource in host order, too, as the first nft wrote it (net/netfilter/nfnetlink.c).
	message := func(kind, flags int, resource uint16, payload []byte) {
		request := nl.NewNetlinkRequest(kind, flags)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_IPV4, Version: nl.NFNETLINK_V0, ResId: resource})
		request.AddRawData(payload)
		batch = append(batch, request.Serialize()...)
	}
	message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.NLM_F_ACK|unix.NLM_F_CREATE, 0, nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated("seen")).Serialize())
	message(unix.NFNL_MSG_BATCH_END, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	if err := unix.Sendto(socket, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4096)
	if n, _, err := unix.Recvfrom(socket, answer, 0); err != nil || n < 20 || binary.NativeEndian.Uint32(answer[16:]) != 0 {
		t.Fatalf("table of nftables: %v, error %d", err, int32(binary.NativeEndian.Uint32(answer[16:])))
	}
}
