// Package lab holds the tests that run whole clusters: real agents, the real CNI plugin, real programs in pods.
//
// One lab is built for each routing mode, and a story is told in it from beginning to end (story_test.go); faults have
// labs of their own (fault_test.go). All of them need root, and leave nothing behind, also when they fail.
package lab
