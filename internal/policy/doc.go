// Package policy is the policy core: one ordered model for every dialect, compiled to selector bits and programs.
//
// It is pure: no I/O, clock, log or goroutine. Inputs are facts about workloads, addresses and policies; the output
// is a Delta, which internal/datapath publishes. See ARCHITECTURE.md for a policy's journey.
package policy
