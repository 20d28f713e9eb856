package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/store/server"
)

// labPrograms are what the lab runs in its namespaces; help does not list them.
func labPrograms() []*cobra.Command {
	programs := []*cobra.Command{newLabStoreCommand(), newLabProbeCommand(), newLabEchoCommand(), newLabDNSCommand()}
	for _, program := range programs {
		program.Hidden = true
	}
	return programs
}

// newLabStoreCommand runs etcd and the Publish service in one process.
func newLabStoreCommand() *cobra.Command {
	var config server.Config
	var socket string
	command := &cobra.Command{
		Use:   "store",
		Short: "Run the embedded store and the Publish service",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			group, ctx := errgroup.WithContext(cmd.Context())
			running, err := server.Serve(ctx, config)
			if err != nil {
				return err
			}
			group.Go(running.Wait)
			if socket != "" {
				group.Go(func() error { return lab.Forward(ctx, socket, running.ClientAddr()) })
			}
			return group.Wait()
		},
	}
	flags := command.Flags()
	flags.StringVar(&config.Dir, "dir", "", "folder of etcd's data")
	flags.StringVar(&config.ClientAddr, "listen", "127.0.0.1:2379", "where etcd listens")
	flags.StringVar(&config.PublishAddr, "publish", "127.0.0.1:2380", "where the Publish service listens")
	flags.StringVar(&config.Cluster, "cluster", lab.Cluster, "name of the cluster")
	flags.StringVar(&socket, "unix", "", "unix socket that leads to etcd")
	return command
}

// newLabProbeCommand sends at fixed times and counts what comes back.
func newLabProbeCommand() *cobra.Command {
	var config lab.ProbeConfig
	command := &cobra.Command{
		Use:   "probe ADDRESS:PORT",
		Short: "Send at fixed times, count what is lost, reset or refused",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config.Addr = args[0]
			config.Started = func() { fmt.Fprint(cmd.ErrOrStderr(), lab.Probing) }
			result, err := lab.Probe(cmd.Context(), config)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), result)
		},
	}
	flags := command.Flags()
	flags.StringVar((*string)(&config.Kind), "kind", "udp", "udp, tcp, http (kept connections) or connect (new ones)")
	flags.DurationVar(&config.Interval, "interval", time.Millisecond, "time between two messages")
	flags.DurationVar(&config.Duration, "duration", 10*time.Second, "when to stop")
	return command
}

func newLabEchoCommand() *cobra.Command {
	var port uint16
	command := &cobra.Command{
		Use:   "echo",
		Short: "Answer every datagram and byte with itself",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return lab.Echo(cmd.Context(), port) },
	}
	command.Flags().Uint16Var(&port, "port", 7, "port to listen on")
	return command
}

func newLabDNSCommand() *cobra.Command {
	var port uint16
	command := &cobra.Command{
		Use:   "dns NAME=ADDRESS,ADDRESS...",
		Short: "Answer queries for a few names",
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := lab.ParseNames(args)
			if err != nil {
				return fmt.Errorf("dns: %w", err)
			}
			return lab.ServeDNS(cmd.Context(), port, names)
		},
	}
	command.Flags().Uint16Var(&port, "port", 53, "port to listen on")
	return command
}
