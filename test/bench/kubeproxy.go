package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/store"
)

// targets are the services, of all that there are, whose backend is there: spread evenly over them, and asked in turns. Where
// rules are a list it matters which one is asked.
const targets = 9

// contender is a node that balances services in one way, with a client and a server.
type contender struct {
	name           string // tendril, nftables, iptables or veth
	lab            *lab.Lab
	client, server *lab.Pod
	services       int // that there are
}

// proxies compares a connection through a ClusterIP with the same through kube-proxy's rules, beside so many services.
// What nobody can beat who leaves the devices and the stack as they are is measured beside them: the server's own address, over
// bare veth, with nothing to balance. The rules are made by kube-proxy itself, of the version in kubeproxy/go.mod, in the node of a bare lab; it has ended when the
// rules are asked, so that it takes no time from anybody.
func (b *bench) proxies(ctx context.Context) error {
	tools, err := b.buildTools(ctx)
	if err != nil {
		return err
	}
	return b.up(ctx, "one", lab.ModeNative, 1, func(one *lab.Lab) error {
		return b.up(ctx, "many", lab.ModeNative, 1, func(many *lab.Lab) error {
			return b.up(ctx, "nft", lab.ModeBare, 1, func(nft *lab.Lab) error {
				return b.up(ctx, "ipt", lab.ModeBare, 1, func(ipt *lab.Lab) error {
					return b.up(ctx, "veth", lab.ModeBare, 1, func(veth *lab.Lab) error {
						return b.compare(ctx, tools, []*contender{{name: "one", lab: one}, {name: "veth", lab: veth},
							{name: "tendril", lab: many}, {name: "nftables", lab: nft}, {name: "iptables", lab: ipt}})
					})
				})
			})
		})
	})
}

// compare lets the services grow and measures all contenders at each size.
func (b *bench) compare(ctx context.Context, tools toolbox, all []*contender) error {
	for _, c := range all {
		var err error
		if c.client, err = b.pod(ctx, c.lab, "client", "node1"); err == nil {
			c.server, err = b.pod(ctx, c.lab, "server", "node1")
		}
		if err == nil {
			_, err = c.server.Start(b.load, "serve", loadPort)
		}
		if err != nil {
			return fmt.Errorf("lab %s: %w", c.lab.Name, err)
		}
	}
	one, ours, proxies := all[0], all[2], all[3:]
	if err := one.fill(ctx, b, 1); err != nil {
		return err
	}
	for _, services := range []int{1, 1000, manyServices} {
		err := ours.fill(ctx, b, services)
		for _, c := range proxies {
			begin := time.Now()
			err = errors.Join(err, tools.program(ctx, b, c, services))
			fmt.Fprintf(os.Stderr, "bench: kube-proxy wrote %d services for %s in %.1f s\n", services, c.name, time.Since(begin).Seconds())
		}
		if err != nil {
			return err
		}
		for round := range b.rounds {
			if err := b.compareOnce(ctx, round, services, all); err != nil {
				return fmt.Errorf("%d services: %w", services, err)
			}
		}
	}
	return nil
}

// compareOnce measures each contender for one round; who is first takes turns.
func (b *bench) compareOnce(ctx context.Context, round, services int, all []*contender) error {
	rates := map[string]float64{}
	for i := range all {
		c := all[(i+round)%len(all)]
		target := c.server.Addr(4)
		if c.name != "veth" {
			target = fleetIP(targetOf(round, c.services))
		}
		out, err := b.ask(ctx, c.client, "crr", target.String(), loadPort, connections, b.time.String())
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		rates[c.name] = out.PerSecond
	}
	for _, proxy := range []string{"nftables", "iptables"} {
		against := fmt.Sprintf("crr_vs_kube_proxy_%s_%d", proxy, services)
		b.sample("svc_"+against, rates["tendril"]/rates[proxy])
		b.sample("veth_"+against, rates["veth"]/rates[proxy])
	}
	if services == manyServices {
		b.sample("svc_crr_20k_vs_1", rates["tendril"]/rates["one"])
	}
	return nil
}

// targetOf is the service that is asked in a round.
func targetOf(round, services int) int {
	real := min(targets, services)
	return round % real * (services / real)
}

// fill writes services to a lab's store and waits until the last one answers. Those that nobody asks have five backends each
// that are not there.
func (c *contender) fill(ctx context.Context, b *bench, services int) error {
	c.services = services
	ports := []*storev1.EndpointPort{{Name: "load", Protocol: 6, Port: fleetPort}}
	var endpoints, all []store.Record
	for i := range services {
		name, backends := fleetName(i), []*storev1.Backend{backendAt(c.server.Addr(4))}
		if !isTarget(i, services) {
			backends = nil
			for j := range perService {
				backends = append(backends, backendAt(fleetBackend(i, j)))
			}
		}
		endpoints = append(endpoints, store.Record{
			Key: store.EndpointsKey("bench", name, "1").String(), Value: &storev1.Endpoints{Ports: ports, Backends: backends},
		})
		all = append(all, store.Record{Key: store.ServiceKey("bench", name).String(), Value: &storev1.Service{
			ClusterIps: [][]byte{fleetIP(i).AsSlice()}, Ports: []*storev1.ServicePort{{Name: "load", Protocol: 6, Port: fleetPort}},
		}})
	}
	writer, err := c.lab.Writer()
	if err != nil {
		return err
	}
	_, err = writer.Apply(ctx, append(endpoints, all...))
	if err == nil {
		err = c.answers(ctx, b)
	}
	return errors.Join(err, writer.Close())
}

func backendAt(addr netip.Addr) *storev1.Backend {
	return &storev1.Backend{Addresses: [][]byte{addr.AsSlice()}, Node: "node1", Ready: true, Serving: true}
}

// isTarget says whether a service's backend is there. The last one's is, so that it can be waited for.
func isTarget(i, services int) bool {
	return i%(services/min(targets, services)) == 0 || i == services-1
}

// answers waits until the last service answers. All come in order, to kube-proxy and to the store.
func (c *contender) answers(ctx context.Context, b *bench) error {
	return lab.Wait(ctx, "services of "+c.name, 10*time.Minute, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second) // where nobody answers, connecting takes minutes
		defer cancel()
		out, err := b.ask(ctx, c.client, "crr", fleetIP(c.services-1).String(), loadPort, "1", "10ms")
		if err == nil && out.Count == 0 {
			err = errors.New("no connection yet")
		}
		return err
	})
}

// toolbox is what makes kube-proxy's rules.
type toolbox struct {
	kubeProxy, apiserver string // programs
	path                 string // where kube-proxy finds its own tools
}

// buildTools builds kube-proxy, two minutes where no build of it is cached, and what it asks. Its iptables are those of the kernel's
// own tables, not those translated to nftables, which cost a packet more.
func (b *bench) buildTools(ctx context.Context) (toolbox, error) {
	dir := filepath.Dir(b.load)
	t := toolbox{filepath.Join(dir, "kube-proxy"), filepath.Join(dir, "apiserver"), filepath.Join(dir, "path")}
	for _, args := range [][]string{
		{"build", "-o", t.apiserver, "./test/bench/apiserver"},
		{"build", "-C", "test/bench/kubeproxy", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", t.kubeProxy, "k8s.io/kubernetes/cmd/kube-proxy"},
	} {
		build := exec.CommandContext(ctx, "go", args...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			return t, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, text)
		}
	}
	if err := os.Mkdir(t.path, 0o755); err != nil {
		return t, err
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, command := range []string{"", "-save", "-restore"} {
			found, err := exec.LookPath(family + "-legacy" + command)
			if err == nil {
				err = os.Symlink(found, filepath.Join(t.path, family+command))
			}
			if err != nil {
				return t, err
			}
		}
	}
	return t, nil
}

// program has kube-proxy write its rules for so many services, and ends it.
func (t toolbox) program(ctx context.Context, b *bench, c *contender, services int) (err error) {
	c.services = services
	const listen = "127.0.0.1:8001"
	node, err := c.lab.Node("node1")
	if err != nil {
		return err
	}
	backend := c.server.Addr(4).String()
	api, err := c.lab.Start(node, "apiserver", t.apiserver, listen, "node1", "172.30.0.1",
		strconv.Itoa(services), strconv.Itoa(min(targets, services)), backend, loadPort)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, api.Stop(ctx)) }()
	time.Sleep(500 * time.Millisecond) // it listens; kube-proxy would ask again after seconds only
	// Limits of conntrack are the machine's, and not this node's to set.
	proxy, err := c.lab.Start(node, "kube-proxy", "env", "PATH="+t.path+":"+os.Getenv("PATH"), t.kubeProxy, "--master=http://"+listen,
		"--hostname-override=node1", "--proxy-mode="+c.name, "--cluster-cidr=10.244.0.0/16", "--conntrack-max-per-core=0",
		"--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
	if err != nil {
		return err
	}
	err = c.answers(ctx, b)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, proxy.Output())
	}
	return errors.Join(err, proxy.Stop(ctx))
}
