package cni

import (
	"encoding/json"
	"net/netip"
)

// Previous is what the plugin before this one in the list has made of a pod's device; nil if there is none, so that the device is ours to
// make. Its addresses are those of the device that the request names: at least one, and at most one a family.
type Previous struct {
	Addrs []netip.Addr    // IPv4 first
	Raw   json.RawMessage // the answer to pass on
}

// Previous reads prevResult (section 3, "Plugin delegation", and section 5). It is asked with ADD.
func (r *Request) Previous() (*Previous, error) {
	raw := r.Config.PrevResult
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var result wireResult
	if err := json.Unmarshal(raw, &result); err != nil {
		return nil, Errorf(CodeDecode, "prevResult is not a result", "%v: look at the plugin before tendril-cni in the list", err)
	}
	previous := &Previous{Raw: raw}
	for _, ip := range result.IPs {
		if !result.isOf(ip, r.IfName) {
			continue
		}
		if err := previous.add(ip.Address.Addr().Unmap(), r.IfName); err != nil {
			return nil, err
		}
	}
	if len(previous.Addrs) == 0 {
		return nil, Errorf(CodeInvalidConfig, "prevResult has no address for the pod",
			"device %s: give the plugin before tendril-cni an ipam, or make tendril-cni the first of the list", r.IfName)
	}
	return previous, nil
}

// isOf says whether an address is of the container's device. Before 1.0 a result need not say which device has it.
func (r *wireResult) isOf(ip wireIP, ifName string) bool {
	if ip.Interface == nil {
		return true
	}
	i := *ip.Interface
	return i >= 0 && i < len(r.Interfaces) && r.Interfaces[i].Name == ifName && r.Interfaces[i].Sandbox != ""
}

// add takes an address, if an endpoint can have it.
func (p *Previous) add(addr netip.Addr, ifName string) error {
	if !addr.IsGlobalUnicast() || addr.Zone() != "" {
		return Errorf(CodeInvalidConfig, "prevResult has an address that no pod can have",
			"device %s, address %s: give it a global unicast address", ifName, addr)
	}
	for _, other := range p.Addrs {
		if other.Is4() == addr.Is4() {
			return Errorf(CodeUnsupportedField, "prevResult has several addresses of one family",
				"device %s: %s and %s: a pod has one of each: give the plugin before tendril-cni one range a family", ifName, other, addr)
		}
	}
	if addr.Is4() {
		p.Addrs = append([]netip.Addr{addr}, p.Addrs...)
		return nil
	}
	p.Addrs = append(p.Addrs, addr)
	return nil
}
