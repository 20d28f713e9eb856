// Package node assembles the agent: tables, brains and mechanisms, in the order in which facts flow.
//
//	sources             tables              brains                 mechanisms
//	store, CNI, kernel  nodes pods ips ...  policy, service        datapath, netlink
//
// build.go calls every constructor once, in that order; each *_loop.go moves facts one step: it watches tables, feeds a
// brain, hands the brain's answer to a mechanism. No loop touches another loop's outside thing. api_*.go answers the
// command line from tables and brains and changes nothing but what it is asked to (reload, flush).
package node
