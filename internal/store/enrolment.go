package store

import (
	"bytes"
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
	"log/slog"
	random "math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	storev1 "tendril.io/tendril/api/store/v1"
)

// An enrolment keeps this node's certificate good: it asks the store's authority for one, and for the next between a half and
// three quarters of its life, so that nodes that began together do not renew together.
type enrolment struct {
	files     Files // Cert and Key are one file, so that both change at once
	node      string
	tokenPath string     // says on which node we run; somebody else keeps it fresh
	addresses *addresses // the authority is where the Publish service is
	logger    *slog.Logger

	mu  sync.Mutex
	err error // of the last try
}

// enrolEvery bounds how long a replaced authority goes unnoticed. Looking costs three small files.
const enrolEvery = 30 * time.Second

// run enrols and renews until the context ends. Whatever becomes of a try, there is a wait before the next, and it grows until a look finds
// the certificate good: one that is due again as soon as it is there, as with a clock that is far ahead, is not asked for in a loop.
func (e *enrolment) run(ctx context.Context) error {
	backoff := Backoff{Max: enrolEvery}
	share := 0.5 + random.Float64()/4 // of its life
	for {
		wait := min(enrolEvery, e.left(time.Now(), share))
		if wait > 0 {
			backoff.Reset()
			e.note(nil)
		} else {
			e.note(e.enrol(ctx))
			wait = backoff.Next()
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// ensure enrols, once, if there is no certificate that is good now. It is for before run.
func (e *enrolment) ensure(ctx context.Context) error {
	if _, err := e.files.check(e.node, time.Now()); err == nil {
		return nil
	}
	return e.enrol(ctx)
}

// note keeps how a try or a look ended.
func (e *enrolment) note(err error) {
	if err != nil {
		e.logger.Warn("no certificate issued", "error", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
}

// lastError is why the node has no fresh certificate, or nil.
func (e *enrolment) lastError() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// left is in which time another certificate is wanted; none is: now.
func (e *enrolment) left(now time.Time, share float64) time.Duration {
	cert, err := e.files.check(e.node, now)
	if err != nil {
		return 0
	}
	life := cert.NotAfter.Sub(cert.NotBefore)
	return max(0, cert.NotAfter.Sub(now)-time.Duration((1-share)*float64(life)))
}

// enrol makes a new key and has it certified. The key never leaves this node.
func (e *enrolment) enrol(ctx context.Context) error {
	token, err := os.ReadFile(e.tokenPath)
	if err != nil {
		return fmt.Errorf("token: %w: the pod needs a projected token there", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: e.node}}, key)
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	cert, err := e.ask(ctx, &storev1.IssueRequest{Request: request, Token: strings.TrimSpace(string(token))})
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	return e.keep(cert, der)
}

// ask sends a request over a connection of its own, which has no certificate to show.
func (e *enrolment) ask(ctx context.Context, request *storev1.IssueRequest) (cert []byte, err error) {
	_, publish := e.addresses.get()
	conn, err := dialPublish(publish, stranger{e.files})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := storev1.NewAuthorityClient(conn).Issue(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("ask %v for a certificate: %w", publish, err)
	}
	return answer.GetCertificate(), nil
}

// keep replaces the file, whole, by a certificate that is good: what is no use here does not take the place of what may be.
func (e *enrolment) keep(cert, key []byte) error {
	var text bytes.Buffer
	for _, block := range []pem.Block{{Type: "CERTIFICATE", Bytes: cert}, {Type: "PRIVATE KEY", Bytes: key}} {
		if err := pem.Encode(&text, &block); err != nil {
			return fmt.Errorf("encode the certificate: %w", err)
		}
	}
	fresh := e.files.Cert + ".new"
	if err := writeSecret(fresh, text.Bytes()); err != nil {
		return fmt.Errorf("keep the certificate: %w", err)
	}
	issued, err := Files{CA: e.files.CA, Cert: fresh, Key: fresh}.check(e.node, time.Now())
	if err != nil {
		return fmt.Errorf("what was issued is no use: %w", errors.Join(err, os.Remove(fresh)))
	}
	if err := os.Rename(fresh, e.files.Cert); err != nil {
		return fmt.Errorf("keep the certificate: %w", err)
	}
	e.logger.Info("certificate issued", "file", e.files.Cert, "until", issued.NotAfter)
	return nil
}

// writeSecret makes a file for its owner alone, which is on the disk when it returns.
func writeSecret(path string, text []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // else it would keep the mode that it has
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = file.Write(text); err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// A stranger is a node that has no certificate yet, or one that is no longer good.
type stranger struct{ files Files }

// Load implements Identity.
func (s stranger) Load() (tls.Certificate, *x509.CertPool, error) {
	pool, err := s.files.authorities()
	return tls.Certificate{}, pool, err
}
