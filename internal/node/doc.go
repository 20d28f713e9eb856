// Package node assembles the agent: tables, brains and mechanisms, in the order in which facts flow.
//
//		sources             tables              brains                 mechanisms
//		store, CNI, kernel  nodes pods ips ...  policy, service        datapath, netlink
//
//	 1. config.go reads the configuration, and configuration.go goes on to follow its file; build.go calls every constructor
//	    once, locks first, sockets late.
//	 2. changes.go hands changed rows to the two loops; facts.go and nodes.go say what a row means.
//	 3. policy_loop.go and service_loop.go feed a brain and publish its answer; what fails is kept and tried again, and a
//	    failure that lasts is a problem in `tendril status`.
//	 4. prune.go removes, once, what an earlier agent left; reconcile.go makes routes equal to a table; run.go holds the
//	    tasks that are too small for a file.
//	 5. api_*.go answers the command line and changes nothing but what it is asked to (reload, flush); resolver.go and
//	    departed.go name the numbers in flow records, also of what has gone.
//
// No loop touches another loop's outside thing, and nothing here computes: a decision that needs more than a look into a
// table belongs into a brain.
//
// What cannot be read closes. A policy that this agent cannot read keeps its earlier version in force; without one, as
// after a restart, it isolates its namespace (policyChanged). A pod without labels yet is reserved:init.
//
// Traps: rows of one pod come and go in any order, and a table's feed shows only the last of several changes, so that a
// number may have changed hands between two looks (stageSubjects). The policy loop's lock comes before the service
// loop's; only pruning holds both. A number that a row may still name must not be given back (numbering).
package node
