package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

func write(key string, value []byte) *storev1.Write { return &storev1.Write{Key: key, Value: value} }

func remove(key string) *storev1.Write { return &storev1.Write{Key: key, Remove: true} }

func TestPublishTakesANodesOwnKeysAndRefusesAllOthers(t *testing.T) {
	w := newWorld(t)
	w.fill()
	conn, err := dialPublish(w.publishAddr, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := storev1.NewPublishClient(conn)
	address, self := value(t, ip("web")), value(t, node("192.0.2.1"))
	tooMany := make([]*storev1.Write, maxWrites+1)
	for i := range tooMany {
		tooMany[i] = write("acks/n1", nil)
	}
	epoch, err := w.writer().ensureEpoch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what   string
		node   string
		writes []*storev1.Write
		want   codes.Code
		says   string
	}{
		{"its address", "n1", []*storev1.Write{write("ips/n1/10.0.0.1", address)}, codes.OK, ""},
		{"several at once", "n1", []*storev1.Write{write("nodes/n1", self), remove("ips/n1/10.0.0.1"), write("acks/n1", nil)}, codes.OK, ""},
		{"its marker", "n1", []*storev1.Write{write("synced/"+epoch+"/ips/n1", nil)}, codes.OK, ""},
		{"the marker of another epoch", "n1", []*storev1.Write{write("synced/other/ips/n1", nil)}, codes.FailedPrecondition, "epoch"},
		{"another node's address", "n1", []*storev1.Write{write("ips/n2/10.0.0.1", address)}, codes.PermissionDenied, `key "ips/n2/10.0.0.1"`},
		{"another node's removal", "n1", []*storev1.Write{remove("nodes/n2")}, codes.PermissionDenied, `key "nodes/n2"`},
		{"another node's marker", "n1", []*storev1.Write{write("synced/"+epoch+"/ips/n2", nil)}, codes.PermissionDenied, "n2"},
		{"a kind's marker", "n1", []*storev1.Write{write("synced/"+epoch+"/pods", nil)}, codes.PermissionDenied, "synced/"},
		{"a node whose name begins alike", "n1", []*storev1.Write{write("nodes/n10", self)}, codes.PermissionDenied, "nodes/n10"},
		{"a pod on itself", "n1", []*storev1.Write{write("pods/n1/default/web", nil)}, codes.PermissionDenied, "pods/n1/default/web"},
		{"the epoch", "n1", []*storev1.Write{remove("epoch")}, codes.PermissionDenied, "epoch"},
		{"a policy", "n1", []*storev1.Write{write("policies/NetworkPolicy/a/b", nil)}, codes.PermissionDenied, "policies/"},
		{"one foreign key among its own", "n1", []*storev1.Write{write("acks/n1", []byte{8, 1}), write("acks/n2", nil)}, codes.PermissionDenied, "acks/n2"},
		{"no name", "", []*storev1.Write{write("acks/n1", nil)}, codes.PermissionDenied, "empty"},
		{"a key that is none", "n1", []*storev1.Write{write("ips/n1/10.0.0.01", address)}, codes.InvalidArgument, "10.0.0.01"},
		{"a value that is none", "n1", []*storev1.Write{write("nodes/n1", []byte{0xff})}, codes.InvalidArgument, "nodes/n1"},
		{"a node with a bad address", "n1", []*storev1.Write{write("nodes/n1", []byte{10, 3, 1, 2, 3})}, codes.InvalidArgument, "3 bytes"},
		{"a large value", "n1", []*storev1.Write{write("nodes/n1", make([]byte, maxValue+1))}, codes.InvalidArgument, "the limit"},
		{"a key twice", "n1", []*storev1.Write{write("acks/n1", nil), remove("acks/n1")}, codes.InvalidArgument, "twice"},
		{"nothing", "n1", nil, codes.InvalidArgument, "want 1 to 128"},
		{"too much", "n1", tooMany, codes.InvalidArgument, "want 1 to 128"},
	} {
		before := revision(t, w)
		_, err := client.Put(t.Context(), &storev1.PutRequest{Node: test.node, Writes: test.writes})
		if got := status.Code(err); got != test.want || !strings.Contains(status.Convert(err).Message(), test.says) {
			t.Errorf("%s: got %v, want %v and %q", test.what, err, test.want, test.says)
		}
		if changed := revision(t, w) != before; changed != (test.want == codes.OK) {
			t.Errorf("%s: the store changed: %t", test.what, changed)
		}
	}
}

func revision(t *testing.T, w *world) int64 {
	t.Helper()
	r, err := w.raw().Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

func TestPublishKeepsFieldsThatItDoesNotKnow(t *testing.T) {
	w := newWorld(t)
	w.fill()
	newer := protowire.AppendTag(value(t, ip("web")), 100, protowire.BytesType)
	newer = protowire.AppendString(newer, "from the future")
	s := &publishServer{client: w.raw(), prefix: clusterPrefix(cluster)}
	if _, err := s.Put(t.Context(), &storev1.PutRequest{Node: "n1", Writes: []*storev1.Write{write("ips/n1/10.0.0.1", newer)}}); err != nil {
		t.Fatal(err)
	}
	r, err := w.raw().Get(t.Context(), clusterPrefix(cluster)+"ips/n1/10.0.0.1")
	if err != nil || string(r.Kvs[0].Value) != string(newer) {
		t.Errorf("stored %q, want %q (%v)", r.Kvs[0].Value, newer, err)
	}
}

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.cert, a.key = a.sign("authority", nil)
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a certificate of a name; the authority's own if parent is nil.
func (a *authority) sign(name string, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: parent == nil,
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

// config is one side's TLS configuration under a name.
func (a *authority) config(name string) *tls.Config {
	cert, key := a.sign(name, a.cert)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		RootCAs:      a.pool, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "operator",
	}
}

func TestOverTLSANodeIsWhatItsCertificateSays(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	server, err := Serve(ctx, ServerConfig{
		Dir: dir, ClientAddr: "127.0.0.1:0", PublishAddr: "127.0.0.1:0", Cluster: cluster, TLS: a.config("operator"),
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	defer server.Wait()
	defer cancel()
	put := func(config *tls.Config, node string) codes.Code {
		conn, err := dialPublish(server.PublishAddr(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = storev1.NewPublishClient(conn).Put(t.Context(), &storev1.PutRequest{
			Node: node, Writes: []*storev1.Write{write("acks/"+node, nil)},
		})
		return status.Code(err)
	}
	if got := put(a.config("n1"), "n1"); got != codes.OK {
		t.Errorf("its own name: %v", got)
	}
	if got := put(a.config("n1"), "n2"); got != codes.PermissionDenied {
		t.Errorf("another's name: got %v, want a refusal", got)
	}
	stranger := newAuthority(t).config("n1")
	stranger.RootCAs = a.pool
	if got := put(stranger, "n1"); got != codes.Unavailable {
		t.Errorf("a certificate of another authority: got %v, want no connection", got)
	}
	if got := put(nil, "n1"); got != codes.Unavailable {
		t.Errorf("plaintext: got %v, want no connection", got)
	}
}

func TestTheServerRefusesAConfigurationThatCannotWork(t *testing.T) {
	good := ServerConfig{Dir: t.TempDir(), ClientAddr: "127.0.0.1:0", PublishAddr: "127.0.0.1:0", Cluster: cluster}
	for says, spoil := range map[string]func(*ServerConfig){
		"dir is empty":                 func(c *ServerConfig) { c.Dir = "" },
		`address "nowhere"`:            func(c *ServerConfig) { c.ClientAddr = "nowhere" },
		"listen for publish":           func(c *ServerConfig) { c.PublishAddr = "192.0.2.77:1" },
		`cluster: name "a/b" contains`: func(c *ServerConfig) { c.Cluster = "a/b" },
	} {
		config := good
		spoil(&config)
		server, err := Serve(t.Context(), config)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, %v; want an error with %q", server, err, says)
		}
	}
}

func TestARecordOfAnotherKindIsNotPublished(t *testing.T) {
	p := testPublisher(t, t.TempDir()+"/journal", newFake())
	defer p.close()
	for _, test := range []struct {
		key    Key
		record proto.Message
	}{
		{NodeKey("n1"), ip("web")}, {NodeKey("n2"), node("192.0.2.1")}, {PodKey("n1", "a", "b"), &storev1.Pod{}},
		{NodeKey("n1"), nil}, {Key{Kind: KindIP, First: "n1", Second: "x"}, ip("web")},
	} {
		if err := p.Set(test.key, test.record); err == nil || !strings.Contains(err.Error(), test.key.String()) {
			t.Errorf("%s: got %v, want an error that names the key", test.key, err)
		}
	}
	if pending, _ := p.describe(); pending != 0 {
		t.Errorf("%d changes wait", pending)
	}
}
