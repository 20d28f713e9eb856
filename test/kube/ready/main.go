// Command ready times pods: it creates many at once on one node and then on another, in turns, and sees by a watch when each is Ready. It prints one
// JSON object: the median of the rounds' medians, in milliseconds, by node.
//
//	ready KUBECONFIG PODS ROUNDS NODE...
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ready:", err)
		os.Exit(1)
	}
}

const (
	namespace = "default"
	patience  = 3 * time.Minute // for a round
)

func run(ctx context.Context, args []string) error {
	if len(args) < 4 {
		return fmt.Errorf("usage: ready KUBECONFIG PODS ROUNDS NODE...")
	}
	config, err := clientcmd.BuildConfigFromFlags("", args[0])
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 1000, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	nodes, medians := args[3:], map[string][]float64{}
	for round := range rounds {
		for i := range nodes { // who is first takes turns
			node := nodes[(i+round)%len(nodes)]
			took, err := one(ctx, client, node, count)
			if err != nil {
				return fmt.Errorf("round %d on %s: %w", round+1, node, err)
			}
			fmt.Fprintf(os.Stderr, "%s: half of %d pods ready after %.0f ms, the last after %.0f\n", node, count, median(took), slices.Max(took))
			medians[node] = append(medians[node], median(took))
		}
	}
	result := map[string]float64{}
	for node, all := range medians {
		result[node] = median(all)
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// one creates pods, waits until they are ready, and takes them away. It returns how long each took, in milliseconds.
func one(ctx context.Context, client kubernetes.Interface, node string, count int) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pods := client.CoreV1().Pods(namespace)
	list := metav1.ListOptions{LabelSelector: "timed=" + node}
	events, err := pods.Watch(ctx, list)
	if err != nil {
		return nil, err
	}
	defer events.Stop()
	created := make([]time.Time, count)
	failures := make([]error, count)
	var group sync.WaitGroup
	for i := range count {
		group.Go(func() {
			created[i] = time.Now()
			_, failures[i] = pods.Create(ctx, pod(node, i), metav1.CreateOptions{})
		})
	}
	ready := map[string]time.Time{}
	for len(ready) < count {
		select {
		case event, open := <-events.ResultChan():
			if !open {
				return nil, fmt.Errorf("the watch ended with %d of %d pods ready", len(ready), count)
			}
			seen, ok := event.Object.(*corev1.Pod)
			if ok && isReady(seen) && ready[seen.Name].IsZero() {
				ready[seen.Name] = time.Now()
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d pods ready: %w", len(ready), count, ctx.Err())
		}
	}
	group.Wait()
	took := make([]float64, count)
	for i := range count {
		if failures[i] != nil {
			return nil, failures[i]
		}
		took[i] = float64(ready[pod(node, i).Name].Sub(created[i]).Microseconds()) / 1e3
	}
	return took, remove(ctx, client, list)
}

func pod(node string, i int) *corev1.Pod {
	none, grace := false, int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("timed-%s-%d", node, i), Labels: map[string]string{"timed": node}},
		Spec: corev1.PodSpec{
			NodeName: node, AutomountServiceAccountToken: &none, EnableServiceLinks: &none, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "probe", Image: "tendril.test/probe:1", ImagePullPolicy: corev1.PullNever}},
		},
	}
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// remove deletes the pods and waits until they are gone, so that the next round finds an idle node.
func remove(ctx context.Context, client kubernetes.Interface, list metav1.ListOptions) error {
	pods := client.CoreV1().Pods(namespace)
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, list); err != nil {
		return err
	}
	for {
		left, err := pods.List(ctx, list)
		if err != nil || len(left.Items) == 0 {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d pods are not gone: %w", len(left.Items), ctx.Err())
		}
	}
}
