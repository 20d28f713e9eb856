package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"time"

	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/table"
)

const (
	programServices  = 50_000
	programEndpoints = 250_000 // of all services together
	manyServices     = 20_000
	perService       = 5    // backends
	fleetPort        = 7000 // of services and backends; loadPort
)

// fleetIP is the ClusterIP of a service: of 10.96.0.0/12, where Kubernetes has them by default.
func fleetIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)})
}

func fleetName(i int) string { return "s" + strconv.Itoa(i) }

// fleetBackend is an address of a backend that nobody asks.
func fleetBackend(i, j int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(16 + 2*j + i>>16), byte(i >> 8), byte(i)})
}

// fleet is services with five backends each, as rows of the agent's tables.
func fleet(services int) ([]table.Service, []table.Backends) {
	ss, bs := make([]table.Service, services), make([]table.Backends, services)
	for i := range services {
		name := fleetName(i)
		ss[i] = table.Service{
			Namespace: "bench", Name: name, Type: "ClusterIP", ClusterIPs: []netip.Addr{fleetIP(i)},
			Ports: []table.ServicePort{{Name: "load", Protocol: 6, Port: fleetPort}},
		}
		bs[i] = table.Backends{Namespace: "bench", Service: name, Slice: name + "-1", Ports: []table.NamedPort{{Name: "load", Protocol: 6, Port: fleetPort}}}
		for j := range perService {
			bs[i].Backends = append(bs[i].Backends, table.Backend{
				Addrs: []netip.Addr{fleetBackend(i, j)},
				Node:  "node" + strconv.Itoa(i%100), Ready: true, Serving: true,
			})
		}
	}
	return ss, bs
}

// services measures what services cost an agent, from their rows to the kernel, as policies does for policies.
func (b *bench) services(ctx context.Context) error {
	if err := b.programFleets(ctx); err != nil {
		return err
	}
	return b.memory(ctx)
}

// programFleets keeps the rows no longer than it takes: what follows measures memory.
func (b *bench) programFleets(ctx context.Context) error {
	ss, bs := fleet(programServices)
	for range 3 {
		if err := b.programFleet(ctx, ss, bs); err != nil {
			return err
		}
		runtime.GC()
	}
	return nil
}

// programFleet takes 250,000 endpoints to the kernel of a node that has none, and then changes some of them.
func (b *bench) programFleet(ctx context.Context, ss []table.Service, bs []table.Backends) error {
	// Defaults are for less: a node that is to hold so many says so.
	room := map[string]uint32{"backends": 2 * programEndpoints, "slots": 4 * programEndpoints, "assignments": 4 * programEndpoints}
	kernel, err := newKernel(ctx, room)
	if err != nil {
		return err
	}
	brain, err := service.New(service.Config{NodeName: "node1"}, kernel.datapath.Numbers())
	if err != nil {
		return errors.Join(err, kernel.close())
	}
	begin := time.Now()
	err = publishServices(ctx, kernel, brain, ss, bs)
	b.sample("svc_program_250k_endpoints_s", time.Since(begin).Seconds())
	for i := 0; i < 100 && err == nil; i++ {
		at := i * len(bs) / 100
		less := bs[at]
		less.Backends = less.Backends[1:]
		begin := time.Now()
		err = publishServices(ctx, kernel, brain, nil, []table.Backends{less})
		b.sample("svc_change_ms_p50", float64(time.Since(begin).Microseconds())/1e3)
	}
	return errors.Join(err, kernel.close())
}

// publishServices takes rows to the kernel, as the agent's service loop does.
func publishServices(ctx context.Context, k *kernel, brain *service.Brain, ss []table.Service, bs []table.Backends) error {
	for _, row := range ss {
		brain.SetService(row)
	}
	for _, row := range bs {
		brain.SetBackends(row)
	}
	for {
		delta := brain.Flush()
		if delta.Empty() {
			break
		}
		if err := k.datapath.PublishServices(ctx, &delta); err != nil {
			return err
		}
	}
	if problems := brain.Problems(); len(problems) > 0 {
		return fmt.Errorf("%d services have a problem, the first: %+v", len(problems), problems[0])
	}
	return nil
}

// memory is what 20,000 services take of an agent's heap, and in default maps.
func (b *bench) memory(ctx context.Context) error {
	kernel, err := newKernel(ctx, nil)
	if err != nil {
		return err
	}
	brain, err := service.New(service.Config{NodeName: "node1"}, kernel.datapath.Numbers())
	if err != nil {
		return errors.Join(err, kernel.close())
	}
	before := heap()
	ss, bs := fleet(manyServices)
	err = publishServices(ctx, kernel, brain, ss, bs)
	b.sample("memory_20k_services_mib", (heap()-before)/(1<<20))
	runtime.KeepAlive(brain)
	runtime.KeepAlive(ss)
	runtime.KeepAlive(bs)
	return errors.Join(err, kernel.close())
}
