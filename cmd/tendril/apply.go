package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/kube"
	"tendril.io/tendril/internal/lab"
	"tendril.io/tendril/internal/store"
)

// stdinName is how messages call what was read from standard input.
const stdinName = "standard input"

// recordStore is what apply and delete need of the store.
type recordStore interface {
	List(ctx context.Context, kind store.Kind) ([]store.Record, error)
	Apply(ctx context.Context, records []store.Record) (store.Result, error)
}

// manifestFlags are the flags that apply and delete share.
type manifestFlags struct {
	*app
	files          []string
	dryRun         bool
	ignoreNotFound bool
	store          string
	tls            store.Files
	cluster        string
	timeout        time.Duration
}

// outcome says what became of an object; its JSON form is what -o json prints.
type outcome struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	File      string `json:"file"`
	Result    string `json:"result"` // created, configured, unchanged, deleted, not found
	DryRun    bool   `json:"dry_run,omitempty"`
}

// newApplyCommand is `tendril apply`.
func newApplyCommand(a *app) *cobra.Command {
	f := &manifestFlags{app: a}
	cmd := &cobra.Command{
		Use:     "apply -f FILE|DIR|-",
		GroupID: groupApply,
		Short:   "Apply policies, services and other manifests to the cluster",
		Long: `Apply policies, services and other manifests to the cluster.

Everything is checked before anything is written: one mistake, and nothing changes. A policy that needs a proxy is a
mistake, since this version has none. docs/policy.md says what each field of a policy means.

Kinds: ` + kube.KnownKinds() + `.`,
		Example: `  tendril apply -f examples/
  tendril apply -f examples/policy/
  tendril apply -f policy.yaml --dry-run
  kubectl get networkpolicy -A -o yaml | tendril apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, applyRecords) },
	}
	f.add(cmd)
	return cmd
}

// newDeleteCommand is `tendril delete`.
func newDeleteCommand(a *app) *cobra.Command {
	f := &manifestFlags{app: a}
	cmd := &cobra.Command{
		Use:     "delete -f FILE|DIR|-",
		GroupID: groupApply,
		Short:   "Delete from the cluster what manifests describe",
		Example: `  tendril delete -f examples/
  tendril delete -f policy.yaml --ignore-not-found`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, f.deleteRecords) },
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.ignoreNotFound, "ignore-not-found", false, "succeed where an object is not in the cluster")
	return cmd
}

func (f *manifestFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.files, "filename", "f", nil, "file, folder of .yaml, .yml and .json files, or - for standard input; may be repeated")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check everything and say what would change, but write nothing")
	flags.StringVar(&f.store, "store", "", "address of the store, host:port, or unix:// and the store.sock of an operator's folder (default: the store of the lab named by --lab)")
	flags.StringVar(&f.tls.CA, "store-ca", "", "file with the authorities that vouch for the store; PEM, like the next two")
	flags.StringVar(&f.tls.Cert, "store-cert", "", "certificate to show to the store")
	flags.StringVar(&f.tls.Key, "store-key", "", "key of the certificate")
	cmd.MarkFlagsRequiredTogether("store-ca", "store-cert", "store-key")
	flags.StringVar(&f.cluster, "cluster", lab.Cluster, "name of the cluster in the store")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Second, "how long to wait for the store")
	_ = cmd.MarkFlagRequired("filename") // fails only for a flag that is not there
}

// change does what the command is for, to records that are known to be right.
type change func(ctx context.Context, s recordStore, records []kube.Record, dryRun bool) ([]outcome, error)

// run reads and checks all manifests, then opens the store, then changes it.
func (f *manifestFlags) run(cmd *cobra.Command, change change) error {
	stop := whileWaiting(cmd.ErrOrStderr(), "reading "+strings.Join(f.files, ", "))
	objects, err := readManifests(f.files, cmd.InOrStdin())
	records, wrong := kube.Records(objects, f.cluster)
	stop()
	if err = errors.Join(err, wrong); err != nil {
		return fmt.Errorf("nothing was changed:\n%w", err)
	}
	if len(objects) == 0 {
		return fmt.Errorf("no object in %s: nothing was changed", strings.Join(f.files, ", "))
	}
	writer, address, err := f.open()
	if err != nil {
		return err
	}
	defer writer.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	stop = whileWaiting(cmd.ErrOrStderr(), "waiting for store "+address)
	outcomes, err := change(ctx, writer, records, f.dryRun)
	stop()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("store %s did not answer within %s: is it running? name another with --store: %w", address, f.timeout, err)
	}
	return errors.Join(err, f.print(cmd.OutOrStdout(), outcomes))
}

// open connects to the store that the flags mean.
func (f *manifestFlags) open() (*store.Writer, string, error) {
	address := f.store
	if address == "" {
		l, err := lab.Open(f.lab)
		if err != nil {
			return nil, "", fmt.Errorf("%w; or name a store with --store host:port", err)
		}
		address = l.StoreEndpoint()
		if err := l.Close(); err != nil {
			return nil, "", err
		}
	}
	writer, err := store.NewWriter(store.WriterConfig{Endpoints: []string{address}, Cluster: f.cluster, TLS: f.tls})
	if err != nil {
		return nil, "", fmt.Errorf("store %s: %w", address, err)
	}
	return writer, address, nil
}

// readManifests decodes all files; the error holds the mistakes of all of them.
func readManifests(names []string, stdin io.Reader) ([]*kube.Object, error) {
	var objects []*kube.Object
	var errs []error
	for _, name := range names {
		files, err := expand(name)
		errs = append(errs, err)
		for _, file := range files {
			data, err := readFile(file, stdin)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if file == "-" {
				file = stdinName
			}
			more, err := kube.Decode(file, data)
			objects, errs = append(objects, more...), append(errs, err)
		}
	}
	return objects, errors.Join(errs...)
}

// expand turns a folder into its manifests, in the order of their names; folders in it are left alone.
func expand(name string) ([]string, error) {
	info, err := os.Stat(name)
	if name == "-" || err != nil || !info.IsDir() {
		return []string{name}, nil // reading it reports what is wrong
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		isManifest := slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(entry.Name()))
		if isManifest && !entry.IsDir() {
			files = append(files, filepath.Join(name, entry.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("folder %s: has no .yaml, .yml or .json file", name)
	}
	return files, nil
}

func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	data, err := os.ReadFile(name)
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return nil, fmt.Errorf("file %s: %w", name, pathError.Err)
	}
	return data, err
}

// applyRecords writes the records and says what became of each object.
func applyRecords(ctx context.Context, s recordStore, records []kube.Record, dryRun bool) ([]outcome, error) {
	present, err := current(ctx, s, records)
	if err != nil {
		return nil, err
	}
	var writes []store.Record
	results := map[*kube.Object]string{}
	for _, record := range records {
		writes = append(writes, store.Record{Key: record.Key, Value: record.Value})
		results[record.Object] = strongest(results[record.Object], compare(present[record.Key], record))
	}
	if err := tooLarge(records); err != nil {
		return nil, err
	}
	if !dryRun {
		if _, err := s.Apply(ctx, writes); err != nil {
			return nil, err
		}
	}
	return outcomesOf(records, results, dryRun), nil
}

// maxRecord bounds one record, in bytes: etcd takes requests of 1.5 MiB unless told otherwise, and a request holds names and
// conditions besides.
const maxRecord = 1 << 20

// tooLarge names every object that the store would not take, before it is asked.
func tooLarge(records []kube.Record) error {
	var errs []error
	for _, record := range records {
		if size := proto.Size(record.Value); size > maxRecord {
			errs = append(errs, fmt.Errorf("%s: needs %d bytes in the store, which takes %d an object: nothing was changed; split it into several",
				record.Object, size, maxRecord))
		}
	}
	return errors.Join(errs...)
}

// deleteRecords removes the records; label sets stay, since other pods may have the same.
func (f *manifestFlags) deleteRecords(ctx context.Context, s recordStore, records []kube.Record, dryRun bool) ([]outcome, error) {
	records = slices.DeleteFunc(records, func(r kube.Record) bool { return r.Shared })
	present, err := current(ctx, s, records)
	if err != nil {
		return nil, err
	}
	var writes []store.Record
	results := map[*kube.Object]string{}
	var missing []error
	for _, record := range records {
		if present[record.Key] == nil {
			results[record.Object] = "not found"
			missing = append(missing, fmt.Errorf("%s: not in cluster %s; give --ignore-not-found if that is fine", record.Object, f.cluster))
			continue
		}
		results[record.Object] = "deleted"
		writes = append(writes, store.Record{Key: record.Key})
	}
	if !dryRun && len(writes) > 0 {
		if _, err := s.Apply(ctx, writes); err != nil {
			return nil, err
		}
	}
	if f.ignoreNotFound {
		missing = nil
	}
	return outcomesOf(records, results, dryRun), errors.Join(missing...)
}

// current reads what the store holds under the kinds of the records.
func current(ctx context.Context, s recordStore, records []kube.Record) (map[string]proto.Message, error) {
	present := map[string]proto.Message{}
	read := map[store.Kind]bool{}
	for _, record := range records {
		key, err := store.ParseKey(record.Key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", record.Object, err)
		}
		if read[key.Kind] {
			continue
		}
		read[key.Kind] = true
		have, err := s.List(ctx, key.Kind)
		if err != nil {
			return nil, err
		}
		for _, record := range have {
			present[record.Key] = record.Value
		}
	}
	return present, nil
}

// compare says what writing the record would do.
func compare(have proto.Message, want kube.Record) string {
	if have == nil {
		return "created"
	}
	if proto.Equal(have, withStoresOwn(have, want.Value)) {
		return "unchanged"
	}
	return "configured"
}

// withStoresOwn is a wanted record with what is the store's to say and not the author's: a policy's revision, and what a
// service was given by pools.
func withStoresOwn(have, want proto.Message) proto.Message {
	want = proto.Clone(want)
	switch have := have.(type) {
	case *storev1.Policy:
		want.(*storev1.Policy).Revision = have.GetRevision()
	case *storev1.Service:
		if asks := want.(*storev1.Service).GetLoadBalancer(); asks != nil {
			asks.Grants, asks.Shortfalls = have.GetLoadBalancer().GetGrants(), have.GetLoadBalancer().GetShortfalls()
		}
	}
	return want
}

// strongest is the result of an object of several records: a label set that is there already does not make its pod so.
func strongest(a, b string) string {
	order := []string{"", "unchanged", "created", "configured"}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

// outcomesOf lists the objects of the records once each, in their order.
func outcomesOf(records []kube.Record, results map[*kube.Object]string, dryRun bool) []outcome {
	var outcomes []outcome
	for _, record := range records {
		o := record.Object
		result, ok := results[o]
		if !ok {
			continue
		}
		delete(results, o)
		outcomes = append(outcomes, outcome{o.Kind, o.Namespace, o.Name, o.File, result, dryRun})
	}
	return outcomes
}

// print writes a line for each object, or one JSON list.
func (f *manifestFlags) print(w io.Writer, outcomes []outcome) error {
	if f.json() {
		return printJSON(w, slices.Concat([]outcome{}, outcomes))
	}
	for _, o := range outcomes {
		name := strings.TrimPrefix(o.Namespace+"/"+o.Name, "/")
		suffix := ""
		if o.DryRun {
			suffix = " (dry run)"
		}
		if _, err := fmt.Fprintf(w, "%s %s %s%s\n", o.Kind, name, o.Result, suffix); err != nil {
			return err
		}
	}
	return nil
}
