package main

import "github.com/spf13/cobra"

// newLabCommand is the tree under `tendril lab`.
func newLabCommand(_ *app) *cobra.Command {
	return &cobra.Command{
		Use:     "lab",
		GroupID: groupLab,
		Short:   "Start, look into and stop a cluster on this machine",
	}
}
