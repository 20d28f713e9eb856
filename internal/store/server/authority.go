package server

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
)

// Tokens says what a token proves.
type Tokens interface {
	// Node is the node that the token's pod runs on. A *store.Refusal says that the token proves nothing; any other error, that nobody could tell.
	Node(ctx context.Context, token string) (string, error)
}

// AuthorityConfig is what an authority needs.
type AuthorityConfig struct {
	Cert, Key []byte        // of the authority, in PEM; see MakeAuthority
	Tokens    Tokens        // who is who
	Life      time.Duration // of a certificate, 0: 24 hours
	Hosts     []string      // addresses at which agents ask, for the store's own certificate
}

// Authority issues certificates: to nodes, and to the store itself. It is the store's Identity.
type Authority struct {
	storev1.UnimplementedAuthorityServer
	config AuthorityConfig
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	pool   *x509.CertPool
	turns  turns

	mu  sync.Mutex
	own tls.Certificate // renewed at half of its life
}

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	nodeLife      = 24 * time.Hour
	shortestLife  = 5 * time.Second
	clockSkew     = time.Minute // a certificate counts that much earlier, at most, for nodes whose clock is behind
)

// MakeAuthority makes a certificate and key for an authority, in PEM.
func MakeAuthority() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make an authority: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "tendril store authority"},
		NotBefore: time.Now().Add(-clockSkew), NotAfter: time.Now().Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, fmt.Errorf("make an authority: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("make an authority: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func serial() *big.Int {
	var bytes [16]byte
	rand.Read(bytes[:]) // never fails
	return new(big.Int).SetBytes(bytes[:])
}

// NewAuthority takes a certificate and its key.
func NewAuthority(config AuthorityConfig) (*Authority, error) {
	pair, err := tls.X509KeyPair(config.Cert, config.Key)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("authority: the certificate is not of an authority with an ECDSA key; remove it, and another is made")
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("authority: its certificate has expired at %s; remove it, and another is made", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	config.Life = cmp.Or(config.Life, nodeLife)
	if config.Life < shortestLife {
		return nil, fmt.Errorf("authority: certificates that live for %v would be renewed all the time; give them %v or more", config.Life, shortestLife)
	}
	for _, host := range config.Hosts {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			return nil, fmt.Errorf("authority: the store listens at %q; give the address at which agents ask, for that stands in its certificate", host)
		}
	}
	a := &Authority{config: config, cert: pair.Leaf, key: key, pool: x509.NewCertPool(), turns: newTurns()}
	a.pool.AddCert(pair.Leaf)
	return a, nil
}

// Load implements store.Identity.
func (a *Authority) Load() (tls.Certificate, *x509.CertPool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own.Leaf != nil && time.Until(a.own.Leaf.NotAfter) > a.config.Life/2 {
		return a.own, a.pool, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("make a key for the store: %w", err)
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "tendril store"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, host := range a.config.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	raw, err := a.sign(template, &key.PublicKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("certificate of the store: %w", err)
	}
	a.own = tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}
	return a.own, a.pool, nil
}

func (a *Authority) sign(template *x509.Certificate, key any) ([]byte, error) {
	template.SerialNumber, template.KeyUsage = serial(), x509.KeyUsageDigitalSignature
	now := time.Now()
	template.NotBefore, template.NotAfter = now.Add(-min(clockSkew, a.config.Life/10)), now.Add(a.config.Life)
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate of %q: %w", template.Subject.CommonName, err)
	}
	return raw, nil
}

// Issue gives a node its certificate. Of the request only its key counts, and its name must be the one that the token proves.
// A node's certificate is for clients only, so that no node can pass for the store.
func (a *Authority) Issue(ctx context.Context, r *storev1.IssueRequest) (*storev1.IssueResponse, error) {
	if err := a.turns.wait(ctx); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	request, err := x509.ParseCertificateRequest(r.GetRequest())
	if err == nil {
		err = request.CheckSignature() // whoever asks has the key
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "certificate request: %v", err)
	}
	name := request.Subject.CommonName
	if err := store.CheckName(name); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "certificate request: node: %v", err)
	}
	node, err := a.config.Tokens.Node(ctx, r.GetToken())
	var refusal *store.Refusal
	switch {
	case errors.As(err, &refusal):
		return nil, status.Errorf(codes.PermissionDenied, "node %q: token: %v", name, refusal)
	case err != nil:
		return nil, status.Errorf(codes.Unavailable, "node %q: token: %v", name, err)
	case node != name:
		return nil, status.Errorf(codes.PermissionDenied, "node %q: the token is of a pod on node %q; each node's agent asks for its own", name, node)
	}
	raw, err := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: node}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, request.PublicKey)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &storev1.IssueResponse{Certificate: raw}, nil
}
