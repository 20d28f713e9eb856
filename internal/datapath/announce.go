package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"tendril.io/tendril/bpf"
)

// Announcement is an address that the node answers for on its uplink's link, by ARP and neighbour discovery, though no device
// has it. Instants are since the machine's boot.
type Announcement struct {
	Addr  netip.Addr
	MAC   [6]byte
	Until time.Duration
	// Yields is not zero for an address that is held without a lease: the node is silent once a rival was heard since then.
	Yields time.Duration
}

// Announce makes the node answer for these addresses and no others. What goes, goes first.
func (d *Datapath) Announce(rows []Announcement) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	there, err := known[bpf.Address, bpf.Announcement](d.set.maps["announcements"])
	if err != nil {
		return fmt.Errorf("read map announcements: %w", err)
	}
	wanted := make(map[bpf.Address]bpf.Announcement, len(rows))
	for _, row := range rows {
		wanted[bpf.AddressOf(row.Addr)] = bpf.Announcement{Until: uint64(row.Until), Yields: uint64(row.Yields), MAC: row.MAC}
	}
	for key := range there {
		if _, stays := wanted[key]; stays {
			continue
		}
		if err := deleteRow(d, writeAnnouncement, "announcements", &key); err != nil {
			return fmt.Errorf("silence %s: %w", key.Addr(), err)
		}
	}
	for key, value := range wanted {
		if err := putRow(d, writeAnnouncement, "announcements", d.set.maps["announcements"], there, key, value); err != nil {
			return fmt.Errorf("announce %s: %w", key.Addr(), err)
		}
	}
	return nil
}

// Announced lists what the node answers for, those whose time is over included.
func (d *Datapath) Announced() ([]Announcement, error) {
	there, err := known[bpf.Address, bpf.Announcement](d.set.maps["announcements"])
	if err != nil {
		return nil, fmt.Errorf("read map announcements: %w", err)
	}
	rows := make([]Announcement, 0, len(there))
	for key, value := range there {
		rows = append(rows, Announcement{
			Addr: key.Addr(), MAC: value.MAC, Until: time.Duration(value.Until), Yields: time.Duration(value.Yields),
		})
	}
	return rows, nil
}

// Rival is somebody else on the link who said to have an announced address.
type Rival struct {
	MAC  net.HardwareAddr
	Seen time.Duration // the last time, since boot
}

// Rivals lists who else said to have one of the addresses.
func (d *Datapath) Rivals() (map[netip.Addr]Rival, error) {
	there, err := known[bpf.Address, bpf.Rival](d.set.maps["rivals"])
	if err != nil {
		return nil, fmt.Errorf("read map rivals: %w", err)
	}
	rivals := make(map[netip.Addr]Rival, len(there))
	for key, value := range there {
		rivals[key.Addr()] = Rival{MAC: value.MAC[:], Seen: time.Duration(value.Seen)}
	}
	return rivals, nil
}
