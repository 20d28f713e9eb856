package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tendril.io/tendril/internal/lab"
)

// demo tells the product's story in seven steps (lab_demo_*.go) with real programs. A step prints what it did and what
// it saw; the first one that does not hold ends the demo.
type demo struct {
	s        *screen
	l        *lab.Lab
	config   lab.Config
	examples string
	pods     map[string]*lab.Pod // by name; all are in namespace shop
}

// namespace is where all pods of the demo live.
const namespace = "shop"

type demoStep struct {
	title string
	run   func(*demo, context.Context) error
}

// demoSteps are the steps in the order of the story.
func demoSteps() []demoStep {
	return []demoStep{
		{"1 Pods reach each other: same node, other node, IPv4, IPv6, native, VXLAN", (*demo).reach},
		{"2 Policies allow one client and deny another, and say which rule did it", (*demo).police},
		{"3 Explain proves the verdict of a flow that has not happened", (*demo).explain},
		{"4 A service spreads connections; a removed backend disturbs nobody else", (*demo).balance},
		{"5 The outside host sees the node's address, and replies come back", (*demo).masquerade},
		{"6 Agents are killed and the datapath is upgraded under load: nothing lost", (*demo).survive},
		{"7 A hundred pods from one program template", (*demo).grow},
	}
}

func newLabDemoCommand(a *app) *cobra.Command {
	d := &demo{pods: map[string]*lab.Pod{}}
	var keep bool
	command := &cobra.Command{
		Use:   "demo",
		Short: "See what tendril does, in seven steps with real traffic",
		Example: `  tendril lab demo
  tendril lab demo --keep`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.s = newScreen(cmd.OutOrStdout())
			d.config.Name = a.lab
			return d.run(cmd.Context(), keep)
		},
	}
	command.Flags().BoolVar(&keep, "keep", false, "leave the lab running afterwards")
	command.Flags().StringVar(&d.examples, "examples", "", "folder of the manifests (default: examples, here or beside the program)")
	command.Flags().StringVar(&d.config.BinDir, "bin", "", "folder of tendril-agent and tendril-cni (default: this program's)")
	return command
}

// run builds the lab, runs the steps, and takes the lab away again unless it is to be kept.
func (d *demo) run(ctx context.Context, keep bool) (err error) {
	if err := d.prepare(); err != nil {
		return err
	}
	begin := time.Now()
	d.s.heading("0 A cluster of three nodes on this machine")
	if err := d.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.finish(context.WithoutCancel(ctx), keep)) }()
	d.s.good("three nodes, their agents, a store and an outside host are up", time.Since(begin))
	for _, step := range demoSteps() {
		d.s.heading(step.title)
		stepBegin := time.Now()
		if err := step.run(d, ctx); err != nil {
			d.s.bad("this step does not hold")
			return fmt.Errorf("demo step %s: %w", step.title[:1], err)
		}
		d.s.good("holds", time.Since(stepBegin))
	}
	d.s.heading("Everything held")
	d.s.good("seven of seven steps", time.Since(begin))
	return nil
}

// prepare finds what the demo needs before anything is built.
func (d *demo) prepare() error {
	for _, program := range []string{"nginx", "curl", "iperf3", "dig"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("demo: %s is not installed: apt-get install nginx-light curl iperf3 dnsutils", program)
		}
	}
	if d.examples != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	for _, folder := range []string{"examples", filepath.Join(filepath.Dir(self), "../examples"), filepath.Join(filepath.Dir(self), "examples")} {
		if _, err := os.Stat(filepath.Join(folder, "web-service.yaml")); err == nil {
			d.examples = folder
			return nil
		}
	}
	return errors.New("demo: the folder of example manifests is not here: say where it is with --examples")
}

// start builds the lab and the pods that all steps share.
func (d *demo) start(ctx context.Context) error {
	d.config.Progress = d.s.progress
	l, err := lab.Up(ctx, d.config)
	if err != nil {
		return err
	}
	d.l = l
	err = d.populate(ctx)
	if err != nil {
		err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	return err
}

// populate adds the pods. The web servers are the first pods of their nodes, the name server the second of node2: the
// manifests say their addresses.
func (d *demo) populate(ctx context.Context) error {
	d.s.progress("pods: three nginx, a name server, two clients, a stranger, a visitor")
	for _, pod := range []struct{ node, name, app string }{
		{"node1", "web-1", "web"}, {"node2", "web-2", "web"}, {"node3", "web-3", "web"}, {"node2", "dns", "dns"},
		{"node1", "client", "client"}, {"node3", "client-3", "client"}, {"node1", "stranger", "stranger"}, {"node1", "visitor", "visitor"},
		{"node2", "server", "server"},
	} {
		if err := d.addPod(ctx, pod.node, pod.name, pod.app); err != nil {
			return err
		}
	}
	for _, name := range []string{"web-1", "web-2", "web-3"} {
		if _, err := d.l.StartNginx(ctx, d.pods[name].Place, name, 80); err != nil {
			return err
		}
	}
	if _, err := d.l.StartDNS(ctx, d.pods["dns"].Place, "web.shop=10.96.0.80,fd96::80"); err != nil {
		return err
	}
	_, err := d.l.StartNginx(ctx, d.l.Outside(), "outside", 80)
	return err
}

func (d *demo) addPod(ctx context.Context, node, name, app string) error {
	spec := lab.PodSpec{Node: node, Namespace: namespace, Name: name, Labels: map[string]string{"app": app}}
	pod, err := d.l.AddPod(ctx, spec)
	if err != nil {
		return err
	}
	d.pods[name] = pod
	return nil
}

// finish takes the lab away, or says how to use it.
func (d *demo) finish(ctx context.Context, keep bool) error {
	if !keep {
		return d.l.Down(ctx)
	}
	d.s.heading("The lab stays up")
	d.s.lines(lookAround(d.l.Name)...)
	return d.l.Close()
}

// hold prints whether something holds; where it does not, the error carries the same words.
func (d *demo) hold(ok bool, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if !ok {
		d.s.bad(text)
		return errors.New(text)
	}
	d.s.good(text, 0)
	return nil
}

// show runs the command line as a person would, prints the command and the first lines of its output.
func (d *demo) show(ctx context.Context, lines int, args ...string) error {
	out, err := d.l.CLI(ctx, args...)
	if err != nil {
		return err
	}
	all := strings.Split(strings.TrimSpace(out), "\n")
	if len(all) > lines {
		more := fmt.Sprintf("… %d more lines", len(all)-lines)
		all = append(all[:lines], more)
	}
	d.s.command("tendril "+strings.Join(args, " "), strings.Join(all, "\n"))
	return nil
}

// apply applies an example and waits until all agents enforce it.
func (d *demo) apply(ctx context.Context, file string) error {
	path := filepath.Join(d.examples, file)
	begin := time.Now()
	out, err := d.l.Apply(ctx, path)
	if err != nil {
		return err
	}
	d.s.command("tendril apply -f "+path, out)
	d.s.note("in force on every node after " + short(time.Since(begin)))
	return nil
}

// family names an address's family.
func family(addr netip.Addr) string {
	if addr.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
