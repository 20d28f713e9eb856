// Package endpoint makes and removes the pods' side of a node: it is what the CNI plugin's requests end in.
//
// An endpoint's life, and what is undone if a step fails or the agent dies there:
//
//	1 addresses, number and generation are chosen      (memory only)
//	2 written to the journal                           after a death here: removed at the next start
//	3 devices made in the pod, the host's end down     removed by name
//	4 stubs attached: default deny                     go with the device
//	5 addresses published                              withdrawn; they rest before they are used again
//	6 row inserted; others judge it                    deleted
//	7 judged: Ready, or Init when labels are late
//	8 host's end up, routes to the pod                 go with the device
//	9 journal: complete; the runtime gets its answer
//
// Behind another plugin the pod is chained: its addresses are that plugin's, noted at step 1; step 3 finds its device in place of making one, and
// writes to the journal which; steps 1 to 3 leave the pod as open as it was made, step 4 closes it. Undone, the device stays, down.
//
// A deletion walks the other way, and may be repeated at any point. At start, Restore puts back what the journal says,
// finishes what was half done, and leaves running pods alone.
//
// Traps: undoing can fail, too, and what it leaves is an endpoint that commands find but that is not complete; number
// and addresses of one that is half removed may be another's already, so nothing is given back twice; an endpoint's
// fields belong to whoever holds the lock of its attachment, and the manager's mutex is never held across a wait.
//
// The package does not judge: whoever derives policy sets a row's State, Peer, Ingress and Egress.
package endpoint
