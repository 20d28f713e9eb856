// Package opinion asks for a second opinion that nobody of this project wrote.
//
// Everywhere else the tests of policies compare tendril with a reference of its own, which may share a misreading of the
// API with what it checks. Here the judges come from outside:
//
//   - The cases and the matcher of github.com/mattfenwick/cyclonus for NetworkPolicy: against the compiled tables for
//     all cases, in both families, and against real packets in a lab for a broad sample.
//   - The conformance suite of sigs.k8s.io/network-policy-api for ClusterNetworkPolicy, run as it is: it believes that
//     it speaks with an API server and with kubelets.
//
// Every manifest takes the way that `tendril apply` takes, so the translation in internal/kube is judged too. What
// differs is a row of a table in the tests, with its reason; docs/conformance.md has the counts.
//
// The judges drag in client-go and much else. So this folder is a module of its own, and the product's go.mod stays
// free of them; `go -C test/opinion test ./...` runs it.
package opinion
