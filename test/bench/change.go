package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/store"
)

// denyAll isolates the server in both ways; `tendril apply` would write the same.
const denyAll = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"bench","namespace":"bench"},` +
	`"spec":{"podSelector":{"matchLabels":{"app":"same"}},"policyTypes":["Ingress"]}}`

// changes measures how long a write to the store takes to hold: from just before the write to the first packet judged
// or balanced by it, on the node of a pod that asks all the time.
func (b *bench) changes(ctx context.Context) error {
	return b.up(ctx, "change", lab.ModeNative, 2, func(l *lab.Lab) error {
		f, err := b.field(ctx, l)
		if err != nil {
			return err
		}
		writer, err := l.Writer()
		if err != nil {
			return err
		}
		err = b.policyChanges(ctx, f, writer)
		if err == nil {
			err = b.serviceChanges(ctx, f, writer)
		}
		return errors.Join(err, writer.Close())
	})
}

// outcomeOf is what a waiting load program came to.
type outcomeOf struct {
	answerOf
	err error
}

// while starts a load program, gives it time to begin, and writes; the time from the write to what it saw is returned.
func (b *bench) while(ctx context.Context, pod *lab.Pod, writer *store.Writer, key string, value proto.Message, args ...string) (time.Duration, error) {
	done := make(chan outcomeOf, 1)
	go func() {
		out, err := b.ask(ctx, pod, args...)
		done <- outcomeOf{out, err}
	}()
	time.Sleep(150 * time.Millisecond)
	begin := time.Now()
	if _, err := writer.Apply(ctx, []store.Record{{Key: key, Value: value}}); err != nil {
		<-done
		return 0, err
	}
	out := <-done
	return max(0, time.Unix(0, out.At).Sub(begin)), out.err
}

func (b *bench) policyChanges(ctx context.Context, f *field, writer *store.Writer) error {
	const key = "policies/NetworkPolicy/bench/bench"
	server := f.same.Addr(4).String()
	for range 4 * b.rounds {
		took, err := b.while(ctx, f.client, writer, key, &storev1.Policy{Object: []byte(denyAll)}, "silence", server, loadPort, "10s")
		if err != nil {
			return fmt.Errorf("policy: %w", err)
		}
		b.sample("policy_apply_to_enforced_ms_p50", float64(took.Microseconds())/1e3)
		if _, err := b.while(ctx, f.client, writer, key, nil, "answer", server, loadPort, "10s"); err != nil {
			return fmt.Errorf("policy removed: %w", err)
		}
	}
	return nil
}

func (b *bench) serviceChanges(ctx context.Context, f *field, writer *store.Writer) error {
	port, err := strconv.ParseUint(loadPort, 10, 16)
	if err != nil {
		return err
	}
	for round := range 4 * b.rounds {
		address := netip.AddrFrom4([4]byte{10, 96, 77, byte(round + 1)})
		name := "bench" + strconv.Itoa(round)
		ports := []*storev1.EndpointPort{{Name: "load", Protocol: 17, Port: uint32(port)}}
		backends := []*storev1.Backend{{Addresses: [][]byte{f.cross.Addr(4).AsSlice()}, Node: "node2", Ready: true, Serving: true}}
		endpoints := store.Record{Key: "endpoints/bench/" + name + "/a", Value: &storev1.Endpoints{Ports: ports, Backends: backends}}
		if _, err := writer.Apply(ctx, []store.Record{endpoints}); err != nil {
			return err
		}
		service := &storev1.Service{
			ClusterIps: [][]byte{address.AsSlice()},
			Ports:      []*storev1.ServicePort{{Name: "load", Protocol: 17, Port: uint32(port)}},
		}
		took, err := b.while(ctx, f.client, writer, "services/bench/"+name, service, "answer", address.String(), loadPort, "10s")
		if err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
		b.sample("service_apply_to_answer_ms_p50", float64(took.Microseconds())/1e3)
	}
	return nil
}
