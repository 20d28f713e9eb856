// Command tendril is the command line: it asks agents what they see, applies manifests, and runs the lab, a cluster
// on one machine.
//
// A command that asks an agent finds it by --socket, else by --node in the lab named by --lab, else at the place
// where an agent of this machine listens.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// defaultSocket is where an agent that is not part of a lab listens.
const defaultSocket = "/run/tendril/agent.sock"

// labRoot holds a folder for each lab; a node's sockets are in <lab>/<node>.
const labRoot = "/run/tendril-lab"

// app holds what the persistent flags say; commands keep a pointer to it and read it when they run.
type app struct {
	node   string // --node
	socket string // --socket
	lab    string // --lab
	output string // --output: text or json
}

// exitError carries an exit status other than 1 through cobra; the message was already printed.
type exitError struct{ status int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the process's exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.status
	}
	fmt.Fprintf(stderr, "tendril: %v\n", err)
	return 1
}

// The groups that help lists commands under.
const (
	groupSee   = "see"
	groupApply = "apply"
	groupLab   = "lab"
)

// newRootCommand builds the whole command tree.
func newRootCommand() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "tendril",
		Short: "Connect, secure and observe workloads with eBPF",
		Example: `  tendril lab up                            start a cluster of three nodes on this machine
  tendril lab demo                          see everything it does, with real traffic
  tendril apply -f examples/                apply policies and services to the lab
  tendril --node node1 observe -f           watch the flows of a node
  tendril --node node1 policy explain --from shop/client --to shop/web --port 80`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.validate() },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.node, "node", "", "ask the agent of this node of the lab")
	flags.StringVar(&a.socket, "socket", "", "ask the agent that listens on this unix socket")
	flags.StringVar(&a.lab, "lab", "lab", "name of the lab")
	flags.StringVarP(&a.output, "output", "o", "text", "output format: text or json")
	root.AddGroup(
		&cobra.Group{ID: groupSee, Title: "Ask an agent:"},
		&cobra.Group{ID: groupApply, Title: "Change the cluster:"},
		&cobra.Group{ID: groupLab, Title: "A cluster on this machine:"},
	)
	root.AddCommand(agentCommands(a)...)
	root.AddCommand(newPreflightCommand(), newInstallCommand(), newUninstallCommand(), newLabCommand(a), newProbeCommand())
	return root
}

// validate checks what only the flags together can get wrong.
func (a *app) validate() error {
	switch a.output {
	case "text", "json":
	default:
		return fmt.Errorf("flag --output %q: must be text or json", a.output)
	}
	if a.node != "" && a.socket != "" {
		return errors.New("flags --node and --socket: give one of them, they both name an agent")
	}
	return nil
}

// json says whether the user asked for JSON.
func (a *app) json() bool { return a.output == "json" }

// socketPath finds the agent's socket that the flags mean and checks that it is there.
func (a *app) socketPath() (string, error) {
	switch {
	case a.socket != "":
		return a.socket, statSocket(a.socket, "is the agent running with that socket?")
	case a.node != "":
		path := filepath.Join(labRoot, a.lab, a.node, "agent.sock")
		remedy := fmt.Sprintf("does lab %q run, and has it that node? see `tendril lab status --lab %s`", a.lab, a.lab)
		return path, statSocket(path, remedy)
	default:
		return defaultSocket, statSocket(defaultSocket,
			"start tendril-agent, or name an agent of the lab with --node (node1, ...) or any agent with --socket")
	}
}

// statSocket explains a missing socket in the user's terms.
func statSocket(path, remedy string) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("agent socket %s: %w: %s", path, errors.Unwrap(err), remedy)
	}
	return nil
}
