package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
	"tendril.io/tendril/internal/table"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	life time.Duration // of what it signs
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, life: time.Hour}
	a.cert, a.key = a.sign("authority", nil)
	return a
}

// sign makes a certificate of a name; the authority's own if parent is nil.
func (a *authority) sign(name string, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	var addresses []net.IP
	if addr := net.ParseIP(name); addr != nil {
		addresses = []net.IP{addr}
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		IPAddresses: addresses, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(a.life), IsCA: parent == nil,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// files writes one side's identity under a name.
func (a *authority) files(name string) store.Files {
	a.t.Helper()
	cert, key := a.sign(name, a.cert)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	write := func(file, kind string, der []byte) string {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			a.t.Fatal(err)
		}
		return path
	}
	return store.Files{CA: write("ca", "CERTIFICATE", a.cert.Raw), Cert: write("cert", "CERTIFICATE", cert.Raw), Key: write("key", "PRIVATE KEY", der)}
}

// serveTLS runs a store with the certificate of its address.
func serveTLS(t *testing.T, a *authority) *server.Server {
	t.Helper()
	return serveAs(t, a.files("127.0.0.1"))
}

func serveAs(t *testing.T, identity store.Identity) *server.Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "store") // the path of a unix socket is short
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	running, err := server.Serve(ctx, server.Config{
		Dir: dir, ClientAddr: "127.0.0.1:0", PublishAddr: "127.0.0.1:0", Cluster: cluster, TLS: identity,
		Heard: func() time.Time { return time.Now().Add(-time.Hour) },
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(running.Wait(), os.RemoveAll(dir)); err != nil {
			t.Errorf("store ended: %v", err)
		}
	})
	return running
}

func TestWhoHasACertificateIsToldWhenTheSourceWasHeard(t *testing.T) {
	a := newAuthority(t)
	running := serveTLS(t, a)
	ask := func(publish storev1.PublishClient, node string) (*storev1.SourceResponse, error) {
		return publish.Source(t.Context(), &storev1.SourceRequest{Node: node})
	}
	conn := dial(t, running.PublishAddr(), store.NewCredentials(a.files("n0")))
	defer conn.Close()
	publish := storev1.NewPublishClient(conn)
	if got, err := ask(publish, "n0"); err != nil || time.Duration(got.GetSilentMs())*time.Millisecond < time.Hour {
		t.Errorf("got %v, %v; want an hour", got, err)
	}
	if _, err := ask(publish, "n1"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("in the name of another: got %v", err)
	}
	if got, err := ask(serve(t).publish, "n0"); err != nil || got.SilentMs != nil {
		t.Errorf("of a store that is filled from elsewhere: got %v, %v", got, err)
	}
}

func TestOverTLSANodeIsWhatItsCertificateSays(t *testing.T) {
	a := newAuthority(t)
	running := serveTLS(t, a)
	put := func(creds credentials.TransportCredentials, node string) error {
		conn := dial(t, running.PublishAddr(), creds)
		defer conn.Close()
		_, err := storev1.NewPublishClient(conn).Put(t.Context(), &storev1.PutRequest{
			Node: node, Writes: []*storev1.Write{write("acks/"+node, nil)},
		})
		return err
	}
	own := store.NewCredentials(a.files("n1"))
	if err := put(own, "n1"); err != nil {
		t.Errorf("its own name: %v", err)
	}
	if err := put(own, "n2"); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `the certificate is of "n1"`) {
		t.Errorf("another's name: got %v, want a refusal", err)
	}
	stranger := newAuthority(t).files("n1")
	if err := put(store.NewCredentials(stranger), "n1"); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a store of another authority: got %v, want no connection", err)
	}
	// It believes the store, but the store not it.
	stranger.CA = a.files("n1").CA
	if err := put(store.NewCredentials(stranger), "n1"); status.Code(err) != codes.Unavailable {
		t.Errorf("a certificate of another authority: got %v, want no connection", err)
	}
	if err := put(insecure.NewCredentials(), "n1"); status.Code(err) != codes.Unavailable {
		t.Errorf("plaintext: got %v, want no connection", err)
	}
}

func TestAConnectionEndsWithItsCertificateAndGoesOnWithTheNextOne(t *testing.T) {
	a := newAuthority(t)
	running := serveTLS(t, a)
	a.life = 2 * time.Second
	files := a.files("n1")
	conn := dial(t, running.PublishAddr(), store.NewCredentials(files))
	defer conn.Close()
	put := func() error {
		_, err := storev1.NewPublishClient(conn).Put(t.Context(), &storev1.PutRequest{Node: "n1", Writes: []*storev1.Write{write("acks/n1", nil)}})
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond)
	// The first may meet the old connection while it closes; the next ones ask for another.
	await(t, "the expired certificate is named", func() bool {
		err := put()
		if status.Code(err) != codes.Unavailable {
			t.Fatalf("with an expired certificate: got %v, want no connection", err)
		}
		return strings.Contains(err.Error(), "expired certificate")
	})
	a.life = time.Hour
	next := a.files("n1")
	if err := errors.Join(os.Rename(next.Cert, files.Cert), os.Rename(next.Key, files.Key)); err != nil {
		t.Fatal(err)
	}
	await(t, "it goes on with the next certificate", func() bool { return put() == nil })
}

func TestOverTLSNodesReadTheStoreAndOnlyRootsSocketWritesIt(t *testing.T) {
	a := newAuthority(t)
	running := serveTLS(t, a)
	client := func(endpoint string, options ...grpc.DialOption) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{
			Endpoints: []string{endpoint}, DialOptions: options, Logger: store.EtcdLogger(slog.New(slog.DiscardHandler)), MaxUnaryRetries: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	key := store.Prefix(cluster) + "k"
	root := client(running.AdminEndpoint())
	if _, err := root.Put(t.Context(), key, "v"); err != nil {
		t.Fatalf("root writes: %v", err)
	}
	node := client(running.ClientAddr(), grpc.WithTransportCredentials(store.NewCredentials(a.files("n1"))))
	if got, err := node.Get(t.Context(), key); err != nil || len(got.Kvs) != 1 {
		t.Fatalf("a node reads: %v, %v", got, err)
	}
	if _, err := node.Txn(t.Context()).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet(key)}, nil)).Commit(); err != nil {
		t.Errorf("a node reads in a transaction: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if event := <-node.Watch(ctx, key, clientv3.WithRev(1)); len(event.Events) != 1 {
		t.Errorf("a node watches: got %v", event)
	}
	for name, do := range map[string]func() error{
		"put":         func() error { _, err := node.Put(ctx, key, "x"); return err },
		"delete":      func() error { _, err := node.Delete(ctx, key); return err },
		"transaction": func() error { _, err := node.Txn(ctx).Else(clientv3.OpPut(key, "x")).Commit(); return err },
		"nested": func() error {
			_, err := node.Txn(ctx).Then(clientv3.OpTxn(nil, nil, []clientv3.Op{clientv3.OpDelete(key)})).Commit()
			return err
		},
		"compact": func() error { _, err := node.Compact(ctx, 2); return err },
		"lease":   func() error { _, err := node.Grant(ctx, 10); return err },
		"user":    func() error { _, err := node.UserAdd(ctx, "u", "p"); return err },
		"member":  func() error { _, err := node.MemberList(ctx); return err },
		"snapshot": func() error {
			r, err := node.Snapshot(ctx)
			if err == nil {
				_, err = r.Read(make([]byte, 1))
			}
			return err
		},
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "can only be read") {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
	if got, err := root.Get(t.Context(), key); err != nil || string(got.Kvs[0].Value) != "v" {
		t.Errorf("the store has %v, %v", got, err)
	}
	if _, err := client(running.ClientAddr()).Get(ctx, key); err == nil {
		t.Error("somebody without a certificate reads")
	}
}

func TestAnAgentReadsPublishesAndProbesOverTLSAndSaysUntilWhen(t *testing.T) {
	a := newAuthority(t)
	running := serveTLS(t, a)
	writer, err := store.NewWriter(store.WriterConfig{Endpoints: []string{running.AdminEndpoint()}, Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, err := writer.Fill(t.Context(), []store.Record{{Key: "namespaces/shop", Value: &storev1.Namespace{}}}); err != nil {
		t.Fatal(err)
	}
	client, tables := runAgent(t, running, a.files("n1"))
	select {
	case <-client.Synced():
	case <-time.After(15 * time.Second):
		t.Fatalf("not complete: %+v", client.Status())
	}
	if n := tables.Namespaces.NumObjects(tables.DB.ReadTxn()); n != 1 {
		t.Errorf("%d namespaces, want the one", n)
	}
	if err := client.Probe(t.Context()); err != nil {
		t.Errorf("probe: %v", err)
	}
	got := client.Status()
	if left := time.Until(got.CertificateUntil); left < 50*time.Minute || left > time.Hour || len(got.Problems) > 0 {
		t.Errorf("certificate until %v, problems %v", got.CertificateUntil, got.Problems)
	}
}

// runAgent is node n1's client until the test ends.
func runAgent(t *testing.T, running *server.Server, files store.Files) (*store.Client, *table.Tables) {
	t.Helper()
	return runConfig(t, store.Config{
		Endpoints: []string{running.ClientAddr()}, Publish: []string{running.PublishAddr()}, Cluster: cluster, Node: "n1",
		JournalPath: filepath.Join(t.TempDir(), "journal"), TLS: files,
	})
}

func runConfig(t *testing.T, config store.Config) (*store.Client, *table.Tables) {
	t.Helper()
	client, err := store.Dial(config)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx, tables) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, client.Close()); err != nil {
			t.Errorf("agent ended: %v", err)
		}
	})
	return client, tables
}

func TestStatusSaysWhatIsWrongWithACertificate(t *testing.T) {
	a := newAuthority(t)
	running := serveTLS(t, a)
	good, foreign := a.files("n1"), newAuthority(t).files("n1")
	a.life = -time.Minute
	missing := good
	missing.Cert = filepath.Join(t.TempDir(), "none")
	for want, files := range map[string]store.Files{
		`of "n1" has expired at`:                a.files("n1"),
		`is of "n2", and this node is "n1"`:     newAuthority(t).files("n2"),
		`is of an unknown authority`:            {CA: good.CA, Cert: foreign.Cert, Key: foreign.Key},
		"none: no such file":                    missing,
		"private key does not match public key": {CA: good.CA, Cert: good.Cert, Key: foreign.Key},
	} {
		client, _ := runAgent(t, running, files)
		problems := client.Status().Problems
		if len(problems) != 1 || problems[0].Object != "certificate" || !strings.Contains(problems[0].Message, want) || problems[0].Remedy == "" {
			t.Errorf("got %v, want %q", problems, want)
		}
	}
	_, err := store.Dial(store.Config{Endpoints: []string{"a:1"}, Publish: []string{"a:1"}, Cluster: cluster, Node: "n1", JournalPath: "j", TLS: store.Files{CA: "ca"}})
	if err == nil || !strings.Contains(err.Error(), "name all three") {
		t.Errorf("a CA alone: got %v", err)
	}
}
