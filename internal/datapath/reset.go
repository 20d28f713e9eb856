package datapath

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

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

// ResetClients ends the sockets whose backend is gone in the calling thread's network namespace, and only those.
func (d *Datapath) ResetClients() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil {
		return errors.New("reset clients: the programs are not in force yet: try again in some seconds")
	}
	for _, name := range []string{"reset_tcp", "reset_udp"} {
		if err := iterate(d.current.programs[name]); err != nil {
			return fmt.Errorf("reset clients: %s: %w", name, err)
		}
	}
	return nil
}

// iterate runs an iterator to its end.
func iterate(program *ebpf.Program) error {
	attached, err := link.AttachIter(link.IterOptions{Program: program})
	if err != nil {
		return err
	}
	defer attached.Close()
	walk, err := attached.Open()
	if err != nil {
		return err
	}
	defer walk.Close()
	_, err = io.Copy(io.Discard, walk)
	return err
}
