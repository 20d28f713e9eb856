package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/service"
)

// GoneBackends lists the backends of a delta whose clients must not be left hanging.
func GoneBackends(delta *service.Delta) []uint32 {
	var gone []uint32
	for _, row := range delta.Retired {
		if row.State == bpf.BackendGone {
			gone = append(gone, row.Index)
		}
	}
	return gone
}

// NetnsCookie is the number by which programs know the node's own network namespace.
func (d *Datapath) NetnsCookie() uint64 { return d.node.NetnsCookie }

// TakeClients says which of the network namespaces, by cookie, have had sockets connected to the backends, and forgets it.
func (d *Datapath) TakeClients(backends []uint32, namespaces []uint64) (map[uint64]bool, error) {
	found := make(map[uint64]bool)
	for _, backend := range backends {
		for _, namespace := range namespaces {
			err := d.set.maps["backend_clients"].Delete(bpf.BackendClient{Namespace: namespace, Backend: backend})
			if err == nil {
				found[namespace] = true
			} else if !errors.Is(err, ebpf.ErrKeyNotExist) {
				return found, fmt.Errorf("clients of backend %d: %w", backend, err)
			}
		}
	}
	return found, nil
}

// DueSocket is a socket that has to end, since its backend is gone. The cookie (SO_COOKIE) says that it is no later one with the
// same ends.
type DueSocket struct {
	Protocol      uint8 // IPPROTO_TCP or IPPROTO_UDP
	Local, Remote netip.AddrPort
	Device        uint32 // that it is bound to; 0: none
	Cookie        uint64
}

// ResetClients ends the sockets whose backend is gone in the calling thread's network namespace, and only those. What the
// kernel's programs cannot end (before 6.5) it returns.
func (d *Datapath) ResetClients() ([]DueSocket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil {
		return nil, errors.New("reset clients: the programs are not in force yet: try again in some seconds")
	}
	tcp, err := WalkSockets(d.current.programs["reset_tcp"], unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("reset clients: reset_tcp: %w", err)
	}
	udp, err := WalkSockets(d.current.programs["reset_udp"], unix.IPPROTO_UDP)
	if err != nil {
		return tcp, fmt.Errorf("reset clients: reset_udp: %w", err)
	}
	return append(tcp, udp...), nil
}

// WalkSockets runs an iterator of reset.bpf.c to its end, over a protocol's sockets of the calling thread's network namespace, and
// returns those that it names.
func WalkSockets(program *ebpf.Program, protocol uint8) ([]DueSocket, error) {
	attached, err := link.AttachIter(link.IterOptions{Program: program})
	if err != nil {
		return nil, err
	}
	defer attached.Close()
	walk, err := attached.Open()
	if err != nil {
		return nil, err
	}
	defer walk.Close()
	text, err := io.ReadAll(walk)
	if err != nil {
		return nil, err
	}
	named := make([]bpf.DueSocket, len(text)/binary.Size(bpf.DueSocket{}))
	if _, err := binary.Decode(text, binary.NativeEndian, named); err != nil {
		return nil, err
	}
	due := make([]DueSocket, len(named))
	for i, n := range named {
		due[i] = DueSocket{
			Protocol: protocol, Device: n.Device, Cookie: n.Cookie,
			Local:  netip.AddrPortFrom(n.Local.Addr(), bpf.Port(n.LocalPort)),
			Remote: netip.AddrPortFrom(n.Remote.Addr(), bpf.Port(n.RemotePort)),
		}
	}
	return due, nil
}
