package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// agentCommands lists the commands that ask an agent or change the cluster, in the order in which help shows them.
func agentCommands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newStatusCommand(a),
		newConnectivityCommand(a),
		newSysdumpCommand(a),
		newObserveCommand(a),
		newPolicyCommand(a),
		newEndpointCommand(a),
		newServiceCommand(a),
		newEgressCommand(a),
		newIPAMCommand(a),
		newBPFCommand(a),
		newDBCommand(a),
		newReloadCommand(a),
		newApplyCommand(a),
		newDeleteCommand(a),
	}
}

// group is a command that asks an agent and only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := holder(use, short, commands...)
	cmd.GroupID = groupSee
	return cmd
}

// holder is a command below a group that only holds others. Its examples are the first of each of them.
func holder(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := hold(&cobra.Command{Use: use, Short: short}, commands...)
	var examples []string
	for _, command := range commands {
		first, _, _ := strings.Cut(command.Example, "\n")
		examples = append(examples, first)
	}
	cmd.Example = strings.Join(examples, "\n")
	return cmd
}

// hold puts commands below one that does nothing itself but to help. A word that is none of them is a mistake: cobra would print help
// and call it success, so that a script goes on as if it had been done.
func hold(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(commands...)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return fmt.Errorf("%s: there is no %q: see `%s --help`", cmd.CommandPath(), args[0], cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// argument demands one argument and keeps it in into; optional: it may be missing.
func argument(into *string, what string, optional bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) > 1:
			return fmt.Errorf("%s: one %s at most, got %s", cmd.CommandPath(), what, strings.Join(args, " "))
		case len(args) == 0 && !optional:
			return fmt.Errorf("%s: which %s? see `%s --help`", cmd.CommandPath(), what, cmd.CommandPath())
		case len(args) == 1:
			*into = args[0]
		}
		return nil
	}
}
