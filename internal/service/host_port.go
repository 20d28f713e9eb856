package service

import (
	"fmt"
	"net/netip"

	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/table"
)

// TypeHostPort is the type of a service that stands for a pod's host port.
const TypeHostPort = "HostPort"

// hostPortMark stands in the names of such services and of no others.
const hostPortMark = ':'

// HostPort is a port of this node as a service with one pod behind it. The pod decides itself what it answers: it counts as
// ready. The service's name is the pod's and the port, such as web-1:8080/tcp.
func HostPort(namespace, pod, node string, addrs []netip.Addr, port table.HostPort) (table.Service, table.Backends) {
	at := []netip.Addr{port.Addr}
	if !port.Addr.IsValid() {
		at = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	name := fmt.Sprintf("%s%c%d/%s", pod, hostPortMark, port.Port, ipproto.Name(port.Protocol))
	if port.Addr.IsValid() {
		name = fmt.Sprintf("%s%c%s", pod, hostPortMark, FrontendKey{port.Addr, port.Port, port.Protocol})
	}
	return table.Service{
			Namespace: namespace, Name: name, Type: TypeHostPort, ExternalIPs: at,
			Ports: []table.ServicePort{{Protocol: port.Protocol, Port: port.Port, NodePort: port.Port}},
		}, table.Backends{
			Namespace: namespace, Service: name, Slice: name,
			Ports:    []table.NamedPort{{Port: port.Target, Protocol: port.Protocol}},
			Backends: []table.Backend{{Addrs: addrs, Node: node, Ready: true, Serving: true}},
		}
}
