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
	Believed  []byte        // certificates of all authorities whose clients are let in, in PEM; this one is in any case
	Tokens    Tokens        // who is who
	Life      time.Duration // of a certificate, 0: DefaultLife
	Hosts     []string      // addresses at which agents ask, for the store's own certificate
}

// Authority issues certificates: to nodes, and to the store itself. It is the store's Identity.
type Authority struct {
	storev1.UnimplementedAuthorityServer
	config AuthorityConfig
	turns  turns

	mu     sync.Mutex
	signer signer
	pool   *x509.CertPool
	own    tls.Certificate // renewed at half of its life
}

// A signer is an authority's certificate and its key.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	life time.Duration // of what it signs
}

// DefaultLife is how long a certificate lives.
const DefaultLife = 24 * time.Hour

const (
	authorityLife = 10 * 365 * 24 * time.Hour
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
		// Whoever does not believe one says which, and one follows another.
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "tendril store authority of " + time.Now().UTC().Format(time.RFC3339)},
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
	config.Life = cmp.Or(config.Life, DefaultLife)
	if config.Life < shortestLife {
		return nil, fmt.Errorf("authority: certificates that live for %v would be renewed all the time; give them %v or more", config.Life, shortestLife)
	}
	for _, host := range config.Hosts {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			return nil, fmt.Errorf("authority: the store listens at %q; give the address at which agents ask, for that stands in its certificate", host)
		}
	}
	a := &Authority{config: config, turns: newTurns()}
	if err := a.Replace(config.Cert, config.Key, config.Believed); err != nil {
		return nil, err
	}
	return a, nil
}

// Replace has another authority issue from now on, and others be believed; all is in PEM, as in the config. Connections stay: whom they belong to
// was checked when they began, and they end with their clients' certificates. What cannot be used replaces nothing.
func (a *Authority) Replace(cert, key, believed []byte) error {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	private, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return errors.New("authority: the certificate is not of an authority with an ECDSA key; remove it, and another is made")
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) {
		return fmt.Errorf("authority: its certificate has expired at %s; remove it, and another is made", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	pool := x509.NewCertPool()
	pool.AddCert(pair.Leaf)
	for block, rest := pem.Decode(believed); block != nil; block, rest = pem.Decode(rest) {
		other, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("authority: another that is believed: %w", err)
		}
		pool.AddCert(other)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.signer.cert == nil || !a.signer.cert.Equal(pair.Leaf) {
		a.own = tls.Certificate{} // the store shows one of the new authority
	}
	a.signer, a.pool = signer{pair.Leaf, private, a.config.Life}, pool
	return nil
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
	raw, err := a.signer.sign(template, &key.PublicKey)
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

func (s signer) sign(template *x509.Certificate, key any) ([]byte, error) {
	template.SerialNumber, template.KeyUsage = serial(), x509.KeyUsageDigitalSignature
	now := time.Now()
	template.NotBefore, template.NotAfter = now.Add(-min(clockSkew, s.life/10)), now.Add(s.life)
	raw, err := x509.CreateCertificate(rand.Reader, template, s.cert, key, s.key)
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
	a.mu.Lock()
	signer := a.signer
	a.mu.Unlock()
	raw, err := signer.sign(&x509.Certificate{Subject: pkix.Name{CommonName: node}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, request.PublicKey)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &storev1.IssueResponse{Certificate: raw}, nil
}
