// Package agentv1 is the agent's gRPC API, generated from agent.proto: what the command line asks of one node.
package agentv1
