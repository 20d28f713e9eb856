package cni

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// Result is what ADD answers, in one form for all versions of the CNI.
type Result struct {
	Interfaces []Interface
	IPs        []IP
	Routes     []Route
	// Previous is, of a chained plugin, the answer of the one before it: it is passed on as it came, with what only others know.
	Previous json.RawMessage
}

// Interface is a device that ADD made.
type Interface struct {
	Name    string
	MAC     string
	MTU     uint32
	Sandbox string // path of the network namespace; empty: on the host
}

// IP is an address of a device.
type IP struct {
	Address   netip.Prefix
	Gateway   netip.Addr
	Interface int // index into Interfaces
}

// Route is a route inside the pod.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
	MTU uint32
}

// The shapes of section 5, "ADD Success". Fields that a version does not know are left out by Encode.
type (
	wireResult struct {
		CNIVersion string          `json:"cniVersion"`
		Interfaces []wireInterface `json:"interfaces,omitempty"`
		IPs        []wireIP        `json:"ips,omitempty"`
		Routes     []wireRoute     `json:"routes,omitempty"`
		DNS        struct{}        `json:"dns"`
	}
	wireInterface struct {
		Name    string `json:"name"`
		MAC     string `json:"mac,omitempty"`
		MTU     uint32 `json:"mtu,omitempty"` // since 1.1
		Sandbox string `json:"sandbox,omitempty"`
	}
	wireIP struct {
		Version   string       `json:"version,omitempty"` // 4 or 6, before 1.0
		Interface *int         `json:"interface,omitempty"`
		Address   netip.Prefix `json:"address"`
		Gateway   string       `json:"gateway,omitempty"`
	}
	wireRoute struct {
		Dst netip.Prefix `json:"dst"`
		GW  string       `json:"gw,omitempty"`
		MTU uint32       `json:"mtu,omitempty"` // since 1.1
	}
)

// Encode writes the result in the JSON of a CNI version, one of Versions.
func (r *Result) Encode(version string) ([]byte, error) {
	at := slices.Index(Versions(), version)
	since := func(v string) bool { return at >= slices.Index(Versions(), v) }
	if at < 0 {
		return nil, Errorf(CodeIncompatibleVersion, "incompatible CNI version", "cniVersion is %s", abbreviated(version))
	}
	if r.Previous != nil {
		return r.Previous, nil
	}
	wire := wireResult{CNIVersion: version}
	for _, i := range r.Interfaces {
		if !since("1.1.0") {
			i.MTU = 0
		}
		wire.Interfaces = append(wire.Interfaces, wireInterface(i))
	}
	for _, ip := range r.IPs {
		out := wireIP{Interface: &ip.Interface, Address: ip.Address, Gateway: text(ip.Gateway)}
		if !since("1.0.0") {
			out.Version = family(ip.Address.Addr())
		}
		wire.IPs = append(wire.IPs, out)
	}
	for _, route := range r.Routes {
		if !since("1.1.0") {
			route.MTU = 0
		}
		wire.Routes = append(wire.Routes, wireRoute{Dst: route.Dst, GW: text(route.Via), MTU: route.MTU})
	}
	return json.Marshal(wire)
}

// text is an address, or nothing where there is none: netip would write "invalid IP", which runtimes refuse.
func text(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

// family is what versions before 1.0 say of an address.
func family(addr netip.Addr) string {
	if addr.Is4() {
		return "4"
	}
	return "6"
}
