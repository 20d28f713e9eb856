package datapath

import (
	"sync/atomic"

	"tendril.io/tendril/bpf"
)

// write is a kind of change to the kernel's state.
type write uint8

const (
	writeAssignment write = iota // a number given out or taken back
	writeContent                 // a program's cells
	writeClass                   // a row of selector bits
	writePeer                    // a peer's class
	writeAddress                 // an exact address
	writePrefix                  // a CIDR
	writeProgram                 // a descriptor: a program changes
	writeEndpoint                // an endpoint record
	writeEpoch                   // the verdict epoch
	writeBackend
	writeSlots
	writeFrontend
	writeGuard
	writeNamespace
	writeNode
	writeUplink
	writeAnnouncement
	writeGateway // an egress gateway, its pods or routes
	writeEntry   // an entry slot: a datapath version changes
	writeKinds
)

func (w write) String() string {
	return [writeKinds]string{"assignment", "content", "class", "peer", "address", "prefix", "program", "endpoint", "epoch",
		"backend", "slots", "frontend", "guard", "namespace", "node", "uplink", "announcement", "gateway", "entry"}[w]
}

// writeCounts counts changes by kind. Writes that found the kernel equal already are not changes.
type writeCounts struct {
	n [writeKinds]atomic.Uint64
	// fault, in tests, ends the agent's life ahead of a write.
	fault func(write) error
}

// step is called ahead of every change.
func (c *writeCounts) step(kind write) error {
	if c.fault != nil {
		if err := c.fault(kind); err != nil {
			return err
		}
	}
	c.n[kind].Add(1)
	return nil
}

// Writes is how many changes were made to the kernel's state since Open, by kind.
func (d *Datapath) Writes() map[string]uint64 {
	out := make(map[string]uint64, writeKinds)
	for kind := range writeKinds {
		out[kind.String()] = d.counts.n[kind].Load()
	}
	return out
}

// VerdictEpoch is the node-wide number that rises with every publication that can change a verdict.
func (d *Datapath) VerdictEpoch() uint32 {
	return atomic.LoadUint32(d.arenas.control.half(uint32(bpf.ControlVerdictEpoch)))
}
