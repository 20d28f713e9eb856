package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newProbeCommand is what the pods of `tendril connectivity test` run; help does not list it. The image of the agent has it, so a test pulls none.
func newProbeCommand() *cobra.Command {
	command := holder("probe", "Answer and ask, in the pods of `tendril connectivity test`", newProbeServeCommand(), newProbeAskCommand())
	command.Hidden = true
	return command
}

func newProbeServeCommand() *cobra.Command {
	var listen string
	command := &cobra.Command{
		Use:     "serve NAME",
		Short:   "Answer everyone with a name and the address that was seen",
		Example: `  tendril probe serve server-1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			server := &http.Server{Addr: listen, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%s sees %s\n", args[0], r.RemoteAddr)
			})}
			return server.ListenAndServe()
		},
	}
	command.Flags().StringVar(&listen, "listen", ":8080", "where to answer")
	return command
}

func newProbeAskCommand() *cobra.Command {
	var patience time.Duration
	command := &cobra.Command{
		Use:     "ask HOST:PORT",
		Short:   "Ask once, over a connection of its own",
		Example: `  tendril probe ask 10.244.1.5:8080`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := &http.Client{Timeout: patience, Transport: &http.Transport{
				DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: patience}).DialContext,
			}}
			answer, err := client.Get("http://" + args[0] + "/")
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			text, err := io.ReadAll(io.LimitReader(answer.Body, 1024))
			if err != nil {
				return err
			}
			if answer.StatusCode != http.StatusOK || !strings.Contains(string(text), " sees ") {
				return fmt.Errorf("somebody else answers at %s: %s", args[0], answer.Status)
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	command.Flags().DurationVar(&patience, "timeout", 2*time.Second, "how long to wait for the answer")
	return command
}
