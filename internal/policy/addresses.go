package policy

import (
	"fmt"
	"slices"
	"strings"

	"tendril.io/tendril/bpf"
)

// Header names the columns.
func (AddressRow) Header() []string { return []string{"prefix", "peer", "node", "endpoint", "flags"} }

// Cells prints the row.
func (r AddressRow) Cells() []string {
	var flags []string
	for flag := bpf.AddressFlag(1); flag <= bpf.AddressFlagUnknown; flag <<= 1 {
		if bpf.AddressFlag(r.Flags)&flag != 0 {
			flags = append(flags, flag.String())
		}
	}
	return []string{r.Prefix.String(), fmt.Sprint(r.Peer), fmt.Sprint(r.Node), fmt.Sprint(r.Endpoint), strings.Join(flags, " ")}
}

// Addresses lists the addresses and prefixes that the kernel has, in order.
func (e *Engine) Addresses() []AddressRow {
	var out []AddressRow
	for _, family := range worldPrefixes() {
		for p := range e.places.within(family) {
			if p.shown {
				out = append(out, p.row)
			}
		}
	}
	slices.SortFunc(out, func(a, b AddressRow) int { return a.Prefix.Compare(b.Prefix) })
	return out
}
