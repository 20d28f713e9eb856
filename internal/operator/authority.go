package operator

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// AnnotationReplace on the authority's Secret, with a value that it did not have before, has the authority replaced.
const AnnotationReplace = "tendril.io/replace"

// The Secret's keys beside tls.crt and tls.key, which are of the authority that issues. The stage of a replacement is which of them are there:
//
//  1. next.crt: the next authority is made, and the ConfigMap tells agents that it will be believed. Nobody issues by it.
//  2. previous.crt: the next one has become the one that issues. Who has a certificate of the one before is still believed.
//  3. Neither: no certificate of the one before can be good any more.
//
// Each stage begins with one write that depends on what was read, whichever replica is first.
const (
	nextCert     = "next.crt"
	nextKey      = "next.key"
	previousCert = "previous.crt"
	stageSince   = "since"    // when the stage began; absent in stage 1 for as long as the ConfigMap is not known to have the next one
	replacedFor  = "replaced" // value of AnnotationReplace that was acted on last
)

// The ConfigMap's keys.
const (
	caKey        = "ca.crt"     // certificates of all authorities that are believed; agents' pods do not start before it is there
	toldStage    = "stage"      // of a replacement, for people and `tendril status`, which need not read the Secret: stageTold, stageIssues; else absent
	toldStageEnd = "stage-ends" // when the next stage may begin, in RFC 3339; absent before the wait has begun
	toldProblem  = "problem"    // why the Secret cannot be used: replicas go on with what they had of it
	stageTold    = "told"       // stage 1
	stageIssues  = "issues"     // stage 2
)

const (
	defaultSpread = 10 * time.Minute // kubelet brings a ConfigMap within about two
	defaultPoll   = 45 * time.Second
	// A replica that has got so many conflicts in a row looks again later: each is another's step, and a replacement has eight.
	maxSteps = 20
)

// Authority keeps the cluster's authority, in the Secret of its name; the ConfigMap of that name, which agents mount, has what they believe.
type Authority struct {
	Client          kubernetes.Interface
	Namespace, Name string
	Make            func() (cert, key []byte, err error) // of another authority, in PEM
	Life            time.Duration                        // of the certificates that it issues
	Spread          time.Duration                        // in which every agent has what the ConfigMap says, and every replica what the Secret says; 0: 10 minutes
	Poll            time.Duration                        // how often the Secret is read, with jitter; 0: 45 seconds
	Logger          *slog.Logger
}

// AuthorityKeys is in PEM.
type AuthorityKeys struct {
	Cert, Key []byte // of the authority that issues
	Believed  []byte // certificates of that one, and of the one before or after it
}

// Keep returns the cluster's authority. Where there is none, it is made. Of replicas that find the Secret empty one is first, and all others take
// what it wrote.
func (a Authority) Keep(ctx context.Context) (AuthorityKeys, error) { return a.settle(ctx, true) }

// Follow reads the Secret again and again until the context ends, replaces the authority when it is time, and has each change used, whichever replica
// made it. A Secret that cannot be used changes nothing.
func (a Authority) Follow(ctx context.Context, use func(AuthorityKeys) error) {
	var used AuthorityKeys
	for {
		wait := time.Duration((0.75 + rand.Float64()/2) * float64(cmp.Or(a.Poll, defaultPoll)))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		keys, err := a.settle(ctx, false)
		if err == nil && !keys.equal(used) {
			if err = use(keys); err == nil {
				used = keys
			}
		}
		if err != nil && ctx.Err() == nil {
			a.Logger.Warn("the authority goes on as it was", "error", err)
		}
	}
}

func (k AuthorityKeys) equal(other AuthorityKeys) bool {
	return bytes.Equal(k.Cert, other.Cert) && bytes.Equal(k.Key, other.Key) && bytes.Equal(k.Believed, other.Believed)
}

// settle takes steps until there is none to take now.
func (a Authority) settle(ctx context.Context, create bool) (AuthorityKeys, error) {
	for range maxSteps {
		keys, done, err := a.step(ctx, create)
		if done || err != nil && !apierrors.IsConflict(err) {
			return keys, err
		}
	}
	return AuthorityKeys{}, fmt.Errorf("authority %s/%s: others changed it at each of %d tries", a.Namespace, a.Name, maxSteps)
}

// step makes one write, or finds that none is due. The ConfigMap is read before the Secret, and written only if it is still what was read: so nobody
// puts what an older Secret says in the place of what a newer one does.
func (a Authority) step(ctx context.Context, create bool) (keys AuthorityKeys, done bool, err error) {
	known, err := a.Client.CoreV1().ConfigMaps(a.Namespace).Get(ctx, a.Name, metav1.GetOptions{})
	if err != nil {
		return keys, false, fmt.Errorf("authority in config map %s/%s: %w", a.Namespace, a.Name, err)
	}
	secret, err := a.Client.CoreV1().Secrets(a.Namespace).Get(ctx, a.Name, metav1.GetOptions{})
	var state authorityState
	switch {
	case err == nil && isBlank(secret) && create:
		return keys, false, a.first(ctx, secret)
	case err == nil && isBlank(secret):
		err = errEmptied
	case err == nil:
		state, err = readAuthority(secret)
	case apierrors.IsNotFound(err):
		err = fmt.Errorf("%w; put it back, or apply the chart again and restart the operator, which makes another authority", err)
	default:
		return keys, false, fmt.Errorf("authority in secret %s/%s: %w", a.Namespace, a.Name, err)
	}
	if err != nil {
		err = fmt.Errorf("authority in secret %s/%s: %w", a.Namespace, a.Name, err)
		if problem := err.Error(); problem != known.Data[toldProblem] {
			err = errors.Join(err, a.tell(ctx, known, map[string]any{toldProblem: problem}))
		}
		return keys, false, err
	}
	keys = state.keys()
	change := a.untold(state, known.Data)
	if len(change) == 0 {
		done, err = a.advance(ctx, state)
		return keys, done, err
	}
	if change[caKey] != nil && state.next.cert != nil && !state.since.IsZero() { // agents do not know of the next one: the wait begins anew
		return keys, false, a.write(ctx, secret, map[string][]byte{stageSince: nil})
	}
	return keys, false, a.tell(ctx, known, change)
}

// tell changes the ConfigMap if it is still what was read. A nil value removes its key.
func (a Authority) tell(ctx context.Context, known *corev1.ConfigMap, change map[string]any) error {
	patch := marshal(map[string]any{"metadata": map[string]any{"resourceVersion": known.ResourceVersion}, "data": change})
	if _, err := a.Client.CoreV1().ConfigMaps(a.Namespace).Patch(ctx, a.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("authority in config map %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil
}

// untold is what the ConfigMap does not say yet of a state, by its keys; nil: what it says and should not.
func (a Authority) untold(s authorityState, known map[string]string) map[string]any {
	wanted := map[string]string{caKey: string(s.keys().Believed)}
	ends := s.since.Add(cmp.Or(a.Spread, defaultSpread))
	switch {
	case s.next.cert != nil:
		wanted[toldStage] = stageTold
	case s.previous != nil:
		wanted[toldStage], ends = stageIssues, ends.Add(a.Life)
	}
	if wanted[toldStage] != "" && !s.since.IsZero() {
		wanted[toldStageEnd] = ends.UTC().Format(time.RFC3339)
	}
	change := map[string]any{}
	for _, key := range []string{caKey, toldStage, toldStageEnd, toldProblem} {
		text, ok := wanted[key]
		switch has, known := known[key]; {
		case ok && text != has:
			change[key] = text
		case !ok && known:
			change[key] = nil
		}
	}
	return change
}

// errEmptied is of a Secret that was emptied below a running operator: it goes on with what it has, until people who meant it start it anew.
var errEmptied = errors.New("tls.crt and tls.key are gone; put them back, or restart the operator, which makes another authority: agents are cut off until they know it")

// first fills a Secret in which there is nothing.
func (a Authority) first(ctx context.Context, secret *corev1.Secret) error {
	cert, key, err := a.Make()
	if err != nil {
		return err
	}
	return a.write(ctx, secret, map[string][]byte{
		corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key, stageSince: nil, replacedFor: []byte(secret.Annotations[AnnotationReplace]),
	})
}

// advance begins the stage that is due, if one is. Agents are known to have been told of what the Secret says.
func (a Authority) advance(ctx context.Context, s authorityState) (done bool, err error) {
	now, spread := time.Now(), cmp.Or(a.Spread, defaultSpread)
	var change map[string][]byte
	var stage string
	switch {
	case (s.next.cert != nil || s.previous != nil) && s.since.IsZero():
		change, stage = map[string][]byte{stageSince: stamp(now)}, "agents are told of the next one"
		if s.previous != nil {
			stage = "agents are told of the previous one"
		}
	case s.next.cert != nil && !now.Before(s.since.Add(spread)):
		stage = "the next one issues"
		change = map[string][]byte{
			corev1.TLSCertKey: s.next.cert, corev1.TLSPrivateKeyKey: s.next.key, previousCert: s.current.cert, nextCert: nil, nextKey: nil, stageSince: stamp(now),
		}
	// Replicas that have not looked yet issue by the previous one for a while.
	case s.previous != nil && !now.Before(s.since.Add(a.Life+spread)):
		change, stage = map[string][]byte{previousCert: nil, stageSince: nil}, "the previous one is not believed any more"
	case s.next.cert == nil && s.previous == nil && s.due(now):
		stage = "the next one is made"
		next := pair{}
		if next.cert, next.key, err = a.Make(); err != nil {
			return false, err
		}
		change = map[string][]byte{nextCert: next.cert, nextKey: next.key, stageSince: nil, replacedFor: []byte(s.secret.Annotations[AnnotationReplace])}
	default:
		return true, nil
	}
	if err := a.write(ctx, s.secret, change); err != nil {
		return false, err
	}
	a.Logger.Info("authority", "stage", stage, "secret", a.Namespace+"/"+a.Name)
	return false, nil
}

// write changes the Secret if it is still what was read. A nil value removes its key.
func (a Authority) write(ctx context.Context, read *corev1.Secret, data map[string][]byte) error {
	patch := marshal(map[string]any{"metadata": map[string]any{"resourceVersion": read.ResourceVersion}, "data": data})
	if _, err := a.Client.CoreV1().Secrets(a.Namespace).Patch(ctx, a.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("authority in secret %s/%s: %w", a.Namespace, a.Name, err)
	}
	return nil
}

func stamp(now time.Time) []byte { return []byte(now.UTC().Format(time.RFC3339Nano)) }

// pair is an authority's certificate and key, in PEM.
type pair struct{ cert, key []byte }

// authorityState is what a Secret says that can be used.
type authorityState struct {
	secret        *corev1.Secret
	leaf          *x509.Certificate // of current
	current, next pair
	previous      []byte
	since         time.Time
}

// keys lists who is believed in the order in which they come, so that the ConfigMap stays as it is when the next one takes over.
func (s authorityState) keys() AuthorityKeys {
	keys := AuthorityKeys{Cert: s.current.cert, Key: s.current.key}
	for _, cert := range [][]byte{s.previous, s.current.cert, s.next.cert} {
		if cert != nil {
			keys.Believed = append(append(keys.Believed, bytes.TrimSpace(cert)...), '\n') // people's may end without one
		}
	}
	return keys
}

// due is whether somebody asks for another authority, or this one has less than a tenth of its life left.
func (s authorityState) due(now time.Time) bool {
	wanted := s.secret.Annotations[AnnotationReplace]
	return wanted != "" && wanted != string(s.secret.Data[replacedFor]) || s.leaf.NotAfter.Sub(now) < s.leaf.NotAfter.Sub(s.leaf.NotBefore)/10
}

func isBlank(secret *corev1.Secret) bool {
	for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey, nextCert, nextKey, previousCert} {
		if len(secret.Data[key]) > 0 {
			return false
		}
	}
	return true
}

// readAuthority checks all that a stage to come would use, so that none takes away what is good for what is not.
func readAuthority(secret *corev1.Secret) (s authorityState, err error) {
	s.secret = secret
	s.current = pair{secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]}
	if s.leaf, err = s.current.check(); err != nil {
		return s, fmt.Errorf("%s, %s: %w; put back what was there, or remove all keys and restart the operator, which cuts agents off until they know the new authority", corev1.TLSCertKey, corev1.TLSPrivateKeyKey, err)
	}
	if next := (pair{secret.Data[nextCert], secret.Data[nextKey]}); len(next.cert)+len(next.key) > 0 {
		if _, err := next.check(); err != nil {
			return s, fmt.Errorf("%s, %s: %w; remove both keys, and %s can ask for another replacement", nextCert, nextKey, err, AnnotationReplace)
		}
		s.next = next
	}
	if previous := secret.Data[previousCert]; len(previous) > 0 {
		if _, err := parseAuthority(previous); err != nil {
			return s, fmt.Errorf("%s: %w; put back what was there, or remove it: then who has a certificate of that authority enrols again", previousCert, err)
		}
		s.previous = previous
	}
	if s.next.cert != nil && s.previous != nil {
		return s, fmt.Errorf("%s and %s: one replacement ends before the next begins; remove %s and %s", nextCert, previousCert, nextCert, nextKey)
	}
	if text := string(secret.Data[stageSince]); text != "" {
		if s.since, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return s, fmt.Errorf("%s: %w; remove it, and the wait begins anew", stageSince, err)
		}
	}
	return s, nil
}

func (p pair) check() (*x509.Certificate, error) {
	if _, err := tls.X509KeyPair(p.cert, p.key); err != nil {
		return nil, err
	}
	return parseAuthority(p.cert)
}

// parseAuthority wants one certificate, of an authority, and nothing else.
func parseAuthority(text []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("the certificate of %q is not of an authority", cert.Subject.CommonName)
	}
	return cert, nil
}

// marshal is of maps that have nothing to fail for.
func marshal(object any) []byte {
	raw, _ := json.Marshal(object)
	return raw
}
