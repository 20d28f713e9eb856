// Package kube translates Kubernetes manifests to what tendril works with: records of the store, and policies in the
// ordered model.
//
// A manifest goes through three stages, a file each:
//
//  1. manifest.go splits the text into documents and finds out their kinds; schema.go compares each with the Go type of
//     its kind and finds every unknown field and wrong type at once.
//  2. record.go turns objects into the slim records of api/store/v1, with service.go and pod.go for the kinds.
//  3. policy.go turns a policy object into policy.Policy, with a file for each dialect: networkpolicy.go, cilium.go (its
//     peers, ports and what it asks beyond L4 in cilium_peer.go, cilium_port.go and cilium_l7.go) and cluster_policy.go.
//     The agent calls it with what the store holds, `tendril apply` to validate before anything is written.
//
// Traps: encoding/json matches names whatever their case and drops what it does not know, so decoding alone proves
// nothing; a selector of pods must require a namespace, or it would match nodes; in a cilium.io rule a list that is
// there but empty means nobody, and one that is absent may mean anyone; fromRequires gives no access and holds for every
// policy, so it is a deny rule. docs/policy.md says the same field by field, for users.
//
// Nothing is guessed and nothing is widened: a field that cannot be honoured yet is a Mistake, with the field's path
// as Kubernetes prints it and a remedy. The package does no I/O; it is not a client of the Kubernetes API.
package kube
