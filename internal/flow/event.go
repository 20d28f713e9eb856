package flow

import (
	"fmt"
	"unsafe"

	"tendril.io/tendril/bpf"
)

// EventSize is the length in bytes of an event in the ring buffer (struct event in bpf/lib/structs.h).
const EventSize = int(unsafe.Sizeof(bpf.Event{}))

// Decode copies what the ring buffer carried into an event. It refuses what no datapath of this version writes, and
// then leaves the event as it was.
func Decode(raw []byte, event *bpf.Event) error {
	if len(raw) != EventSize {
		return fmt.Errorf("event of %d bytes: want %d: is an agent of another version on this datapath?", len(raw), EventSize)
	}
	var decoded bpf.Event
	// The layouts are equal field by field, padding included: the bpf package's tests compare them with the BTF.
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&decoded)), EventSize), raw)
	if decoded.Kind.String() == "" {
		return fmt.Errorf("event kind %d: not one of this datapath", decoded.Kind)
	}
	*event = decoded
	return nil
}
