package kube

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/table"
)

// AnnotationAlgorithm chooses how a service's connections are spread: random (the default) or maglev.
const AnnotationAlgorithm = "service.tendril.io/algorithm"

// AnnotationForwarding says which way backends of other nodes answer clients outside the cluster, dsr or snat, whatever the node's lb_mode.
const AnnotationForwarding = "service.tendril.io/forwarding"

// AnnotationWeight of an endpoint slice is how many connections each of its backends gets for one that a backend of weight 1
// gets: 1 to table.MaxWeight.
const AnnotationWeight = "service.tendril.io/weight"

// defaultAffinitySeconds is what Kubernetes assumes for sessionAffinity: ClientIP.
const defaultAffinitySeconds = 10800

// serviceRecord gives a service's frontends and options. What an API server would choose (addresses, node ports) must be
// given.
// Sources: the API references of Service and EndpointSlice. A field that the record leaves out does not concern the
// datapath. Only addresses of load balancers are given out here, from pools: see setPools.
func serviceRecord(s *corev1.Service) (*storev1.Service, field.ErrorList) {
	at := field.NewPath("spec")
	out := &storev1.Service{
		Selector:            s.Spec.Selector,
		Labels:              s.Labels,
		HealthCheckNodePort: uint32(s.Spec.HealthCheckNodePort),
		PublishNotReady:     s.Spec.PublishNotReadyAddresses,
	}
	var errs field.ErrorList
	collect := func(wrong field.ErrorList) { errs = append(errs, wrong...) }
	collect(checkLabels(s.Labels))
	collect(setType(out, s, at.Child("type")))
	collect(setClusterIPs(out, s, at))
	collect(setServicePorts(out, s, at.Child("ports")))
	collect(setTraffic(out, s, at))
	collect(setAffinity(out, s, at))
	collect(setExternal(out, s, at))
	collect(setPools(out, s, at))
	collect(setAlgorithm(out, s))
	collect(setForwarding(out, s))
	return out, errs
}

// setType reads the type. Empty means ClusterIP, as with the API server.
func setType(out *storev1.Service, s *corev1.Service, at *field.Path) field.ErrorList {
	switch s.Spec.Type {
	case corev1.ServiceTypeClusterIP, "":
		out.Type = storev1.Service_CLUSTER_IP
	case corev1.ServiceTypeNodePort:
		out.Type = storev1.Service_NODE_PORT
	case corev1.ServiceTypeLoadBalancer:
		out.Type = storev1.Service_LOAD_BALANCER
	case corev1.ServiceTypeExternalName:
		out.Type = storev1.Service_EXTERNAL_NAME
	default:
		return field.ErrorList{field.NotSupported(at, s.Spec.Type, []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"})}
	}
	return nil
}

// setClusterIPs reads clusterIPs, or clusterIP where only that is given; "None" is a headless service.
// clusterIP is the older field and always equal to the first of clusterIPs where an API server has been at work. A
// headless service has no frontend; names are resolved to its backends, which is none of the datapath's business.
func setClusterIPs(out *storev1.Service, s *corev1.Service, at *field.Path) field.ErrorList {
	ips, here := s.Spec.ClusterIPs, at.Child("clusterIPs")
	switch {
	case out.Type == storev1.Service_EXTERNAL_NAME:
		return nil
	case len(ips) == 0 && s.Spec.ClusterIP == "":
		return field.ErrorList{field.Required(at.Child("clusterIP"), "give an address of the service range, or None; there is no API server here to choose one")}
	case len(ips) > 0 && s.Spec.ClusterIP != "" && s.Spec.ClusterIP != ips[0]:
		// Neither is more right than the other.
		return field.ErrorList{field.Invalid(at.Child("clusterIP"), s.Spec.ClusterIP, "differs from the first of clusterIPs; remove one of the two fields")}
	case len(ips) == 0:
		ips, here = []string{s.Spec.ClusterIP}, nil
	}
	if slices.Contains(ips, corev1.ClusterIPNone) {
		return nil
	}
	if here == nil {
		addr, errs := address(s.Spec.ClusterIP, at.Child("clusterIP"))
		out.ClusterIps = [][]byte{addr}
		return errs
	}
	if len(ips) == 2 && strings.Contains(ips[0], ":") == strings.Contains(ips[1], ":") || len(ips) > 2 {
		return field.ErrorList{field.Invalid(here, ips, "at most one address a family")}
	}
	var errs field.ErrorList
	out.ClusterIps, errs = addresses(ips, here)
	return errs
}

// setServicePorts reads the ports. Two of equal number and protocol would be one frontend with two meanings, two of
// equal name would share their backends.
func setServicePorts(out *storev1.Service, s *corev1.Service, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	headless := s.Spec.ClusterIP == corev1.ClusterIPNone || slices.Contains(s.Spec.ClusterIPs, corev1.ClusterIPNone)
	if len(s.Spec.Ports) == 0 && !headless && out.Type != storev1.Service_EXTERNAL_NAME {
		errs = append(errs, field.Required(at, "give at least one port"))
	}
	for i, port := range s.Spec.Ports {
		here := at.Index(i)
		protocol, wrong := protocolOrTCP(port.Protocol, here.Child("protocol"))
		errs = append(append(errs, wrong...), checkServicePort(out, s, port, here)...)
		id := fmt.Sprintf("%d/%d", port.Port, protocol)
		if seen[id] {
			errs = append(errs, field.Duplicate(here.Child("port"), port.Port))
		}
		if port.Name != "" && seen[port.Name] {
			errs = append(errs, field.Duplicate(here.Child("name"), port.Name))
		}
		seen[id], seen[port.Name] = true, true
		out.Ports = append(out.Ports, &storev1.ServicePort{
			Name: port.Name, Protocol: protocol, Port: uint32(port.Port), NodePort: uint32(port.NodePort),
		})
	}
	return errs
}

// checkServicePort checks one port. targetPort is not looked at: endpoint slices carry the backends' own port.
func checkServicePort(out *storev1.Service, s *corev1.Service, port corev1.ServicePort, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if port.Port < 1 || port.Port > math.MaxUint16 {
		errs = append(errs, field.Invalid(at.Child("port"), port.Port, "a port is a number from 1 to 65535"))
	}
	if len(s.Spec.Ports) > 1 && port.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), "ports have names where there is more than one"))
	}
	if port.NodePort < 0 || port.NodePort > math.MaxUint16 {
		errs = append(errs, field.Invalid(at.Child("nodePort"), port.NodePort, "a port is a number from 1 to 65535"))
	}
	if out.Type == storev1.Service_NODE_PORT && port.NodePort == 0 {
		errs = append(errs, field.Required(at.Child("nodePort"), "give a port of the node, e.g. 30080; there is no API server here to choose one"))
	}
	return errs
}

// setTraffic reads which backends may be used and which are preferred. A misspelt Local is a mistake rather than Cluster:
// it would send to other nodes what its author keeps on one.
func setTraffic(out *storev1.Service, s *corev1.Service, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	// Local is strict: without a backend on the node the packet is dropped, not sent elsewhere.
	local := func(name string, policy string) bool {
		if policy != "" && policy != "Cluster" && policy != "Local" {
			errs = append(errs, field.NotSupported(at.Child(name), policy, []string{"Cluster", "Local"}))
		}
		return policy == "Local"
	}
	if internal := s.Spec.InternalTrafficPolicy; internal != nil {
		out.InternalLocal = local("internalTrafficPolicy", string(*internal))
	}
	out.ExternalLocal = local("externalTrafficPolicy", string(s.Spec.ExternalTrafficPolicy))
	if s.Spec.TrafficDistribution == nil {
		return errs
	}
	out.TrafficDistribution = *s.Spec.TrafficDistribution
	known := []string{"PreferClose", "PreferSameZone", "PreferSameNode"} // KEP-4444 and KEP-3015
	if !slices.Contains(known, out.TrafficDistribution) {
		errs = append(errs, field.NotSupported(at.Child("trafficDistribution"), out.TrafficDistribution, known))
	}
	return errs
}

// setAffinity reads how long a client keeps its backend, in seconds; 0 is not at all. A day is the API server's bound.
func setAffinity(out *storev1.Service, s *corev1.Service, at *field.Path) field.ErrorList {
	switch s.Spec.SessionAffinity {
	case corev1.ServiceAffinityNone, "":
		return nil
	case corev1.ServiceAffinityClientIP:
	default:
		return field.ErrorList{field.NotSupported(at.Child("sessionAffinity"), s.Spec.SessionAffinity, []string{"None", "ClientIP"})}
	}
	out.AffinitySeconds = defaultAffinitySeconds
	config := s.Spec.SessionAffinityConfig
	if config == nil || config.ClientIP == nil || config.ClientIP.TimeoutSeconds == nil {
		return nil
	}
	seconds := *config.ClientIP.TimeoutSeconds
	if seconds < 1 || seconds > 86400 {
		here := at.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds")
		return field.ErrorList{field.Invalid(here, seconds, "a time from 1 to 86400 seconds")}
	}
	out.AffinitySeconds = uint32(seconds)
	return nil
}

// setExternal reads what the service is reached by from outside.
// External addresses are the user's, those of a load balancer stand in the status, which its controller writes; a manifest
// without status simply has none yet.
func setExternal(out *storev1.Service, s *corev1.Service, at *field.Path) field.ErrorList {
	var errs, wrong field.ErrorList
	out.ExternalIps, errs = addresses(s.Spec.ExternalIPs, at.Child("externalIPs"))
	for i, ingress := range s.Status.LoadBalancer.Ingress {
		if ingress.IP == "" {
			continue // a host name is for clients, not for us
		}
		if ingress.IPMode != nil && *ingress.IPMode == corev1.LoadBalancerIPModeProxy {
			continue // the balancer wants to see these packets itself, those of pods as well (KEP-1860)
		}
		addr, wrong := address(ingress.IP, field.NewPath("status", "loadBalancer", "ingress").Index(i).Child("ip"))
		out.LoadBalancerIps, errs = append(out.LoadBalancerIps, addr), append(errs, wrong...)
	}
	for i, text := range s.Spec.LoadBalancerSourceRanges {
		var p netip.Prefix
		p, wrong = prefix(strings.TrimSpace(text), at.Child("loadBalancerSourceRanges").Index(i))
		out.SourceRanges, errs = append(out.SourceRanges, p.String()), append(errs, wrong...)
	}
	return errs
}

// setAlgorithm reads our annotation. It is checked like a field, since nobody else would report a typing mistake.
func setAlgorithm(out *storev1.Service, s *corev1.Service) field.ErrorList {
	algorithm := s.Annotations[AnnotationAlgorithm]
	switch algorithm {
	case "", "random":
	case "maglev":
		out.Algorithm = algorithm
	default:
		at := field.NewPath("metadata", "annotations").Key(AnnotationAlgorithm)
		return field.ErrorList{field.NotSupported(at, algorithm, []string{"random", "maglev"})}
	}
	return nil
}

// setForwarding does so for the way of answers.
func setForwarding(out *storev1.Service, s *corev1.Service) field.ErrorList {
	forwarding, said := s.Annotations[AnnotationForwarding]
	if said && forwarding != "dsr" && forwarding != "snat" {
		at := field.NewPath("metadata", "annotations").Key(AnnotationForwarding)
		return field.ErrorList{field.NotSupported(at, forwarding, []string{"dsr", "snat"})}
	}
	out.Forwarding = forwarding
	return nil
}

// setWeight reads our annotation of a slice. Nothing weighs 0: Kubernetes has a word for what is to get nothing new.
func setWeight(out *storev1.Endpoints, s *discoveryv1.EndpointSlice) field.ErrorList {
	text, given := s.Annotations[AnnotationWeight]
	if !given {
		return nil
	}
	weight, err := strconv.ParseUint(text, 10, 32)
	if err != nil || weight < 1 || weight > table.MaxWeight {
		at := field.NewPath("metadata", "annotations").Key(AnnotationWeight)
		return field.ErrorList{field.Invalid(at, text, fmt.Sprintf("a number from 1 to %d; backends that are to get nothing new are not ready", table.MaxWeight))}
	}
	out.Weight = uint32(weight)
	return nil
}

// endpointsRecord gives the backends of a slice and the service that they are of.
// The service of a slice is named by a label and not by the slice's name, since a service may have any number of slices.
// Both families never share one: a service of two families has slices of each.
func endpointsRecord(s *discoveryv1.EndpointSlice) (out *storev1.Endpoints, service string, errs field.ErrorList) {
	out = &storev1.Endpoints{}
	at := field.NewPath("metadata", "labels").Key(discoveryv1.LabelServiceName)
	service = s.Labels[discoveryv1.LabelServiceName]
	if service == "" {
		errs = append(errs, field.Required(at, "name the service that the slice is of"))
	}
	for _, text := range validation.IsDNS1123Subdomain(service) {
		if service != "" {
			errs = append(errs, field.Invalid(at, service, text))
		}
	}
	errs = append(errs, setWeight(out, s)...)
	if s.AddressType != discoveryv1.AddressTypeIPv4 && s.AddressType != discoveryv1.AddressTypeIPv6 {
		errs = append(errs, field.NotSupported(field.NewPath("addressType"), s.AddressType, []string{"IPv4", "IPv6"}))
		return out, service, errs
	}
	for i, port := range s.Ports {
		p, wrong := endpointPort(&port, field.NewPath("ports").Index(i))
		out.Ports, errs = append(out.Ports, p), append(errs, wrong...)
	}
	for i := range s.Endpoints {
		b, wrong := backend(&s.Endpoints[i], s.AddressType, field.NewPath("endpoints").Index(i))
		out.Backends, errs = append(out.Backends, b), append(errs, wrong...)
	}
	return out, service, errs
}

// endpointPort translates a port of a slice. Its name, which may be empty, is what a service's port finds it by.
func endpointPort(p *discoveryv1.EndpointPort, at *field.Path) (*storev1.EndpointPort, field.ErrorList) {
	out := &storev1.EndpointPort{}
	if p.Name != nil {
		out.Name = *p.Name
	}
	if p.Port == nil {
		return out, field.ErrorList{field.Required(at.Child("port"), "give the number of the backends' port")}
	}
	if *p.Port < 1 || *p.Port > math.MaxUint16 {
		return out, field.ErrorList{field.Invalid(at.Child("port"), *p.Port, "a port is a number from 1 to 65535")}
	}
	out.Port = uint32(*p.Port)
	var name corev1.Protocol
	if p.Protocol != nil {
		name = *p.Protocol
	}
	var errs field.ErrorList
	out.Protocol, errs = protocolOrTCP(name, at.Child("protocol"))
	return out, errs
}

// backend translates one endpoint. Its addresses are alternatives for one backend: the first is used, as Kubernetes says.
// Conditions are pointers: absent is "unknown", which the reference wants read as ready, as serving if ready, and as not
// terminating. Serving while terminating is what lets a rolling update finish without a moment of no backends.
func backend(e *discoveryv1.Endpoint, family discoveryv1.AddressType, at *field.Path) (*storev1.Backend, field.ErrorList) {
	out := &storev1.Backend{Ready: true}
	if len(e.Addresses) == 0 {
		return out, field.ErrorList{field.Required(at.Child("addresses"), "give the backend's address")}
	}
	here := at.Child("addresses").Index(0)
	addr, errs := address(e.Addresses[0], here)
	if want := map[discoveryv1.AddressType]int{discoveryv1.AddressTypeIPv4: 4, discoveryv1.AddressTypeIPv6: 16}; len(errs) == 0 && len(addr) != want[family] {
		errs = append(errs, field.Invalid(here, e.Addresses[0], "not of addressType "+string(family)+"; each slice holds one family"))
	}
	out.Addresses = [][]byte{addr}
	if c := e.Conditions.Ready; c != nil {
		out.Ready = *c
	}
	out.Serving = out.Ready
	if c := e.Conditions.Serving; c != nil {
		out.Serving = *c
	}
	if c := e.Conditions.Terminating; c != nil {
		out.Terminating = *c
	}
	if e.NodeName != nil {
		out.Node = *e.NodeName
	}
	if e.Zone != nil {
		out.Zone = *e.Zone
	}
	if e.Hints != nil {
		for _, zone := range e.Hints.ForZones {
			out.HintZones = append(out.HintZones, zone.Name)
		}
	}
	if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
		out.Pod = ref.Namespace + "/" + ref.Name
	}
	return out, errs
}
