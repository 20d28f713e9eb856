package main

import "github.com/spf13/cobra"

// agentCommands lists the commands that ask an agent or change the cluster, in the order in which help shows them.
func agentCommands(_ *app) []*cobra.Command {
	return nil
}
