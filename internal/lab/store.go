package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
	"tendril.io/tendril/internal/store"
)

const storeProcess = "store"

// StoreEndpoint is the store's address for programs of this machine that live in no namespace of the lab: a unix
// socket that leads to it.
func (l *Lab) StoreEndpoint() string { return "unix://" + l.storeSocket() }

func (l *Lab) storeSocket() string { return l.state("store.sock") }

// Writer opens the store for writing, as the operator would.
func (l *Lab) Writer() (*store.Writer, error) {
	return store.NewWriter(store.WriterConfig{Endpoints: []string{l.StoreEndpoint()}, Cluster: Cluster})
}

// withWriter gives f a writer and closes it.
func (l *Lab) withWriter(f func(*store.Writer) error) error {
	writer, err := l.Writer()
	if err != nil {
		return fmt.Errorf("store of lab %s: %w", l.Name, err)
	}
	if err := errors.Join(f(writer), writer.Close()); err != nil {
		return fmt.Errorf("store of lab %s: %w", l.Name, err)
	}
	return nil
}

// StartStore starts the store and the Publish service on what data there is, and lets the operator catch up: the lab's
// pods are written, and an empty store is declared complete.
func (l *Lab) StartStore(ctx context.Context) error {
	if err := l.runStore(ctx); err != nil {
		return err
	}
	records, err := l.records()
	if err != nil {
		return err
	}
	return l.withWriter(func(w *store.Writer) error {
		epochs, err := w.List(ctx, store.KindEpoch)
		if err != nil {
			return err
		}
		if len(epochs) == 0 {
			_, err = w.Fill(ctx, records)
		} else {
			_, err = w.Apply(ctx, records)
		}
		return err
	})
}

func (l *Lab) runStore(ctx context.Context) error {
	if running, err := l.process(storeProcess); err == nil {
		return fmt.Errorf("store of lab %s: already runs as process %d", l.Name, running.PID)
	}
	process, err := l.Start(l.Control(), storeProcess, filepath.Join(l.BinDir, "tendril"), "lab", "store",
		"--dir", l.state("store"), "--listen", StoreAddr(), "--publish", PublishAddr(),
		"--cluster", Cluster, "--unix", l.storeSocket())
	if err != nil {
		return err
	}
	err = Wait(ctx, "the store", startPatience, func(ctx context.Context) error {
		if !process.Alive() {
			return errors.New("it has ended")
		}
		return l.withWriter(func(w *store.Writer) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := w.List(ctx, store.KindEpoch)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, process.quoteLog(8))
	}
	return nil
}

// fill writes all records of the operator, which also says that the store is complete.
func (l *Lab) fill(ctx context.Context, records []store.Record) error {
	return l.withWriter(func(w *store.Writer) error {
		_, err := w.Fill(ctx, records)
		return err
	})
}

// StopStore kills the store, as a power cut would.
func (l *Lab) StopStore(ctx context.Context) error {
	process, err := l.process(storeProcess)
	if err != nil {
		return err
	}
	return process.Kill(ctx)
}

// WipeStore loses all of the store's data, starts it empty, and fills it again from what the operator knows.
func (l *Lab) WipeStore(ctx context.Context) error {
	kept, err := l.operatorRecords(ctx)
	if err != nil {
		return err
	}
	if err := l.StopStore(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(l.state("store")); err != nil {
		return fmt.Errorf("wipe store: %w", err)
	}
	if err := l.runStore(ctx); err != nil {
		return err
	}
	return l.fill(ctx, kept)
}

// operatorRecords reads everything that the operator wrote.
func (l *Lab) operatorRecords(ctx context.Context) ([]store.Record, error) {
	var records []store.Record
	err := l.withWriter(func(w *store.Writer) error {
		for _, kind := range store.Filled() {
			some, err := w.List(ctx, kind)
			if err != nil {
				return err
			}
			records = append(records, some...)
		}
		return nil
	})
	return records, err
}

// records translates all pods of the lab. Pods share namespaces and label sets: of equal keys the last record holds.
func (l *Lab) records() ([]store.Record, error) {
	pods, err := l.Pods()
	byKey := map[string]store.Record{}
	for _, pod := range pods {
		for _, record := range pod.records() {
			byKey[record.Key] = record
		}
	}
	return slices.Collect(maps.Values(byKey)), err
}

// records is what the operator writes about a pod: its namespace, its label set, itself.
func (p *Pod) records() []store.Record {
	hash := identity.Of(Cluster, p.Namespace, p.ServiceAccount, label.SetOf(p.Labels))
	record := &storev1.Pod{Uid: p.UID, Labels: hash[:]}
	for _, port := range p.NamedPorts {
		record.NamedPorts = append(record.NamedPorts,
			&storev1.NamedPort{Name: port.Name, Port: uint32(port.Port), Protocol: uint32(port.Protocol)})
	}
	return []store.Record{
		{Key: store.NamespaceKey(p.Namespace).String(), Value: &storev1.Namespace{Labels: p.namespaceLabels()}},
		{Key: store.LabelsKey(hash).String(), Value: &storev1.LabelSet{
			Cluster: Cluster, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount, Labels: p.Labels}},
		{Key: store.PodKey(p.Node, p.Namespace, p.Name).String(), Value: record},
	}
}

// namespaceLabels are the labels of the pod's namespace, with the one that Kubernetes gives every namespace.
func (p *Pod) namespaceLabels() map[string]string {
	labels := map[string]string{"kubernetes.io/metadata.name": p.Namespace}
	maps.Copy(labels, p.NamespaceLabels)
	return labels
}

// Apply applies manifests with the real command line, and waits until every agent enforces them.
func (l *Lab) Apply(ctx context.Context, files ...string) (string, error) {
	out, err := l.CLI(ctx, append([]string{"apply"}, fileFlags(files)...)...)
	if err != nil {
		return out, err
	}
	return out, l.WaitConverged(ctx, 10*time.Second)
}

// Delete takes manifests back.
func (l *Lab) Delete(ctx context.Context, files ...string) (string, error) {
	out, err := l.CLI(ctx, append([]string{"delete"}, fileFlags(files)...)...)
	if err != nil {
		return out, err
	}
	return out, l.WaitConverged(ctx, 10*time.Second)
}

func fileFlags(files []string) []string {
	var flags []string
	for _, file := range files {
		flags = append(flags, "-f", file)
	}
	return flags
}

// SignalStore sends the store a signal; with SIGSTOP it hangs instead of being away.
func (l *Lab) SignalStore(signal syscall.Signal) error {
	process, err := l.process(storeProcess)
	if err != nil {
		return err
	}
	return process.Signal(signal)
}

// Cut pulls a node's cable; Restore puts it back. The part may be control or outside, too.
func (l *Lab) Cut(part string) error { return setPort(l.names, part, false) }

// Flood makes the fabric bring every frame to every port, as a switch does with what it has not learnt; or learn again.
func (l *Lab) Flood(on bool) error { return setLearning(l.names, !on) }

// Restore puts a cable back and waits until it carries packets.
func (l *Lab) Restore(part string) error {
	if err := setPort(l.names, part, true); err != nil {
		return err
	}
	return errors.Join(waitUp(l.names, fabricPart, part, true), waitUp(l.names, part, uplinkName, false))
}
