package netlink

import (
	"fmt"

	lib "github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Features lists what is switched on of a device's offloads, by the names that ethtool(8) shows.
func (h *Handle) Features(ifIndex uint32) (names []string, err error) {
	err = enter(h.namespace, func() error {
		names, err = features(ifIndex)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("features of device %d: %w", ifIndex, err)
	}
	return names, nil
}

// features asks ethtool's family of generic netlink (the kernel's Documentation/networking/ethtool-netlink.rst).
func features(ifIndex uint32) ([]string, error) {
	family, err := lib.GenlFamilyGet(unix.ETHTOOL_GENL_NAME)
	if err != nil {
		return nil, err
	}
	header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_INDEX, nl.Uint32Attr(ifIndex))
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	request.AddData(&nl.Genlmsg{Command: unix.ETHTOOL_MSG_FEATURES_GET, Version: unix.ETHTOOL_GENL_VERSION})
	request.AddData(header)
	replies, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, reply := range replies {
		names = append(names, bitNames(reply[nl.SizeofGenlmsg:])...)
	}
	return names, nil
}

// bitNames reads the names of the set of bits that are active, each in three layers of attributes.
func bitNames(reply []byte) (names []string) {
	for _, bits := range within(reply, unix.ETHTOOL_A_FEATURES_ACTIVE, unix.ETHTOOL_A_BITSET_BITS, unix.ETHTOOL_A_BITSET_BITS_BIT) {
		for _, name := range within(bits, unix.ETHTOOL_A_BITSET_BIT_NAME) {
			names = append(names, nl.BytesToString(name))
		}
	}
	return names
}

// within finds the values of attributes of a kind, in the values of those of another, and so on.
func within(payload []byte, path ...uint16) [][]byte {
	if len(path) == 0 {
		return [][]byte{payload}
	}
	attributes, err := nl.ParseRouteAttr(payload)
	if err != nil {
		return nil // the kernel's own messages are whole
	}
	var found [][]byte
	for _, attribute := range attributes {
		if attribute.Attr.Type&nl.NLA_TYPE_MASK == path[0] {
			found = append(found, within(attribute.Value, path[1:]...)...)
		}
	}
	return found
}
