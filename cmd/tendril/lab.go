package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tendril.io/tendril/internal/lab"
)

// newLabCommand is the tree under `tendril lab`.
func newLabCommand(a *app) *cobra.Command {
	command := &cobra.Command{
		Use:     "lab",
		GroupID: groupLab,
		Short:   "Start, look into and stop a cluster on this machine",
		Long: `A lab is a cluster on one machine. Its nodes are network namespaces joined by a bridge, each
with its own agent; pods are namespaces made by the real CNI plugin and run real programs; an
outside host stands for the rest of the world. It changes nothing outside of what carries its
name, and several labs can run side by side (--lab NAME).`,
		Example: `  tendril lab up
  tendril lab pod add node1 shop/web --label app=web
  tendril lab exec shop/web -- curl http://198.51.100.10
  tendril lab down`,
	}
	return hold(command, append(labPrograms(), newLabUpCommand(a), newLabDownCommand(a), newLabStatusCommand(a), newLabPodCommand(a),
		newLabExecCommand(a), newLabDemoCommand(a))...)
}

func newLabUpCommand(a *app) *cobra.Command {
	var config lab.Config
	command := &cobra.Command{
		Use:   "up",
		Short: "Start a lab",
		Example: `  tendril lab up
  tendril lab up --nodes 2 --mode vxlan`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := newScreen(cmd.OutOrStdout())
			config.Name = a.lab
			config.Progress = s.progress
			begin := time.Now()
			l, err := lab.Up(cmd.Context(), config)
			if err != nil {
				return err
			}
			s.good(fmt.Sprintf("lab %s is up: %d nodes, %s routing", l.Name, l.Nodes, l.Mode), time.Since(begin))
			s.lines(lookAround(l.Name)...)
			return l.Close()
		},
	}
	labFlags(command, &config)
	return command
}

func labFlags(command *cobra.Command, config *lab.Config) {
	flags := command.Flags()
	flags.IntVar(&config.Nodes, "nodes", 3, "how many nodes")
	flags.StringVar((*string)(&config.Mode), "mode", "native",
		"how pods of different nodes reach each other: native, vxlan, or bare (veth pairs only, without tendril)")
	flags.BoolVar(&config.IPv4, "ipv4", false, "pods have IPv4 only (default: both families)")
	flags.BoolVar(&config.IPv6, "ipv6", false, "pods have IPv6 only")
	flags.BoolVar(&config.NoFlowRecords, "no-flow-records", false, "report drops only")
	flags.StringVar(&config.BinDir, "bin", "", "folder of tendril-agent and tendril-cni (default: this program's)")
}

func newLabDownCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "Stop a lab and remove every trace of it, whatever state it is in",
		Example: `  tendril lab down`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := newScreen(cmd.OutOrStdout())
			begin := time.Now()
			if len(lab.Leftovers(a.lab)) == 0 {
				s.lines(fmt.Sprintf("lab %s is not there, nothing to do", a.lab))
				return nil
			}
			if err := lab.Down(cmd.Context(), a.lab); err != nil {
				return err
			}
			s.good("lab "+a.lab+" is gone", time.Since(begin))
			return nil
		},
	}
}

// labStatus is what `tendril lab status -o json` prints.
type labStatus struct {
	Name      string         `json:"name"`
	Mode      lab.Mode       `json:"mode"`
	Nodes     []nodeStatus   `json:"nodes"`
	Pods      []*lab.Pod     `json:"pods"`
	Processes []*lab.Process `json:"processes"`
}

type nodeStatus struct {
	Name      string   `json:"name"`
	Ready     bool     `json:"ready"`
	Problem   string   `json:"problem,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	PodCIDRs  []string `json:"pod_cidrs,omitempty"`
	Endpoints uint32   `json:"endpoints"`
}

func newLabStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show nodes, pods and processes of a lab",
		Example: `  tendril lab status`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(a.lab)
			if err != nil {
				return err
			}
			defer l.Close()
			status, err := readLab(cmd.Context(), l)
			if err != nil {
				return err
			}
			if a.json() {
				return printJSON(cmd.OutOrStdout(), status)
			}
			showLab(newScreen(cmd.OutOrStdout()), status)
			return nil
		},
	}
}

func readLab(ctx context.Context, l *lab.Lab) (*labStatus, error) {
	status := &labStatus{Name: l.Name, Mode: l.Mode}
	for _, name := range l.NodeNames() {
		node := nodeStatus{Name: name}
		if answer, err := l.Status(ctx, name); err != nil {
			node.Problem = err.Error()
		} else {
			node.Ready, node.Addresses, node.PodCIDRs = true, answer.Addresses, answer.PodCidrs
			node.Endpoints = answer.Endpoints
		}
		status.Nodes = append(status.Nodes, node)
	}
	var err error
	if status.Pods, err = l.Pods(); err != nil {
		return nil, err
	}
	status.Processes, err = l.Processes()
	return status, err
}

func showLab(s *screen, status *labStatus) {
	s.heading(fmt.Sprintf("lab %s, %s routing", status.Name, status.Mode))
	for _, node := range status.Nodes {
		state, detail := "ready", fmt.Sprintf("%d pods  %s", node.Endpoints, strings.Join(node.PodCIDRs, "  "))
		if !node.Ready {
			state, detail = "away", node.Problem
		}
		s.lines(fmt.Sprintf("%-8s %-6s %s", node.Name, state, detail))
	}
	if len(status.Pods) > 0 {
		s.heading("pods")
	}
	for _, pod := range status.Pods {
		s.lines(fmt.Sprintf("%-22s %-8s %-16s %s", pod.FullName(), pod.Node, pod.Addr(4), pod.Addr(6)))
	}
	s.heading("processes")
	for _, process := range status.Processes {
		s.lines(fmt.Sprintf("%-8d %-22s %s", process.PID, process.Name, process.Log))
	}
}

func newLabExecCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "exec NODE|POD|outside|control -- PROGRAM [ARGUMENT...]",
		Short: "Run a program on a node, in a pod or on the outside host",
		Example: `  tendril lab exec shop/client -- curl http://10.96.0.80
  tendril lab exec node1 -- ip route
  tendril lab exec outside -- bash`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(a.lab)
			if err != nil {
				return err
			}
			place, err := l.Find(args[0])
			if err != nil {
				return err
			}
			return execIn(cmd, place, args[1:])
		},
	}
}

// execIn runs a program with this terminal, in its own place, and takes over its exit status.
func execIn(cmd *cobra.Command, place lab.Place, argv []string) error {
	program := exec.Command(argv[0], argv[1:]...)
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()
	program.SysProcAttr = &syscall.SysProcAttr{} // stay in the terminal's session
	if err := place.Prepare(program)(); err != nil {
		return err
	}
	err := program.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exitError{status: max(exit.ExitCode(), 1)}
	}
	return err
}

func newLabPodCommand(a *app) *cobra.Command {
	var spec lab.PodSpec
	add := &cobra.Command{
		Use:     "add NODE NAMESPACE/NAME",
		Short:   "Make a pod with the CNI plugin",
		Example: "  tendril lab pod add node1 shop/web --label app=web --label tier=front",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(a.lab)
			if err != nil {
				return err
			}
			defer l.Close()
			spec.Node, spec.Name = args[0], args[1]
			if namespace, name, found := strings.Cut(args[1], "/"); found {
				spec.Namespace, spec.Name = namespace, name
			}
			pod, err := l.AddPod(cmd.Context(), spec)
			if err != nil {
				return err
			}
			if a.json() {
				return printJSON(cmd.OutOrStdout(), pod)
			}
			newScreen(cmd.OutOrStdout()).good(fmt.Sprintf("pod %s on %s: %s", pod.FullName(), pod.Node, joinAddrs(pod)), pod.Took)
			return nil
		},
	}
	add.Flags().StringToStringVarP(&spec.Labels, "label", "l", nil, "label key=value, may be repeated")
	add.Flags().StringVar(&spec.ServiceAccount, "service-account", "", "service account (default \"default\")")
	return holder("pod", "Add and remove pods", add, newLabPodRemoveCommand(a))
}

func newLabPodRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAMESPACE/NAME",
		Short:   "End a pod's programs and take it away",
		Example: `  tendril lab pod remove shop/web`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(a.lab)
			if err != nil {
				return err
			}
			defer l.Close()
			pod, err := l.Pod(args[0])
			if err != nil {
				return err
			}
			return l.RemovePod(cmd.Context(), pod)
		},
	}
}

func joinAddrs(pod *lab.Pod) string {
	var texts []string
	for _, addr := range pod.Addrs {
		texts = append(texts, addr.String())
	}
	return strings.Join(texts, ", ")
}

func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// lookAround says what to try in a running lab.
func lookAround(name string) []string {
	flag := ""
	if name != "lab" {
		flag = "--lab " + name + " "
	}
	return []string{
		"look around:",
		"  tendril " + flag + "lab status",
		"  tendril " + flag + "--node node1 status",
		"  tendril " + flag + "--node node1 observe -f",
		"  tendril " + flag + "lab exec node1 -- ip route",
		"  tendril " + flag + "lab down",
	}
}
