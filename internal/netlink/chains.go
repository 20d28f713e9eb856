package netlink

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Chains lists the names of nftables' chains, in the order of the kernel. iptables in its mode nft keeps its chains there as well; those of
// its legacy mode are not seen. Where the kernel has no nftables there are none.
func (h *Handle) Chains() (names []string, err error) {
	err = enter(h.namespace, func() error {
		request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
		request.AddRawData([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}) // struct nfgenmsg, linux/netfilter/nfnetlink.h
		replies, err := again(func() ([][]byte, error) { return request.Execute(unix.NETLINK_NETFILTER, 0) })
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list chains of nftables: %w", err)
		}
		for _, reply := range replies {
			if name := chainName(reply); name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		return nil
	})
	return names, err
}

// chainName finds NFTA_CHAIN_NAME in a chain's description.
func chainName(chain []byte) string {
	const header = 4 // struct nfgenmsg
	if len(chain) < header {
		return ""
	}
	for kind, value := range attributes(chain[header:]) {
		if kind == unix.NFTA_CHAIN_NAME {
			return string(bytes.TrimRight(value, "\x00"))
		}
	}
	return ""
}
