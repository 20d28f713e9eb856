package cni

import (
	"os"
	"path/filepath"
)

// STATUS asks whether ADD can be served, and runtimes take the whole node for not ready while it fails: its pods are taken out of
// Services, and evicted later. So it fails only where no pod can be hurt, from boot until an agent has been ready for the first
// time. From then on ADD waits for an agent that is away, and says itself what it lacks.
//
// The sign of it is a file beside the agent's socket, where nothing outlives a boot. No agent is asked.

// readyMark is the file that belongs to a socket.
func readyMark(socket string) string { return filepath.Join(filepath.Dir(socket), "was-ready") }

// MarkReady has STATUS succeed from now until the node boots again or the socket's folder is removed.
func MarkReady(socket string) error { return os.WriteFile(readyMark(socket), nil, 0o600) }

// CheckReady is STATUS. Its error is an *Error.
func CheckReady(socket string) error {
	if _, err := os.Stat(readyMark(socket)); err != nil {
		return Errorf(CodeUnavailable, "no tendril-agent has been ready on this node since it booted",
			"wait for it, or see in its log why it is not; once ready it makes a file beside its socket: %v", err)
	}
	return nil
}
