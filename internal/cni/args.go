package cni

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tendril.io/tendril/internal/ipproto"
)

// DefaultNamespace is where a pod is whose runtime has no namespaces, as podman.
const DefaultNamespace = "default"

// Args says which pod a container is (CNI_ARGS, and the configuration's args and runtimeConfig).
type Args struct {
	Namespace string // K8S_POD_NAMESPACE
	Pod       string // K8S_POD_NAME
	UID       string // K8S_POD_UID
	Sandbox   string // K8S_POD_INFRA_CONTAINER_ID
	// What an operator says elsewhere: TENDRIL_LABELS, TENDRIL_SERVICE_ACCOUNT, TENDRIL_NAMED_PORTS. Labels is nil
	// if nobody gave any, which is not the same as a pod without labels.
	Labels         map[string]string
	ServiceAccount string
	NamedPorts     []NamedPort
	HostPorts      []HostPort // of the runtime alone
	Bandwidth      Bandwidth  // likewise
}

// NamedPort is a container port with a name.
type NamedPort struct {
	Name     string
	Port     uint16
	Protocol uint8 // IP protocol number: 6, 17 or 132
}

// HostPort is a port of the node that leads to a pod.
type HostPort struct {
	Addr     netip.Addr `json:"addr,omitzero"` // of the node, IPv4 unmapped; invalid: all of them
	Port     uint16     `json:"port"`          // of the node
	Target   uint16     `json:"target"`        // of the pod
	Protocol uint8      `json:"protocol"`      // IP protocol number
}

// String is what clients address: 192.0.2.1:8080/tcp, or *:8080/tcp.
func (p HostPort) String() string {
	host := "*"
	if p.Addr.IsValid() {
		host = p.Addr.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(p.Port))) + "/" + ipproto.Name(p.Protocol)
}

// Overlaps says that both ports answer to some client.
func (p HostPort) Overlaps(other HostPort) bool {
	everywhere := !p.Addr.IsValid() || !other.Addr.IsValid()
	return p.Port == other.Port && p.Protocol == other.Protocol && (everywhere || p.Addr == other.Addr)
}

// parseMappings reads the runtime's host ports.
func parseMappings(mappings []PortMapping) ([]HostPort, error) {
	var ports []HostPort
	for i, m := range mappings {
		field := fmt.Sprintf("runtimeConfig.portMappings[%d]", i)
		protocol, err := ipproto.Parse(strings.ToLower(cmp.Or(m.Protocol, "tcp")))
		switch {
		case m.HostPort < 1 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535:
			return nil, invalidArgs("%s: hostPort %d and containerPort %d: use 1 to 65535", field, m.HostPort, m.ContainerPort)
		case err != nil || !ipproto.HasPorts(protocol):
			return nil, invalidArgs("%s: protocol %s: use tcp, udp or sctp", field, abbreviated(m.Protocol))
		}
		port := HostPort{Port: uint16(m.HostPort), Target: uint16(m.ContainerPort), Protocol: protocol}
		if m.HostIP != "" {
			addr, err := netip.ParseAddr(m.HostIP)
			if addr = addr.Unmap(); err != nil || addr.Zone() != "" || addr.IsMulticast() {
				return nil, invalidArgs("%s: hostIP %s: use an address of the node, or none for all", field, abbreviated(m.HostIP))
			}
			if !addr.IsUnspecified() {
				port.Addr = addr
			}
		}
		for _, other := range ports {
			if port.Overlaps(other) && port != other {
				return nil, invalidArgs("%s: host port %s is given twice: use another hostPort", field, port)
			}
		}
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// parseArgs merges the configuration's args, its runtimeConfig and CNI_ARGS; the later of them wins, field by field.
func parseArgs(env string, config *Config) (Args, error) {
	var args Args
	for _, from := range []struct {
		field string
		pod   *PodArgs
	}{{"args.tendril", config.Args.Tendril}, {"runtimeConfig.tendril", config.RuntimeConfig.Tendril}} {
		if from.pod == nil {
			continue
		}
		if err := args.describe(from.field, from.pod); err != nil {
			return Args{}, err
		}
	}
	for pair := range strings.SplitSeq(env, ";") {
		if pair == "" {
			continue
		}
		key, value, found := strings.Cut(pair, "=")
		if !found {
			return Args{}, invalidArgs("%s has no '=': write KEY=VALUE;KEY=VALUE", abbreviated(pair))
		}
		if err := args.set(key, value); err != nil {
			return Args{}, err
		}
	}
	ports, err := parseMappings(config.RuntimeConfig.PortMappings)
	if err != nil {
		return Args{}, err
	}
	args.HostPorts, args.Bandwidth = ports, config.RuntimeConfig.Bandwidth
	if args.Pod != "" {
		args.Namespace = cmp.Or(args.Namespace, DefaultNamespace)
	}
	return args, args.validate()
}

// invalidArgs is an error about CNI_ARGS. What the configuration says of a pod is reported the same way, with its
// field's name, because the runtime shows both to the same person.
func invalidArgs(format string, args ...any) *Error {
	return Errorf(CodeInvalidEnvironment, "invalid environment variable CNI_ARGS", format, args...)
}

// set takes one pair of CNI_ARGS. Keys that are not ours are other plugins'.
func (a *Args) set(key, value string) error {
	var err error
	switch key {
	case "K8S_POD_NAMESPACE":
		a.Namespace = value
	case "K8S_POD_NAME":
		a.Pod = value
	case "K8S_POD_UID":
		a.UID = value
	case "K8S_POD_INFRA_CONTAINER_ID":
		a.Sandbox = value
	case "TENDRIL_SERVICE_ACCOUNT":
		a.ServiceAccount = value
	case "TENDRIL_LABELS":
		a.Labels, err = parseLabels(value)
	case "TENDRIL_NAMED_PORTS":
		a.NamedPorts, err = parsePorts(key, splitList(value))
	}
	return err
}

// describe takes the pod's description from a field of the configuration.
func (a *Args) describe(field string, pod *PodArgs) error {
	if pod.Labels != nil {
		a.Labels = maps.Clone(pod.Labels)
	}
	a.ServiceAccount = cmp.Or(pod.ServiceAccount, a.ServiceAccount)
	if pod.NamedPorts == nil {
		return nil
	}
	ports, err := parsePorts(field+".namedPorts", pod.NamedPorts)
	if err == nil {
		a.NamedPorts = ports
	}
	return err
}

// parseLabels reads key=value pairs with commas between them. The empty string is a pod without labels.
func parseLabels(list string) (map[string]string, error) {
	labels := make(map[string]string)
	for _, pair := range splitList(list) {
		key, value, found := strings.Cut(pair, "=")
		if !found {
			return nil, invalidArgs("TENDRIL_LABELS: %s has no '=': write key=value,key=value", abbreviated(pair))
		}
		if _, twice := labels[key]; twice {
			return nil, invalidArgs("TENDRIL_LABELS: key %s is given twice", abbreviated(key))
		}
		labels[key] = value
	}
	return labels, nil
}

// splitList splits at commas. The empty text is a list of nothing, not of one empty name: "no labels" must be sayable.
func splitList(list string) []string {
	if list == "" {
		return []string{}
	}
	return strings.Split(list, ",")
}

// parsePorts reads name:port/protocol; without protocol it is TCP.
func parsePorts(field string, list []string) ([]NamedPort, error) {
	ports := make([]NamedPort, 0, len(list))
	for _, text := range list {
		name, rest, _ := strings.Cut(text, ":")
		number, protocol, given := strings.Cut(rest, "/")
		if !given {
			protocol = "tcp"
		}
		port, err := strconv.ParseUint(number, 10, 16)
		proto, unknown := ipproto.Parse(protocol)
		if err != nil || unknown != nil || port == 0 || !ipproto.HasPorts(proto) || !validPortName(name) {
			return nil, invalidArgs("%s: %s is not a named port: write name:port/protocol, such as http:80/tcp",
				field, abbreviated(text))
		}
		ports = append(ports, NamedPort{Name: name, Port: uint16(port), Protocol: proto})
	}
	return ports, nil
}

// validate checks the merged arguments. Names end up in keys of the store, in flow records and in the journal, so
// nothing that could split a key or a line gets past it.
func (a *Args) validate() error {
	for _, name := range []struct{ key, value string }{{"K8S_POD_NAMESPACE", a.Namespace}, {"K8S_POD_NAME", a.Pod}} {
		if name.value != "" && !validContainer(name.value) {
			return invalidArgs("%s is %s: use letters, digits, '-', '.' and '_'", name.key, abbreviated(name.value))
		}
	}
	if a.ServiceAccount != "" && !validObject(a.ServiceAccount) {
		return invalidArgs("TENDRIL_SERVICE_ACCOUNT is %s: use lower-case letters, digits, '-' and '.'", abbreviated(a.ServiceAccount))
	}
	if a.Namespace != "" && a.Pod == "" {
		return invalidArgs("K8S_POD_NAMESPACE is given without K8S_POD_NAME: name the pod, too")
	}
	if a.Labels != nil && a.Namespace == "" {
		return invalidArgs("labels are given, but K8S_POD_NAME is not: name the pod, too")
	}
	if len(a.UID) > 255 || !printable(a.UID) || strings.Contains(a.UID, "/") {
		return invalidArgs("K8S_POD_UID is %s: use at most 255 printable characters without '/'", abbreviated(a.UID))
	}
	for _, key := range slices.Sorted(maps.Keys(a.Labels)) {
		if !validLabelKey(key) {
			return invalidArgs("label key %s: use an optional DNS prefix and '/', then at most 63 letters, digits, '-', "+
				"'_' or '.'", abbreviated(key))
		}
		if value := a.Labels[key]; !validLabelValue(value) {
			return invalidArgs("value %s of label %s: use at most 63 letters, digits, '-', '_' or '.'",
				abbreviated(value), key)
		}
	}
	return nil
}
