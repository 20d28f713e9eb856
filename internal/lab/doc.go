// Package lab builds a cluster on one machine and takes it away again without a trace.
//
//	           fabric namespace: one bridge, 172.30.0.0/24 and fd30::/64
//	  ┌──────────────┬──────────────┬──────────────┬──────────────┐
//	node1          node2          node3         control        outside
//	agent          agent          agent         store          knows no pod CIDR,
//	pods           pods           pods          Publish        default gateway of the nodes
//
// Nodes, pods, control and outside are network namespaces; agents, the store and the pods' processes are real processes
// in them. A pod is made by executing the real CNI plugin. Every process of a lab is born inside the lab's cgroup and
// its namespace, never moved there later, so that no socket escapes the cgroup's BPF programs and no process escapes
// Down.
//
// All names come from the lab's name (names.go), so that Down works from the name alone, after a crash too. What cannot
// be derived is kept as one small JSON file for each process and pod in the state folder; several programs may work on
// one lab at the same time.
//
// In mode bare the same topology is built with plain veth pairs and kernel routes, without agents, store or BPF: the
// floor that benchmarks compare with, and a lab that tests itself.
//
// The lab is for one machine and for trying and testing. It needs root, a cgroup v2 mount and bpffs (which it mounts
// where it is missing), and it changes nothing outside the namespaces, cgroups, pins and files that carry its name.
package lab
