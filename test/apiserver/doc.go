// Package apiserver holds the operator, the agents and the chart against the API server of Kubernetes itself, without what else a cluster has.
//
// Everything that runs is real: kube-apiserver from the module in test/kube, the operator with the arguments and the rights that the chart gives
// it, and agents that enrol with a token of their pod, on the nodes of a lab. What nobody does there the test does in its place: it binds pods to
// nodes, writes EndpointSlices, and starts agents and operator as kubelets would. So it needs a minute and no containers, and is a part of
// `make test`; what kubelet, containers and packets have to say is in `make test-kube`.
package apiserver
