// Command tendril-agent is the agent of one node: it makes the kernel agree with the store.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"tendril.io/tendril/internal/node"
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "tendril-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var path, name string
	var debug bool
	c := &cobra.Command{
		Use:           "tendril-agent --config FILE",
		Short:         "Run the agent of this node",
		Long:          "The agent connects, polices, balances and observes the pods of one node. It ends on SIGTERM and leaves the datapath\nrunning: pods keep their connections, and the next start takes over where this one stopped.",
		Example:       "  tendril-agent --config /etc/tendril/agent.json",
		Version:       node.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return run(ctx, path, name, debug)
		},
	}
	c.Flags().StringVar(&path, "config", "/etc/tendril/agent.json", "configuration file (JSON)")
	c.Flags().StringVar(&name, "node", "", "this node's name, in place of the file's: nodes may then share one file")
	c.Flags().BoolVar(&debug, "debug", false, "log what is done, not only what went wrong")
	c.SetContext(context.Background())
	return c
}

func run(ctx context.Context, path, name string, debug bool) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, for it loads BPF programs and makes devices: start it as root")
	}
	config, err := node.Load(path, name)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", config.Node)
	agent, err := node.Build(ctx, config, log)
	if err != nil {
		return err
	}
	err = agent.Run(ctx)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, agent.Close())
}
