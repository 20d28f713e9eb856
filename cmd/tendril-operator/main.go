// Command tendril-operator keeps the store equal to a Kubernetes cluster. See the package internal/operator.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"tendril.io/tendril/internal/operator"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "tendril-operator:", err)
		os.Exit(1)
	}
}

// options are what the flags say.
type options struct {
	kubeconfig    string
	namespace     string
	replica       string
	store         []string
	grace         time.Duration
	podPools      []string
	identities    bool
	identityGrace time.Duration
	server        server.Config
	files         store.Files
	authority     string
	life          time.Duration
	spread        time.Duration
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "tendril-operator",
		Short: "Keep the store equal to a Kubernetes cluster",
		Long: `The operator reads the Kubernetes API and writes what agents need to the store. Of several replicas one leads, by a lease.
With --store-dir it is the store as well: an embedded etcd and the Publish service. Each replica has one of its own, on its own node, and serves it
while it leads; the next leader fills its own from the API server, and agents go there. With --store and --authority each replica stands before an
etcd outside: agents read through it, and write through its Publish service.`,
		Example: `  tendril-operator --store-dir /var/lib/tendril-store --listen 10.0.0.1:2379 --publish 10.0.0.1:2380
  tendril-operator --store etcd-1:2379,etcd-2:2379 --authority tendril-authority --listen 10.0.0.1:2379 --publish 10.0.0.1:2380`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return o.run(c.Context()) },
	}
	host, _ := os.Hostname() // without one the flag has no default, and says so
	flags := c.Flags()
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "file that leads to the API server (default: the pod's service account)")
	flags.StringVar(&o.namespace, "namespace", "kube-system", "namespace of the lease")
	flags.StringVar(&o.replica, "replica", host, "name of this replica in the lease")
	flags.StringVar(&o.server.Cluster, "cluster", "default", "name of the cluster in the store; part of every identity")
	flags.StringSliceVar(&o.store, "store", nil, "addresses of an etcd outside, host:port")
	flags.StringVar(&o.server.Dir, "store-dir", "", "folder of this replica's embedded store, which it serves while it leads")
	flags.StringVar(&o.server.ClientAddr, "listen", "127.0.0.1:2379", "where agents read: the embedded store, or with --authority the way to the etcd outside")
	flags.StringVar(&o.files.CA, "store-ca", "", "file with the authorities that vouch for nodes (embedded store) or for the etcd outside; PEM, like the next two")
	flags.StringVar(&o.files.Cert, "store-cert", "", "certificate to show; the embedded store's must be of the address at which agents ask. Without it there is no TLS")
	flags.StringVar(&o.files.Key, "store-key", "", "key of the certificate")
	flags.StringVar(&o.authority, "authority", "", "name of the Secret and ConfigMap of the authority that issues certificates to agents, and to this replica for them; both are there, empty at first")
	flags.DurationVar(&o.life, "certificate-life", 0, "how long a certificate lives that the authority issues (default 24h); agents have the next one issued at half of it or later")
	flags.DurationVar(&o.spread, "authority-spread", 0, "while the authority is replaced: how long the next one is made known before it issues (default 10m); kubelet brings it to agents in about two minutes")
	flags.StringVar(&o.server.PublishAddr, "publish", "127.0.0.1:2380", "where the Publish service listens")
	flags.DurationVar(&o.grace, "node-grace", 0, "how long a node that Kubernetes does not have and that gives no sign of life stays in the store (default 10m)")
	flags.BoolVar(&o.identities, "identities", true, "write an object of the kind Identity for each identity that pods have; if not, those that are there are removed")
	flags.DurationVar(&o.identityGrace, "identity-grace", 0, "how long the object of an identity stays that no pod has any more (default 1m)")
	flags.StringArrayVar(&o.podPools, "pod-pool", nil, "NAME=PREFIX:BITS[,PREFIX:BITS]: gives each node without pod CIDRs a prefix of so many bits; nodes with the annotation\n"+operator.AnnotationPodPool+" from the pool that it names, all others from the one named "+operator.DefaultPodPool)
	c.MarkFlagsOneRequired("store", "store-dir")
	c.MarkFlagsMutuallyExclusive("store", "store-dir")
	c.MarkFlagsRequiredTogether("store-ca", "store-cert", "store-key")
	return c
}

func (o *options) run(ctx context.Context) error {
	// A replica that waits for the lease would else say what is wrong only when it is needed.
	pools, err := o.validate()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("replica", o.replica)
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("way to the API server: %w", err)
	}
	// The client's own default of 5 requests a second is for people. The API server says when it has too many (429), and the
	// client then waits for as long as it is told.
	config.QPS, config.Burst, config.UserAgent = 50, 100, rest.DefaultKubernetesUserAgent()
	liveness := operator.NewLiveness(config, log)
	objects, typed, names, err := clients(config)
	if err != nil {
		return fmt.Errorf("client of the API server: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		liveness.Run(ctx)
		return nil
	})
	o.server.Heard = liveness.Heard
	if err := o.identify(ctx, typed, log, group); err != nil {
		return err
	}
	own := o.server.Dir != ""
	if !own && o.authority != "" { // else agents reach the etcd outside and a Publish service elsewhere
		running, err := server.Serve(ctx, o.server)
		if err != nil {
			return err
		}
		group.Go(running.Wait)
	}
	leading := operator.Config{
		Cluster: o.server.Cluster, Objects: objects, Kinds: typed.Discovery(), Grace: o.grace, PodPools: pools, Logger: log,
		Metadata: names, NoIdentities: !o.identities, IdentityGrace: o.identityGrace,
	}
	election := operator.Election{Client: typed, Namespace: o.namespace, Replica: o.replica, OwnStore: own, Logger: log}
	group.Go(func() error {
		return election.Lead(ctx, func(ctx context.Context, term operator.Term) error {
			log.Info("leading", "term", term.Number)
			if own {
				return o.keep(ctx, term, leading)
			}
			return o.write(ctx, store.WriterConfig{Endpoints: o.store, TLS: o.server.Outside}, leading)
		})
	})
	return group.Wait()
}

// clients share one connection.
func clients(config *rest.Config) (*dynamic.DynamicClient, *kubernetes.Clientset, metadata.Interface, error) {
	shared, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, nil, nil, err
	}
	objects, err := dynamic.NewForConfigAndClient(config, shared)
	if err != nil {
		return nil, nil, nil, err
	}
	names, err := metadata.NewForConfigAndClient(config, shared)
	if err != nil {
		return nil, nil, nil, err
	}
	typed, err := kubernetes.NewForConfigAndClient(config, shared)
	return objects, typed, names, err
}

// What is the least that works.
const (
	leastSpread = 5 * time.Second  // a few readings of the Secret, and a ConfigMap on its way
	leastLife   = 10 * time.Second // agents renew at half of it, over a network
)

// validate reports every mistake at once, by flag.
func (o *options) validate() (pools []operator.PodPool, err error) {
	var problems []error
	bad := func(flag, format string, args ...any) {
		problems = append(problems, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if o.replica == "" {
		bad("replica", "this machine has no name; give one that no other replica has")
	}
	if o.namespace == "" {
		bad("namespace", "give the one in which the operator runs")
	}
	if name := o.server.Cluster; name == "" || strings.Contains(name, "/") {
		bad("cluster", "%q is no name of a cluster: it is a part of keys, between slashes", name)
	}
	if o.grace < 0 {
		bad("node-grace", "%v is less than nothing; leave it out for the default", o.grace)
	}
	if o.identityGrace < 0 {
		bad("identity-grace", "%v is less than nothing; leave it out for the default", o.identityGrace)
	}
	problems = append(problems, o.validateAuthority(), o.validateAddresses())
	named := map[string]bool{}
	for _, text := range o.podPools {
		pool, err := operator.ParsePodPool(text)
		if err != nil {
			problems = append(problems, fmt.Errorf("--pod-pool: %w", err))
			continue
		}
		if named[pool.Name] {
			bad("pod-pool", "there are two of the name %q; give one range a family, and other ranges as pools of other names", pool.Name)
		}
		named[pool.Name] = true
		pools = append(pools, pool)
	}
	return pools, errors.Join(problems...)
}

func (o *options) validateAuthority() error {
	switch {
	case o.authority == "" && (o.life != 0 || o.spread != 0):
		return errors.New("--certificate-life, --authority-spread: they are for certificates that this operator issues; give --authority too")
	case o.authority != "" && o.server.Dir != "" && o.files != (store.Files{}):
		return errors.New("--authority and --store-ca: the embedded store's certificates are issued or come from files; give one of the two")
	case o.spread != 0 && o.spread < leastSpread:
		return fmt.Errorf("--authority-spread: in %v nobody can hear of another authority; give it minutes", o.spread)
	case o.life != 0 && o.life < leastLife:
		return fmt.Errorf("--certificate-life: nobody can renew a certificate that lives for %v; give it hours", o.life)
	}
	return nil
}

func (o *options) validateAddresses() error {
	var problems []error
	check := func(flag, addr string) {
		if _, port, err := net.SplitHostPort(addr); err != nil {
			problems = append(problems, fmt.Errorf("--%s: %q is not host:port", flag, addr))
		} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			problems = append(problems, fmt.Errorf("--%s: %q: %q is not a port from 0 to 65535", flag, addr, port))
		}
	}
	for _, addr := range o.store {
		check("store", addr)
	}
	check("listen", o.server.ClientAddr)
	check("publish", o.server.PublishAddr)
	if o.server.ClientAddr == o.server.PublishAddr && !strings.HasSuffix(o.server.PublishAddr, ":0") {
		problems = append(problems, fmt.Errorf("--publish: %s is where agents read (--listen); give it a port of its own", o.server.PublishAddr))
	}
	return errors.Join(problems...)
}

// keep serves the embedded store, and writes it.
func (o *options) keep(ctx context.Context, term operator.Term, config operator.Config) error {
	group, ctx := errgroup.WithContext(ctx)
	o.server.Term, o.server.Before = term.Number, term.Before
	running, err := server.Serve(ctx, o.server)
	if err != nil {
		return err
	}
	group.Go(running.Wait)
	group.Go(func() error {
		return o.write(ctx, store.WriterConfig{Endpoints: []string{running.AdminEndpoint()}, Term: term.Number}, config)
	})
	return group.Wait()
}

// write keeps a store equal to the cluster.
func (o *options) write(ctx context.Context, to store.WriterConfig, config operator.Config) error {
	to.Cluster, to.Logger = config.Cluster, config.Logger
	writer, err := store.NewWriter(to)
	if err != nil {
		return err
	}
	defer writer.Close()
	config.Store = writer
	return operator.Run(ctx, config)
}

// identify finds out who this process is for agents, and for the etcd outside.
func (o *options) identify(ctx context.Context, client kubernetes.Interface, log *slog.Logger, group *errgroup.Group) (err error) {
	o.server.Logger = log
	switch {
	case o.server.Dir == "":
		o.server.Endpoints, o.server.Outside = o.store, o.files
	case o.files != (store.Files{}):
		o.server.TLS = o.files
	}
	if o.authority != "" {
		o.server.TLS, err = o.issuer(ctx, client, log, group)
	}
	return err
}

// issuer is the authority, which follows its replacements from then on. It waits for an API server that is away, as after a start of the whole
// cluster; what that refuses is for people to put right.
func (o *options) issuer(ctx context.Context, client kubernetes.Interface, log *slog.Logger, group *errgroup.Group) (*server.Authority, error) {
	backoff := store.Backoff{Max: 5 * time.Second}
	kept := operator.Authority{
		Client: client, Namespace: o.namespace, Name: o.authority, Make: server.MakeAuthority, Life: cmp.Or(o.life, server.DefaultLife), Spread: o.spread, Poll: o.spread / 10, Logger: log,
	}
	var keys operator.AuthorityKeys
	for {
		var err error
		if keys, err = kept.Keep(ctx); err == nil {
			break
		}
		if refused := apierrors.APIStatus(nil); errors.As(err, &refused) && refused.Status().Code < http.StatusInternalServerError {
			return nil, err
		}
		log.Warn("the authority cannot be read yet", "error", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(backoff.Next()):
		}
	}
	config := server.AuthorityConfig{
		Cert: keys.Cert, Key: keys.Key, Believed: keys.Believed, Life: o.life, Tokens: operator.Tokens{Client: client, Account: "system:serviceaccount:" + o.namespace + ":" + agentAccount},
	}
	for _, addr := range []string{o.server.ClientAddr, o.server.PublishAddr} {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", addr, err)
		}
		config.Hosts = append(config.Hosts, host)
	}
	issuer, err := server.NewAuthority(config)
	if err != nil {
		return nil, err
	}
	group.Go(func() error {
		kept.Follow(ctx, func(keys operator.AuthorityKeys) error { return issuer.Replace(keys.Cert, keys.Key, keys.Believed) })
		return nil
	})
	return issuer, nil
}

// agentAccount is the service account of agents, as the chart names it.
const agentAccount = "tendril-agent"
