// Package cni is what the CNI plugin and the agent share: the CNI's own vocabulary (requests, results, errors) and the
// wire between the two processes.
//
//	runtime --env, stdin--> tendril-cni --Ask--> unix socket --Serve--> Handler (the agent)
//	                             |  agent away
//	                             +--DEL--> Queue, a folder that the agent drains when it is back
//
// STATUS and VERSION ask no agent: see CheckReady.
//
// A request on the wire is a frame (4 bytes of length, big endian, then JSON) that carries the descriptor of the pod's
// network namespace along (SCM_RIGHTS), so that the agent needs no access to the runtime's mount namespace. A reply is
// one frame, too. One request a connection.
//
// Traps: a DEL must end well when the agent or the namespace is gone, or the runtime never forgets the pod; a GC without
// its list must not, since it would detach every pod; once a request is sent, a lost reply says nothing of what was done.
//
// With ADD a request may say what the plugin before ours in the list has made (Previous): the agent then takes that over, and the answer
// passes it on.
//
// Host ports come as runtimeConfig.portMappings; a runtime gives them if the configuration has "capabilities":
// {"portMappings": true}. The plugin needs no other plugin behind it for them.
//
// The plugin runs on every pod's critical path, so the package imports nothing heavy: no gRPC, no net/http, no
// netlink, and it does not use the CNI project's library, whose tests it must nevertheless please.
//
// See https://www.cni.dev/docs/spec/ for the protocol; section numbers in comments refer to version 1.1.0 of it.
package cni
