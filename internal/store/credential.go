package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc/credentials"
)

// An Identity is who a process is to the store, and who vouches for the other side.
type Identity interface {
	// Load returns the certificate to show and the authorities to believe. It is asked at every handshake, so that both may be
	// replaced at any time.
	Load() (tls.Certificate, *x509.CertPool, error)
}

// Files is an identity in PEM files. Who replaces them need tell nobody.
type Files struct {
	CA   string // certificates of the authorities that vouch for the other side
	Cert string // ours, its name the node's
	Key  string // of Cert
}

// Validate wants all three files or none.
func (f Files) Validate() error {
	if f == (Files{}) || (f.CA != "" && f.Cert != "" && f.Key != "") {
		return nil
	}
	return fmt.Errorf("CA file %q, certificate file %q, key file %q: name all three, or none for a store without TLS", f.CA, f.Cert, f.Key)
}

// Load reads the files.
func (f Files) Load() (tls.Certificate, *x509.CertPool, error) {
	pool, err := f.authorities()
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("certificate %s, key %s: %w", f.Cert, f.Key, err)
	}
	return cert, pool, nil
}

func (f Files) authorities() (*x509.CertPool, error) {
	text, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("authorities: %s has no certificate in PEM", f.CA)
	}
	return pool, nil
}

// check returns a node's certificate, nil if there is none, and what is wrong with it.
func (f Files) check(node string, now time.Time) (*x509.Certificate, error) {
	cert, pool, err := f.Load()
	if err != nil {
		return nil, err
	}
	if cert.Leaf.Subject.CommonName != node {
		return cert.Leaf, fmt.Errorf("certificate %s is of %q, and this node is %q", f.Cert, cert.Leaf.Subject.CommonName, node)
	}
	return cert.Leaf, explainCertificate(cert.Leaf, verifyAt(cert, pool, now))
}

// verifyAt checks our own certificate as the other side will, if it believes the same authorities.
func verifyAt(cert tls.Certificate, pool *x509.CertPool, now time.Time) error {
	between := x509.NewCertPool()
	for _, raw := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(raw); err == nil {
			between.AddCert(c)
		}
	}
	_, err := cert.Leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// explainCertificate says in a person's words why a certificate was not believed.
func explainCertificate(leaf *x509.Certificate, err error) error {
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().Before(leaf.NotBefore):
		return fmt.Errorf("certificate of %q counts from %s on only: compare the clocks", leaf.Subject.CommonName, leaf.NotBefore.Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("certificate of %q has expired at %s: renew it", leaf.Subject.CommonName, leaf.NotAfter.Format(time.RFC3339))
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("certificate of %q is of an unknown authority, %q: both sides must know the same; bring the file with the authorities up to date (in Kubernetes: from the config map tendril-authority, which kubelet brings)", leaf.Subject.CommonName, leaf.Issuer.CommonName)
	case errors.As(err, &host):
		return fmt.Errorf("certificate of %q is not for %s but for %v %v: ask at one of those, or have it issued anew", leaf.Subject.CommonName, host.Host, leaf.DNSNames, leaf.IPAddresses)
	}
	return fmt.Errorf("certificate of %q: %w", leaf.Subject.CommonName, err)
}

// Refusal is why a node's token is not believed.
type Refusal struct{ Reason string }

// Error is the reason.
func (r *Refusal) Error() string { return r.Reason }

// Credentials are for gRPC: TLS 1.3, both sides with a certificate. A connection that was accepted ends with its client's
// certificate: who renews his comes back with the new one, and who may not is out.
type Credentials struct {
	identity Identity
	stranger bool // see ForStrangers
}

// NewCredentials are those of an identity.
func NewCredentials(identity Identity) *Credentials { return &Credentials{identity: identity} }

// ForStrangers also accepts clients without a certificate: what they may do is the service's to say.
func (c *Credentials) ForStrangers() *Credentials { return &Credentials{c.identity, true} }

// ClientHandshake is gRPC's: it checks that the server is the host that was dialled.
func (c *Credentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cert, pool, err := c.identity.Load()
	if err != nil {
		return nil, nil, err
	}
	conn, info, err := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool,
		// Whatever authorities the server says that it knows: its refusal tells more than our silence.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}).ClientHandshake(ctx, authority, raw)
	return conn, info, explainHandshake(err)
}

// ServerHandshake is gRPC's.
func (c *Credentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cert, pool, err := c.identity.Load()
	if err != nil {
		return nil, nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true, // a ticket would outlive its certificate
	}
	if c.stranger {
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	conn, info, err := credentials.NewTLS(config).ServerHandshake(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%v: %w", raw.RemoteAddr(), explainHandshake(err))
	}
	leaf := Leaf(info)
	if leaf == nil {
		return conn, info, nil
	}
	return &mortalConn{conn, time.AfterFunc(time.Until(leaf.NotAfter), func() { conn.Close() })}, info, nil
}

// explainHandshake finds the certificate that a handshake failed for.
func explainHandshake(err error) error {
	var verification *tls.CertificateVerificationError
	if errors.As(err, &verification) && len(verification.UnverifiedCertificates) > 0 {
		return explainCertificate(verification.UnverifiedCertificates[0], verification.Err)
	}
	return err
}

// Leaf is the verified certificate of the other side, nil if it showed none.
func Leaf(info credentials.AuthInfo) *x509.Certificate {
	state, ok := info.(credentials.TLSInfo)
	if !ok || len(state.State.VerifiedChains) == 0 {
		return nil
	}
	return state.State.VerifiedChains[0][0]
}

// Info is gRPC's.
func (c *Credentials) Info() credentials.ProtocolInfo {
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13}).Info()
}

// Clone is gRPC's.
func (c *Credentials) Clone() credentials.TransportCredentials {
	return &Credentials{c.identity, c.stranger}
}

// OverrideServerName is gRPC's; who is dialled is who must answer.
func (c *Credentials) OverrideServerName(name string) error {
	return fmt.Errorf("server name %q: the certificate must be of the address that is dialled", name)
}

// mortalConn is closed when its client's certificate expires.
type mortalConn struct {
	net.Conn
	end *time.Timer
}

// Close ends the connection and its timer.
func (c *mortalConn) Close() error {
	c.end.Stop()
	return c.Conn.Close()
}
