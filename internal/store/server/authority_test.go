package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
	"tendril.io/tendril/internal/table"
)

// tokens believes "token-<node>"; it cannot tell of "unknown".
type tokens struct{}

func (tokens) Node(_ context.Context, token string) (string, error) {
	if token == "unknown" {
		return "", errors.New("the API server is away")
	}
	node, ok := strings.CutPrefix(token, "token-")
	if !ok {
		return "", &store.Refusal{Reason: "it is forged"}
	}
	return node, nil
}

// issuing is a store with an authority, whose certificates live for so long, and the authority's certificate in a file.
func issuing(t *testing.T, life time.Duration) (running *server.Server, ca string) {
	t.Helper()
	cert, key, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	a, err := server.NewAuthority(server.AuthorityConfig{Cert: cert, Key: key, Tokens: tokens{}, Life: life, Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	ca = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	return serveAs(t, a), ca
}

// enrol runs node n1's client, which has a token and no certificate.
func enrol(t *testing.T, running *server.Server, ca, token string) (*store.Client, *table.Tables, string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "certificate.pem")
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client, tables := runConfig(t, store.Config{
		Endpoints: []string{running.ClientAddr()}, Publish: []string{running.PublishAddr()}, Cluster: cluster, Node: "n1",
		JournalPath: filepath.Join(dir, "journal"), TLS: store.Files{CA: ca, Cert: file, Key: file}, Token: filepath.Join(dir, "token"),
	})
	return client, tables, file
}

// await polls for at most 20 s: connections that were refused are tried again after a while.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not so: %s", what)
		}
	}
}

func TestANodeWithATokenGetsACertificateAndRenewsItBeforeItExpires(t *testing.T) {
	running, ca := issuing(t, 6*time.Second)
	writer := begin(t, running.AdminEndpoint())
	client, tables, file := enrol(t, running, ca, "token-n1")
	await(t, "the agent is complete", func() bool { return client.Status().Synced })
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	first := client.Status().CertificateUntil
	await(t, "the next certificate", func() bool { return client.Status().CertificateUntil.After(first) })
	if !time.Now().Before(first) {
		t.Error("it came after the first one had expired")
	}
	time.Sleep(time.Until(first) + 200*time.Millisecond)
	// The connections of the first one have ended; those of the next carry on.
	if _, err := writer.Apply(t.Context(), []store.Record{{Key: "namespaces/shop", Value: &storev1.Namespace{}}}); err != nil {
		t.Fatal(err)
	}
	await(t, "the agent hears of what is written then", func() bool { return tables.Namespaces.NumObjects(tables.DB.ReadTxn()) == 1 })
	if problems := client.Status().Problems; len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}

func TestANodeThatHasNothingYetIsToldItsPodCIDRs(t *testing.T) {
	running, ca := issuing(t, time.Hour)
	writer, err := store.NewWriter(store.WriterConfig{Endpoints: []string{running.AdminEndpoint()}, Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, err := writer.Apply(t.Context(), []store.Record{{Key: "nodelabels/n1", Value: &storev1.NodeLabels{PodCidrs: []string{"10.0.1.0/24"}}}}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, token := filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "token")
	client, err := store.Dial(store.Config{ // and not run: agents need them before they have tables
		Endpoints: []string{running.ClientAddr()}, Publish: []string{running.PublishAddr()}, Cluster: cluster, Node: "n1",
		JournalPath: filepath.Join(dir, "journal"), TLS: store.Files{CA: ca, Cert: file, Key: file}, Token: token,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.PodCIDRs(t.Context()); err == nil || !strings.Contains(err.Error(), "the pod needs a projected token") {
		t.Errorf("before kubelet has brought the token: got %v", err)
	}
	if err := os.WriteFile(token, []byte("token-n1"), 0o600); err != nil {
		t.Fatal(err)
	}
	cidrs, err := client.PodCIDRs(t.Context())
	if got := fmt.Sprint(cidrs, err); got != "[10.0.1.0/24] <nil>" {
		t.Errorf("got %s", got)
	}
}

// A carelessAuthority certifies whatever it is asked, for a name of its own choice, and counts.
type carelessAuthority struct {
	storev1.UnimplementedAuthorityServer
	*authority
	name  string
	asked atomic.Int64
}

func (c *carelessAuthority) Issue(_ context.Context, r *storev1.IssueRequest) (*storev1.IssueResponse, error) {
	c.asked.Add(1)
	wanted, err := x509.ParseCertificateRequest(r.GetRequest())
	if err != nil {
		return nil, err
	}
	template, _ := c.sign(c.name, c.cert)
	raw, err := x509.CreateCertificate(rand.Reader, template, c.cert, wanted.PublicKey, c.key)
	return &storev1.IssueResponse{Certificate: raw}, err
}

// serve runs it beside no store.
func (c *carelessAuthority) serve(t *testing.T) (addr, ca string) {
	t.Helper()
	files := c.files("127.0.0.1")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	running := grpc.NewServer(grpc.Creds(store.NewCredentials(files).ForStrangers()))
	storev1.RegisterAuthorityServer(running, c)
	go running.Serve(listener)
	t.Cleanup(running.Stop)
	return listener.Addr().String(), files.CA
}

func TestWhatIsIssuedAndNoUseIsNotAskedForInALoopAndReplacesNothing(t *testing.T) {
	for why, test := range map[string]struct {
		name    string
		life    time.Duration
		problem string // "": it is good, but due again at once
	}{
		"due at once":   {"n1", 5 * time.Minute, ""}, // it counts from an hour ago
		"another's":     {"n2", time.Hour, `is of "n2", and this node is "n1"`},
		"expired early": {"n1", -time.Minute, "has expired"},
	} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			c := &carelessAuthority{authority: newAuthority(t), name: test.name}
			addr, ca := c.serve(t)
			c.life = test.life
			dir := t.TempDir()
			file, token := filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "token")
			if err := errors.Join(os.WriteFile(file, []byte("before"), 0o600), os.WriteFile(token, []byte("any"), 0o600)); err != nil {
				t.Fatal(err)
			}
			client, _ := runConfig(t, store.Config{
				Endpoints: []string{addr}, Publish: []string{addr}, Cluster: cluster, Node: "n1",
				JournalPath: filepath.Join(dir, "journal"), TLS: store.Files{CA: ca, Cert: file, Key: file}, Token: token,
			})
			time.Sleep(2 * time.Second)
			if asked := c.asked.Load(); asked < 2 || asked > 6 {
				t.Errorf("asked %d times in two seconds; tries double their distance from 100 ms", asked)
			}
			text, err := os.ReadFile(file)
			if kept := string(text) == "before"; err != nil || kept != (test.problem != "") {
				t.Errorf("the file was replaced: %t, %v", !kept, err)
			}
			if problems := fmt.Sprint(client.Status().Problems); !strings.Contains(problems, test.problem) {
				t.Errorf("problems: %s, want %q", problems, test.problem)
			}
			if left, _ := filepath.Glob(file + "?*"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestANodeWithoutAGoodTokenIsToldWhy(t *testing.T) {
	running, ca := issuing(t, time.Hour)
	_, foreign := issuing(t, time.Hour)
	for name, test := range map[string]struct{ ca, token, want string }{
		"of another node's pod":     {ca, "token-n2", `the token is of a pod on node "n2"`},
		"forged":                    {ca, "nonsense", "it is forged"},
		"nobody can tell":           {ca, "unknown", "the API server is away"},
		"to a store of another one": {foreign, "token-n1", "unknown authority"},
	} {
		client, _, file := enrol(t, running, test.ca, test.token)
		await(t, name+": a problem with "+test.want, func() bool {
			problems := client.Status().Problems
			return len(problems) == 1 && problems[0].Object == "certificate" && strings.Contains(problems[0].Message, test.want)
		})
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s: there is a certificate", name)
		}
	}
}

func TestAReplacedAuthorityIsNoticedAtOnceAtTheNextStart(t *testing.T) {
	old, oldCA := issuing(t, time.Hour)
	_, _, file := enrol(t, old, oldCA, "token-n1")
	await(t, "a certificate", func() bool { _, err := os.Stat(file); return err == nil })
	running, ca := issuing(t, time.Hour)
	client, _ := runConfig(t, store.Config{
		Endpoints: []string{running.ClientAddr()}, Publish: []string{running.PublishAddr()}, Cluster: cluster, Node: "n1",
		JournalPath: filepath.Join(t.TempDir(), "journal"), TLS: store.Files{CA: ca, Cert: file, Key: file}, Token: filepath.Join(filepath.Dir(file), "token"),
	})
	await(t, "a certificate of the new authority", func() bool { return len(client.Status().Problems) == 0 && client.Probe(t.Context()) == nil })
}

// request is a certificate request of a name.
func request(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// What else it asks for must not be given.
	raw, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: []string{"n2", "127.0.0.1"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestACertificateSaysTheNodeAndNothingElseOfTheRequest(t *testing.T) {
	cert, key, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	a, err := server.NewAuthority(server.AuthorityConfig{Cert: cert, Key: key, Tokens: tokens{}, Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := a.Issue(t.Context(), &storev1.IssueRequest{Request: request(t, "n1"), Token: "token-n1"})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(answer.GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	if leaf.Subject.CommonName != "n1" || len(leaf.DNSNames)+len(leaf.IPAddresses) > 0 || leaf.IsCA {
		t.Errorf("got a certificate of %v, %v, %v, authority %t", leaf.Subject, leaf.DNSNames, leaf.IPAddresses, leaf.IsCA)
	}
	_, pool, err := a.Load()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a node's certificate passes for the store's")
	}
	tampered := request(t, "n1")
	tampered[len(tampered)-1] ^= 1
	for name, bad := range map[string][]byte{"empty": nil, "tampered with": tampered, "a name with a slash": request(t, "a/b")} {
		if _, err := a.Issue(t.Context(), &storev1.IssueRequest{Request: bad, Token: "token-n1"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}

// countingTokens counts what the API server is asked.
type countingTokens struct{ asked atomic.Int64 }

func (c *countingTokens) Node(ctx context.Context, token string) (string, error) {
	c.asked.Add(1)
	return tokens{}.Node(ctx, token)
}

// as is a context of a caller with an address.
func as(ctx context.Context, addr netip.Addr) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 4711))})
}

func TestFiveThousandNodesThatBeginTogetherGetTheirCertificatesWithoutAStorm(t *testing.T) {
	const nodes = 5000
	cert, key, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	var raw [nodes][]byte
	for i := range raw {
		raw[i] = request(t, fmt.Sprintf("n%d", i))
	}
	synctest.Test(t, func(t *testing.T) {
		asked := &countingTokens{}
		a, err := server.NewAuthority(server.AuthorityConfig{Cert: cert, Key: key, Tokens: asked, Hosts: []string{"127.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		// One who asks without end, all the while.
		ctx, cancel := context.WithCancel(t.Context())
		var around, enrolling sync.WaitGroup
		around.Go(func() {
			for ctx.Err() == nil {
				a.Issue(as(ctx, netip.MustParseAddr("192.0.2.1")), &storev1.IssueRequest{Request: raw[0], Token: "forged"})
				time.Sleep(10 * time.Millisecond)
			}
		})
		began := time.Now()
		var calls atomic.Int64
		for i := range nodes {
			enrolling.Go(func() {
				addr := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
				for backoff := (store.Backoff{Max: 30 * time.Second}); ; time.Sleep(backoff.Next()) { // as agents do
					calls.Add(1)
					if _, err := a.Issue(as(ctx, addr), &storev1.IssueRequest{Request: raw[i], Token: fmt.Sprintf("token-n%d", i)}); err == nil {
						return
					} else if status.Code(err) != codes.ResourceExhausted {
						t.Errorf("node %d: %v", i, err)
						return
					}
				}
			})
		}
		enrolling.Wait()
		took := time.Since(began)
		cancel()
		around.Wait()
		t.Logf("%v, %.1f calls a node, %d tokens asked about", took, float64(calls.Load())/nodes, asked.asked.Load())
		if took > 6*time.Minute || calls.Load() > 25*nodes {
			t.Errorf("it took %v and %d calls", took, calls.Load())
		}
		if rate := float64(asked.asked.Load()) / took.Seconds(); rate > 20.5 {
			t.Errorf("the API server is asked %.1f times a second, the limit is 20", rate)
		}
	})
}

func TestAnAuthorityNeedsAKeyOfItsOwnAndAnAddress(t *testing.T) {
	cert, key, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	for want, config := range map[string]server.AuthorityConfig{
		"does not match": {Cert: cert, Key: other},
		"agents ask":     {Cert: cert, Key: key, Hosts: []string{"0.0.0.0"}},
		"failed to find": {},
		"all the time":   {Cert: cert, Key: key, Life: time.Second},
	} {
		if _, err := server.NewAuthority(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
