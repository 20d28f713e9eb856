package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"tendril.io/tendril/api/tendril"
	"tendril.io/tendril/internal/kube"
)

// sysdump is what `tendril sysdump` is asked, and what it has collected.
type sysdump struct {
	*app
	kubeconfig string
	namespace  string
	file       string
	nodes      []string
	lines      int64

	mu     sync.Mutex
	files  map[string][]byte // by name
	failed []string          // what could not be read, and why
}

// mostNodes is how many agents are asked where nobody says which: one is about a megabyte.
const mostNodes = 32

// newSysdumpCommand collects a cluster's state for somebody who is not there.
func newSysdumpCommand(a *app) *cobra.Command {
	s := &sysdump{app: a, files: map[string][]byte{}}
	cmd := &cobra.Command{
		Use:     "sysdump",
		GroupID: groupSee,
		Short:   "Collect what there is to know of a Kubernetes cluster into one file, for somebody who helps",
		Long: `Collect what there is to know of a Kubernetes cluster into one file, for somebody who helps: the cluster's status; the objects that tendril consists of
and those that it reads (nodes, namespaces, services, endpoint slices, policies) or writes (identities); events and logs of its pods; and what each agent says of itself,
its pods, addresses, services, policies, counters and last flows.

No Secret is read, and of pods only those of tendril itself; names, labels, addresses and policies of the cluster are in the file. What
cannot be read is named in errors.txt, and the rest is collected all the same.`,
		Example: `  tendril sysdump
  tendril sysdump --kubeconfig admin.kubeconfig --nodes n1,n2 --file /tmp/dump.tar.gz`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "file that leads to the cluster's API server (default: $KUBECONFIG, else ~/.kube/config)")
	flags.StringVar(&s.namespace, "namespace", "kube-system", "namespace of agents and operator")
	flags.StringVar(&s.file, "file", "", "file to write, a tar archive with gzip (default: tendril-sysdump-TIME.tar.gz here)")
	flags.StringSliceVar(&s.nodes, "nodes", nil, fmt.Sprintf("nodes whose agents are asked (default: up to %d, first those that are not ready)", mostNodes))
	flags.Int64Var(&s.lines, "lines", 5000, "how many last lines of each log")
	return cmd
}

func (s *sysdump) run(cmd *cobra.Command) error {
	c, err := dialCluster(s.kubeconfig)
	if err != nil {
		return err
	}
	name := "tendril-sysdump-" + time.Now().UTC().Format("20060102T150405Z")
	s.file = cmp.Or(s.file, name+".tar.gz")
	// Only its owner may read it. That it can be written is known before anybody waits.
	file, err := os.OpenFile(s.file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("flag --file: %w", err)
	}
	defer file.Close()
	if err := s.collect(cmd.Context(), c, newProgress(cmd.ErrOrStderr())); err != nil {
		_ = os.Remove(s.file)
		return err
	}
	if err := s.write(file, name); err != nil {
		return fmt.Errorf("write %s: %w", s.file, err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("write %s: %w", s.file, err)
	}
	return s.report(cmd.OutOrStdout())
}

// report says what was written.
func (s *sysdump) report(out io.Writer) error {
	if s.json() {
		return printJSON(out, map[string]any{"file": s.file, "files": len(s.files), "failed": append([]string{}, s.failed...)})
	}
	fmt.Fprintf(out, "written %s: %d files\n", s.file, len(s.files))
	for _, failed := range s.failed {
		fmt.Fprintf(out, "  could not be read: %s\n", failed)
	}
	return nil
}

// partOfTendril selects what the chart makes.
const partOfTendril = "app.kubernetes.io/part-of=tendril"

// collect asks for everything. It fails only where tendril's own pods cannot be listed.
func (s *sysdump) collect(ctx context.Context, c *cluster, told *progress) error {
	told.say("the cluster's status")
	pods, err := listAs[corev1.Pod](ctx, c, corev1.SchemeGroupVersion.WithKind("Pod"), s.namespace, metav1.ListOptions{LabelSelector: partOfTendril})
	if err != nil {
		return err
	}
	status, err := c.status(ctx, s.namespace)
	s.addStatus(status, err)
	told.say("objects")
	for _, want := range dumpedObjects(s.namespace) {
		s.addObjects(ctx, c, want)
	}
	told.say("logs, and what agents say")
	s.askPods(ctx, c, s.chosen(pods, status))
	told.end()
	return ctx.Err()
}

// addStatus adds what `tendril status` shows, for people and for programs.
func (s *sysdump) addStatus(status *clusterStatus, err error) {
	if err != nil {
		s.add("status", nil, err)
		return
	}
	for name, asJSON := range map[string]bool{"status": false, "status.json": true} {
		var text bytes.Buffer
		err := showCluster(newView(&text), status, time.Now(), asJSON)
		s.add(name, text.Bytes(), err)
	}
}

// dumpedKind is a kind of objects, and where they are.
type dumpedKind struct {
	schema.GroupVersionKind
	namespace string
	selector  string
}

func dumpedObjects(namespace string) []dumpedKind {
	kind := func(group, version, kind string) schema.GroupVersionKind {
		return schema.GroupVersionKind{Group: group, Version: version, Kind: kind}
	}
	all := []dumpedKind{
		{kind("apps", "v1", "DaemonSet"), namespace, partOfTendril},
		{kind("apps", "v1", "Deployment"), namespace, partOfTendril},
		{kind("", "v1", "ConfigMap"), namespace, partOfTendril},
		{kind("", "v1", "Pod"), namespace, partOfTendril},
		{kind("coordination.k8s.io", "v1", "Lease"), namespace, ""},
		{kind("", "v1", "Event"), namespace, ""},
		{GroupVersionKind: schema.FromAPIVersionAndKind(tendril.APIVersion, tendril.KindIdentity)},
	}
	for _, read := range kube.Kinds() {
		if read.Kind != "Pod" { // all pods of the cluster say more of others than anybody needs
			all = append(all, dumpedKind{GroupVersionKind: read})
		}
	}
	return all
}

// addObjects adds all objects of a kind in one file. A kind that the API server does not know has none.
func (s *sysdump) addObjects(ctx context.Context, c *cluster, want dumpedKind) {
	list, err := c.list(ctx, want.GroupVersionKind, want.namespace, metav1.ListOptions{LabelSelector: want.selector})
	if apierrors.IsNotFound(err) {
		return
	}
	var text []byte
	for i := range list {
		list[i].SetManagedFields(nil)
		part, failed := yaml.Marshal(list[i].Object)
		err = cmp.Or(err, failed)
		text = append(append(text, "---\n"...), part...)
	}
	if len(list) > 0 || err != nil { // a kind of several versions is the same objects again
		s.add(path.Join("objects", strings.Trim(want.Kind+"."+want.Group, ".")+".yaml"), text, err)
	}
}

// chosen leaves out agents that are not to be asked.
func (s *sysdump) chosen(pods []corev1.Pod, status *clusterStatus) []corev1.Pod {
	wanted := s.nodes
	if len(wanted) == 0 && status != nil {
		members := slices.Clone(status.Nodes)
		slices.SortStableFunc(members, func(a, b memberStatus) int {
			switch {
			case a.Ready == b.Ready:
				return 0
			case b.Ready:
				return -1
			}
			return 1
		})
		for _, member := range members[:min(len(members), mostNodes)] {
			wanted = append(wanted, member.Name)
		}
		if left := len(members) - mostNodes; left > 0 {
			s.failed = append(s.failed, fmt.Sprintf("agents of %d more nodes were not asked: name nodes with --nodes", left))
		}
	}
	for _, name := range s.nodes {
		if !slices.ContainsFunc(pods, func(pod corev1.Pod) bool { return isAgent(&pod) && pod.Spec.NodeName == name }) {
			s.failed = append(s.failed, fmt.Sprintf("node %s: it has no agent's pod", name))
		}
	}
	return slices.DeleteFunc(slices.Clone(pods), func(pod corev1.Pod) bool {
		return isAgent(&pod) && len(wanted) > 0 && !slices.Contains(wanted, pod.Spec.NodeName)
	})
}

func isAgent(pod *corev1.Pod) bool { return pod.Labels["app.kubernetes.io/name"] == agentName }

// agentQuestions are asked of every agent, by its own command line.
var agentQuestions = []string{
	"status", "status -o json", "endpoint list", "ipam list", "service list", "policy list", "egress list", "db list", "db show configuration",
	"bpf counters", "bpf template list", "observe --last 1000",
}

// askPods reads logs, and asks agents.
func (s *sysdump) askPods(ctx context.Context, c *cluster, pods []corev1.Pod) {
	var group errgroup.Group
	group.SetLimit(asksAtOnce)
	for i := range pods {
		pod := &pods[i]
		group.Go(func() error {
			s.addLogs(ctx, c, pod)
			if !isAgent(pod) || whyNotRunning(pod) != "" {
				return nil
			}
			for _, question := range agentQuestions {
				ctx, cancel := context.WithTimeout(ctx, askTimeout)
				text, err := c.inAgent(ctx, pod.Namespace, pod.Name, append([]string{"--socket", defaultSocket}, strings.Fields(question)...)...)
				cancel()
				s.add(path.Join("agents", pod.Spec.NodeName, strings.ReplaceAll(question, " ", "_")), text, err)
			}
			return nil
		})
	}
	_ = group.Wait() // each file has its own error
}

// addLogs adds the last lines of each container, and of the one before it where that ended.
func (s *sysdump) addLogs(ctx context.Context, c *cluster, pod *corev1.Pod) {
	for _, of := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		name := path.Join("logs", pod.Name, of.Name)
		if of.State.Running != nil || of.State.Terminated != nil {
			text, err := c.logs(ctx, container{pod.Namespace, pod.Name, of.Name}, s.lines, false)
			s.add(name, text, err)
		}
		if of.RestartCount > 0 {
			text, err := c.logs(ctx, container{pod.Namespace, pod.Name, of.Name}, s.lines, true)
			s.add(name+".previous", text, err)
		}
	}
}

// add keeps a file, or why there is none.
func (s *sysdump) add(name string, text []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed = append(s.failed, fmt.Sprintf("%s: %v", name, err))
		return
	}
	s.files[name] = text
}

// write makes the archive, in which all files are in one folder.
func (s *sysdump) write(out io.Writer, folder string) error {
	slices.Sort(s.failed)
	if len(s.failed) > 0 {
		s.files["errors.txt"] = []byte(strings.Join(s.failed, "\n") + "\n")
	}
	compressed := gzip.NewWriter(out)
	archive := tar.NewWriter(compressed)
	names := make([]string, 0, len(s.files))
	for name := range s.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		header := &tar.Header{Name: path.Join(folder, name), Mode: 0o600, Size: int64(len(s.files[name])), ModTime: time.Now()}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(s.files[name]); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return compressed.Close()
}
