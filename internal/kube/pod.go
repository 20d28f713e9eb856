package kube

import (
	"fmt"
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// podRecords gives the slim record of a pod, under its node, and its label set, under the hash of its content.
// A pod's object may have thousands of lines; nodes need five facts. The label set is a record of its own because most
// pods share theirs with others: a deployment of a thousand pods is one label set, and its hash is the identity by which
// policies know all of them. Addresses are not here: the node that gives them publishes them. Nor is whether the pod is ready: slices
// say it of backends, and policy does not ask.
func (o *Object) podRecords(pod *corev1.Pod, cluster string) ([]Record, Mistakes) {
	errs := checkLabels(pod.Labels)
	nodeAt := field.NewPath("spec", "nodeName")
	if pod.Spec.NodeName == "" {
		errs = append(errs, field.Required(nodeAt, "name the node that the pod is on; there is no scheduler here to choose one"))
	}
	for _, text := range validation.IsDNS1123Subdomain(pod.Spec.NodeName) {
		if pod.Spec.NodeName != "" {
			errs = append(errs, field.Invalid(nodeAt, pod.Spec.NodeName, text))
		}
	}
	ports, wrong := namedPorts(pod)
	errs = append(errs, wrong...)
	if len(errs) > 0 {
		return nil, o.place(errs)
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default" // as the API server's admission does
	}
	id := identity.Of(cluster, o.Namespace, account, label.SetOf(pod.Labels))
	set := &storev1.LabelSet{Cluster: cluster, Namespace: o.Namespace, ServiceAccount: account, Labels: pod.Labels}
	slim := &storev1.Pod{
		Uid:         string(pod.UID),
		Labels:      id[:],
		NamedPorts:  ports,
		HostNetwork: pod.Spec.HostNetwork,
	}
	return []Record{
		{Key: "labels/" + id.String(), Value: set, Object: o, Shared: true},
		{Key: "pods/" + pod.Spec.NodeName + "/" + o.Namespace + "/" + o.Name, Value: slim, Object: o},
	}, nil
}

// namedPorts lists the container ports with a name, in the order of the manifest. Init containers have ended before the
// pod has traffic, but for those with restartPolicy Always: they are sidecars (KEP-753), and their ports are the pod's.
func namedPorts(pod *corev1.Pod) ([]*storev1.NamedPort, field.ErrorList) {
	var ports []*storev1.NamedPort
	var errs field.ErrorList
	at := field.NewPath("spec")
	for i, container := range pod.Spec.InitContainers {
		own, wrong := portsOf(container.Ports, at.Child("initContainers").Index(i).Child("ports"))
		errs = append(errs, wrong...)
		if policy := container.RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			ports = append(ports, own...)
		}
	}
	for i, container := range pod.Spec.Containers {
		own, wrong := portsOf(container.Ports, at.Child("containers").Index(i).Child("ports"))
		ports, errs = append(ports, own...), append(errs, wrong...)
	}
	return ports, errs
}

// portsOf checks all ports of a container and gives those with a name.
func portsOf(list []corev1.ContainerPort, at *field.Path) ([]*storev1.NamedPort, field.ErrorList) {
	var ports []*storev1.NamedPort
	var errs field.ErrorList
	for i, port := range list {
		here := at.Index(i)
		if port.ContainerPort < 1 || port.ContainerPort > math.MaxUint16 {
			errs = append(errs, field.Invalid(here.Child("containerPort"), port.ContainerPort, "a port is a number from 1 to 65535"))
		}
		protocol, wrong := protocolOrTCP(port.Protocol, here.Child("protocol"))
		errs = append(errs, wrong...)
		if port.Name != "" {
			ports = append(ports, &storev1.NamedPort{Name: port.Name, Port: uint32(port.ContainerPort), Protocol: protocol})
		}
	}
	return ports, errs
}

// protocolOrTCP applies the default of every protocol field of core/v1 and discovery/v1.
func protocolOrTCP(name corev1.Protocol, at *field.Path) (uint32, field.ErrorList) {
	if name == "" {
		name = corev1.ProtocolTCP
	}
	protocol, errs := kubeProtocol(name, at)
	return uint32(protocol), errs
}

// checkLabels applies the rules for labels, which the store does not know.
// The API server has checked them where there is one. Here nobody has, and no selector could ever name a label that
// breaks the rules.
func checkLabels(labels map[string]string) field.ErrorList {
	var errs field.ErrorList
	for key, value := range sorted(labels) {
		if err := label.Validate(key, value); err != nil {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "labels").Key(key), value, fmt.Sprint(err)))
		}
	}
	return errs
}
