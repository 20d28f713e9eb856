// Command tendril-agent is the agent of one node: it makes the kernel agree with the store.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
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

// options are what the flags say.
type options struct {
	config string
	node   string
	plugin string
	also   []string
	debug  bool
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:           "tendril-agent --config FILE",
		Short:         "Run the agent of this node",
		Long:          "The agent connects, polices, balances and observes the pods of one node. It ends on SIGTERM and leaves the datapath\nrunning: pods keep their connections, and the next start takes over where this one stopped.",
		Example:       "  tendril-agent --config /etc/tendril/agent.json",
		Version:       node.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          o.with(run),
	}
	flags := c.PersistentFlags()
	flags.StringVar(&o.config, "config", "/etc/tendril/agent.json", "configuration file (JSON)")
	flags.StringVar(&o.node, "node", "", "this node's name, in place of the file's: nodes may then share one file")
	flags.BoolVar(&o.debug, "debug", false, "log what is done, not only what went wrong")
	c.AddCommand(o.installCommand(), o.removeCommand())
	c.SetContext(context.Background())
	return c
}

func (o *options) installCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "install",
		Short:   "Check that this node can have an agent, and install the CNI plugin",
		Example: "  tendril-agent install --config /etc/tendril/agent.json",
		Args:    cobra.NoArgs,
		RunE: o.with(func(_ context.Context, config node.Config, log *slog.Logger) error {
			return node.Install(config, o.plugin, log)
		}),
	}
	beside := "tendril-cni"
	if program, err := os.Executable(); err == nil {
		beside = filepath.Join(filepath.Dir(program), beside)
	}
	c.Flags().StringVar(&o.plugin, "plugin", beside, "the CNI plugin to copy")
	return c
}

func (o *options) removeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "remove",
		Short:   "Take everything that an agent left off this node; it must have ended, and pods lose their network",
		Example: "  tendril-agent remove --config /etc/tendril/agent.json",
		Args:    cobra.NoArgs,
		RunE: o.with(func(ctx context.Context, config node.Config, log *slog.Logger) error {
			return node.Remove(ctx, config, o.also, log)
		}),
	}
	c.Flags().StringArrayVar(&o.also, "folder", nil, "another folder to remove, as that of an operator's store")
	return c
}

// with reads the configuration for a command, which ends with SIGTERM.
func (o *options) with(do func(context.Context, node.Config, *slog.Logger) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		if os.Geteuid() != 0 {
			return errors.New("needs root, for it loads BPF programs and makes devices: start it as root")
		}
		config, err := node.Load(o.config, o.node)
		if err != nil {
			return err
		}
		level := slog.LevelInfo
		if o.debug {
			level = slog.LevelDebug
		}
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return do(ctx, config, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", config.Node))
	}
}

func run(ctx context.Context, config node.Config, log *slog.Logger) error {
	agent, err := node.Build(ctx, config, log)
	if err != nil {
		return err
	}
	err = agent.Run(ctx)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil { // else a part has ended that was not told to
		err = nil
	}
	return errors.Join(err, agent.Close())
}
