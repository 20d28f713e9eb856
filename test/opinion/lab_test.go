package opinion

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/generator"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"tendril.io/tendril/internal/ipproto"
	"tendril.io/tendril/internal/lab"
)

// labPlace is a lab in which the cases' objects take effect: manifests by the real command line, pods by the real CNI
// plugin, on three nodes in turn, each with echo servers on the ports of the cases.
type labPlace struct {
	*lab.Lab
	ctx    context.Context
	folder string // of the manifests that are in force, so that they can be deleted
	pods   map[string]*lab.Pod
	made   int
}

// openLab builds a lab that leaves nothing behind.
func openLab(t *testing.T) *labPlace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces, cgroups and BPF programs")
	}
	const name = "opinion"
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), name); err != nil {
			t.Error(err)
		}
		if left := lab.Leftovers(name); len(left) > 0 {
			t.Errorf("after down there is still %v", left)
		}
	})
	l, err := lab.Up(t.Context(), lab.Config{Name: name, BinDir: binaries(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return &labPlace{Lab: l, ctx: t.Context(), folder: t.TempDir(), pods: map[string]*lab.Pod{}}
}

// binaries finds the folder of the binaries, or builds them from this checkout.
func binaries(t *testing.T) string {
	t.Helper()
	if folder := os.Getenv("TENDRIL_BIN"); folder != "" {
		return folder
	}
	folder := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", folder, "./cmd/...")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the binaries: %v\n%s", err, out)
	}
	return folder
}

func (p *labPlace) manifest(kind, namespace, name string) string {
	return filepath.Join(p.folder, strings.Join([]string{kind, namespace, name}, "-")+".json")
}

func (p *labPlace) apply(manifest []byte) error {
	var head struct {
		Kind     string
		Metadata struct{ Namespace, Name string }
	}
	if err := json.Unmarshal(manifest, &head); err != nil {
		return err
	}
	file := p.manifest(head.Kind, head.Metadata.Namespace, head.Metadata.Name)
	if err := os.WriteFile(file, manifest, 0o644); err != nil {
		return err
	}
	_, err := p.Apply(p.ctx, file)
	return err
}

func (p *labPlace) removePolicy(kind, namespace, name string) error {
	_, err := p.Delete(p.ctx, p.manifest(kind, namespace, name))
	return err
}

func (p *labPlace) removeNamespace(name string) error {
	_, err := p.Delete(p.ctx, p.manifest("Namespace", "", name))
	return err
}

func (p *labPlace) removePod(namespace, name string) error {
	pod := p.pods[namespace+"/"+name]
	delete(p.pods, namespace+"/"+name)
	return p.RemovePod(p.ctx, pod)
}

func (p *labPlace) setPod(object *corev1.Pod, namespace map[string]string) ([2]netip.Addr, error) {
	pod, known := p.pods[object.Namespace+"/"+object.Name]
	if known {
		object = object.DeepCopy()
		object.UID, object.Spec.NodeName = types.UID(pod.UID), pod.Node
		manifest, err := manifestOf("v1", "Pod", object)
		if err == nil {
			err = p.apply(manifest)
		}
		return [2]netip.Addr{pod.Addr(4), pod.Addr(6)}, err
	}
	spec := lab.PodSpec{
		Node: p.NodeNames()[p.made%len(p.NodeNames())], Namespace: object.Namespace, Name: object.Name,
		Labels: object.Labels, NamespaceLabels: namespace,
	}
	p.made++
	for _, container := range object.Spec.Containers {
		for _, port := range container.Ports {
			protocol, err := ipproto.Parse(string(port.Protocol))
			if err != nil {
				return [2]netip.Addr{}, err
			}
			spec.NamedPorts = append(spec.NamedPorts, lab.NamedPort{Name: port.Name, Port: uint16(port.ContainerPort), Protocol: protocol})
		}
	}
	pod, err := p.AddPod(p.ctx, spec)
	if err != nil {
		return [2]netip.Addr{}, err
	}
	p.pods[pod.FullName()] = pod
	for _, port := range servedPorts() {
		if _, err := p.StartEcho(p.ctx, pod.Place, uint16(port)); err != nil {
			return [2]netip.Addr{}, err
		}
	}
	return [2]netip.Addr{pod.Addr(4), pod.Addr(6)}, nil
}

// answered is what became of a question to an echo server.
type answered struct {
	yes bool
	err error // neither an answer nor silence, as a refused connection: nobody of the lab should cause one
}

// Silence means denied. How long it must last: quiet, and at least until everything that should be answered has been, so
// that a busy machine is given as much time for what must not come as for what must.
const (
	quiet   = 250 * time.Millisecond
	patient = 4 * time.Second // for what should be answered
)

// ask sends real packets for all cells at once, each on a socket of its own.
func (p *labPlace) ask(cells []cell, wanted []bool) []answered {
	answers := make([]answered, len(cells))
	long, cancelLong := context.WithTimeout(p.ctx, patient)
	defer cancelLong()
	short, cancelShort := context.WithCancel(long)
	defer cancelShort()
	var slow, all sync.WaitGroup
	for i, c := range cells {
		if wanted[i] {
			slow.Go(func() { answers[i] = p.tryCell(long, c) })
		} else {
			all.Go(func() { answers[i] = p.tryCell(short, c) })
		}
	}
	time.Sleep(quiet)
	slow.Wait()
	cancelShort()
	all.Wait()
	return answers
}

// tryCell asks until an answer comes or the time is over.
func (p *labPlace) tryCell(ctx context.Context, c cell) answered {
	network := strings.ToLower(string(c.protocol))
	to := netip.AddrPortFrom(c.to.addrs[c.family], uint16(c.port))
	conn, err := p.pods[c.from.String()].Place.Dial(ctx, network, to.String())
	if err != nil {
		if ctx.Err() != nil {
			err = nil
		}
		return answered{err: err}
	}
	defer conn.Close()
	for pause := 50 * time.Millisecond; ; pause *= 2 {
		yes, err := echoed(ctx, conn, pause)
		var late net.Error
		switch {
		case yes:
			return answered{yes: true}
		case ctx.Err() != nil:
			return answered{}
		case errors.As(err, &late) && late.Timeout(): // ask again: a datagram may be lost
		default:
			return answered{err: err}
		}
	}
}

// echoed sends a byte and waits for it to come back.
func echoed(ctx context.Context, conn net.Conn, within time.Duration) (bool, error) {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	buffer := []byte{'?'}
	if _, err := conn.Write(buffer); err != nil {
		return false, err
	}
	_, err := conn.Read(buffer)
	return err == nil, err
}

// sample chooses cases for the lab: every one of the kinds that are about more than one rule, and of the others so many
// that each two features that cyclonus generates together come together. Those about ranges come in both families.
func sample(addrs [2]netip.Addr) []*generator.TestCase {
	var chosen []*generator.TestCase
	seen := map[[3]string]bool{}
	for family, addr := range addrs {
		for _, c := range casesFor(addr, true) {
			ranges := c.Tags.ContainsAny([]string{generator.TagIPBlockNoExcept, generator.TagIPBlockWithExcept})
			whole := c.Tags.ContainsAny([]string{generator.TagAction, generator.TagConflict, generator.TagExample, generator.TagUpstreamE2E})
			if family == 1 && !ranges {
				continue // the same again
			}
			kind := "any family"
			if ranges {
				kind = fmt.Sprint("family ", family)
			}
			if fresh := notePairs(seen, kind, c.Tags.Keys()); fresh || whole {
				chosen = append(chosen, c)
			}
		}
	}
	return chosen
}

// notePairs notes all pairs of tags, and says whether there was a new one.
func notePairs(seen map[[3]string]bool, kind string, tags []string) (fresh bool) {
	for i, one := range tags {
		for _, other := range tags[i:] {
			pair := [3]string{kind, one, other}
			fresh = fresh || !seen[pair]
			seen[pair] = true
		}
	}
	return fresh
}

// Real packets find what cyclonus' matcher says, in every cell of the truth table: nine pods on three nodes, TCP and UDP,
// both families. The kernels that the lab runs on need not have SCTP; its cases are applied and judged by what they do
// to TCP and UDP.
func TestPacketsAgreeWithCyclonus(t *testing.T) {
	p := openLab(t)
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}
	s := setStage(t, p, protocols...)
	var sum tally
	defer func() { sum.report(t) }()
	tags := map[string]bool{}
	for i, c := range sample(s.addrs["z/c"]) {
		t.Run(fmt.Sprintf("%d %s", i+1, c.Description), func(t *testing.T) {
			sum.cases++
			maps.Copy(tags, c.Tags)
			s.reset(t)
			for number, step := range c.Steps {
				sum.steps++
				spreads := false // to nodes that do not say when they have heard of it
				for _, action := range step.Actions {
					spreads = spreads || action.CreatePolicy == nil && action.UpdatePolicy == nil && action.DeletePolicy == nil
					if err := s.act(action); err != nil {
						t.Fatal(err)
					}
				}
				table := tableOf(s.parties(), protocols, servedPorts())
				sum.add(table, p.wanted(s, table))
				wrong := p.differences(s, table)
				for begin := time.Now(); spreads && len(wrong) > 0 && time.Since(begin) < settling; {
					wrong = p.differences(s, table)
				}
				if len(wrong) > 0 {
					t.Errorf("step %d: %d of %d cells differ, under %s\n%s", number+1, len(wrong), len(table),
						describe(s.state.Policies), strings.Join(wrong[:min(5, len(wrong))], "\n"))
				}
			}
		})
	}
	for _, tag := range generator.TagSlice {
		if !tags[tag] && tag != generator.TagPolicyStack {
			t.Errorf("no case of the sample is about %s", tag)
		}
	}
}

// settling is how long nodes may take to hear of pods and labels. A policy that was written or removed is in force, or
// no more, everywhere when Apply or Delete returns.
const settling = 3 * time.Second

// wanted are the verdicts that packets should find. A pod reaches itself whatever policies say: such packets never
// leave its namespace, and Kubernetes wants it so.
func (p *labPlace) wanted(s *stage, table []cell) []bool {
	policies := s.policies()
	wanted := make([]bool, len(table))
	for i, c := range table {
		wanted[i] = s.opinion(policies, c).passes() || c.from.String() == c.to.String()
	}
	return wanted
}

// differences sends packets for every cell, and says where they fared otherwise than they should.
func (p *labPlace) differences(s *stage, table []cell) []string {
	wanted := p.wanted(s, table)
	var wrong []string
	for i, answer := range p.ask(table, wanted) {
		if answer.err != nil || answer.yes != wanted[i] {
			wrong = append(wrong, fmt.Sprintf("%s: answered %t (%v), cyclonus says %t", table[i], answer.yes, answer.err, wanted[i]))
		}
	}
	return wrong
}
