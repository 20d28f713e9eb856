package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"tendril.io/tendril/internal/store/server"
)

// held is an API server's Secret and ConfigMap of the authority, empty as the chart brings them. It refuses writes that do not depend on what is there,
// and checks at each that a replacement cuts nobody off.
type held struct {
	t *testing.T

	mu        sync.Mutex
	version   int
	secret    *corev1.Secret
	config    *corev1.ConfigMap
	told      map[string]time.Time // certificates in the ConfigMap, and since when without a gap
	issuing   time.Time            // since when the one that issues does
	issuers   []string             // every authority that has issued
	crash     func(write int) (before, after bool)
	writes    int
	hesitates bool
}

var errCrashed = errors.New("the replica crashed")

const (
	testLife   = 24 * time.Hour
	testSpread = 10 * time.Minute
)

func newHeld(t *testing.T) *held {
	meta := metav1.ObjectMeta{Namespace: "kube-system", Name: "tendril-authority", ResourceVersion: "0"}
	return &held{
		t: t, secret: &corev1.Secret{ObjectMeta: meta}, config: &corev1.ConfigMap{ObjectMeta: meta}, told: map[string]time.Time{},
		crash: func(int) (bool, bool) { return false, false },
	}
}

// replica is a replica's authority at it.
func (h *held) replica() Authority {
	client := fake.NewClientset()
	client.PrependReactor("*", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if h.hesitates {
			time.Sleep(time.Duration(rand.Int64N(int64(3 * time.Second))))
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		object, err := h.answer(action)
		return true, object, err
	})
	return Authority{
		Client: client, Namespace: "kube-system", Name: "tendril-authority", Make: server.MakeAuthority, Life: testLife, Logger: slog.New(slog.DiscardHandler),
	}
}

func (h *held) answer(action clienttesting.Action) (runtime.Object, error) {
	var before, after bool
	secrets := action.GetResource().Resource == "secrets"
	if patch, ok := action.(clienttesting.PatchAction); ok {
		h.writes++
		if before, after = h.crash(h.writes); before {
			return nil, errCrashed
		}
		if err := h.patch(secrets, patch.GetPatch()); err != nil {
			return nil, err
		}
		h.check()
	}
	if after {
		return nil, errCrashed
	}
	if get, ok := action.(clienttesting.GetAction); ok && get.GetName() != "tendril-authority" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: action.GetResource().Resource}, get.GetName())
	}
	if secrets {
		return h.secret.DeepCopy(), nil
	}
	return h.config.DeepCopy(), nil
}

func (h *held) patch(secrets bool, raw []byte) error {
	var patch struct {
		Metadata struct{ ResourceVersion string }
		Data     map[string]*json.RawMessage
	}
	if err := json.Unmarshal(raw, &patch); err != nil {
		return err
	}
	meta := &h.config.ObjectMeta
	if secrets {
		meta = &h.secret.ObjectMeta
	}
	if patch.Metadata.ResourceVersion == "" {
		h.t.Errorf("a write does not depend on what was read: %s", raw)
	}
	if patch.Metadata.ResourceVersion != meta.ResourceVersion {
		return apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, meta.Name, errors.New("changed"))
	}
	h.version++
	meta.ResourceVersion = strconv.Itoa(h.version)
	if secrets {
		return merge(&h.secret.Data, patch.Data)
	}
	return merge(&h.config.Data, patch.Data)
}

func merge[V any](data *map[string]V, patch map[string]*json.RawMessage) error {
	if *data == nil {
		*data = map[string]V{}
	}
	for key, raw := range patch {
		if raw == nil {
			delete(*data, key)
			continue
		}
		var value V
		if err := json.Unmarshal(*raw, &value); err != nil {
			return err
		}
		(*data)[key] = value
	}
	return nil
}

// check is at each write. Whoever issues was known to everybody for long enough, and whoever has issued within a certificate's life is still known.
func (h *held) check() {
	now, cert := time.Now(), string(h.secret.Data["tls.crt"])
	bundle := h.config.Data["ca.crt"]
	if strings.Contains(bundle, "PRIVATE") {
		h.t.Error("the config map has a key")
	}
	for cert := range h.told {
		if !strings.Contains(bundle, cert) {
			delete(h.told, cert)
		}
	}
	for _, text := range strings.SplitAfter(bundle, "-----END CERTIFICATE-----\n") {
		if _, known := h.told[text]; text != "" && !known {
			h.told[text] = now
		}
	}
	if n := len(h.issuers); cert != "" && (n == 0 || h.issuers[n-1] != cert) {
		if since, known := h.told[cert]; n > 0 && (!known || now.Sub(since) < testSpread) {
			h.t.Errorf("it issues when agents have been told of it: %t, for %v", known, now.Sub(since))
		}
		h.issuers, h.issuing = append(h.issuers, cert), now
	}
	if n := len(h.issuers); n > 1 && now.Sub(h.issuing) < testLife+testSpread && !strings.Contains(bundle, h.issuers[n-2]) {
		h.t.Errorf("certificates of the one before are good, and it is not believed any more %v after it issued last", now.Sub(h.issuing))
	}
}

// replace is `kubectl annotate`.
func (h *held) replace(value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.version++
	h.secret.ResourceVersion = strconv.Itoa(h.version)
	h.secret.Annotations = map[string]string{AnnotationReplace: value}
}

// state is which keys there are, and how many authorities have issued.
func (h *held) state() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(h.secret.Data)), func(key string) bool { return key == replacedFor || key == stageSince })
	return fmt.Sprintf("%s; %d told; %d issued", strings.Join(keys, " "), strings.Count(h.config.Data["ca.crt"], "BEGIN"), len(h.issuers))
}

// stage is what the ConfigMap says of a replacement: its stage, and how much of it is left.
func (h *held) stage() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	ends, err := time.Parse(time.RFC3339, h.config.Data["stage-ends"])
	if h.config.Data["stage"] == "" || err != nil {
		return h.config.Data["stage"] + h.config.Data["stage-ends"]
	}
	return fmt.Sprintf("%s for %v", h.config.Data["stage"], time.Until(ends).Round(5*time.Minute))
}

// run keeps and follows until the context ends, and says what is used.
func run(ctx context.Context, a Authority, use func(AuthorityKeys)) error {
	keys, err := a.Keep(ctx)
	if err != nil {
		return err
	}
	use(keys)
	a.Follow(ctx, func(keys AuthorityKeys) error { use(keys); return nil })
	return nil
}

const (
	whole    = "tls.crt tls.key; 1 told; "
	prepared = "next.crt next.key tls.crt tls.key; 2 told; "
	switched = "previous.crt tls.crt tls.key; 2 told; "
)

func TestAnAuthorityIsReplacedInThreeStagesWhenSomebodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHeld(t)
		ctx, cancel := context.WithCancel(t.Context())
		var used []AuthorityKeys
		var following sync.WaitGroup
		following.Go(func() { run(ctx, h.replica(), func(keys AuthorityKeys) { used = append(used, keys) }) })
		at := func(after time.Duration, keys string, issued int, said string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got, want := h.state()+"; "+h.stage(), fmt.Sprintf("%s%d issued; %s", keys, issued, said); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		at(7*24*time.Hour, whole, 1, "")
		for round := range 2 {
			h.replace(fmt.Sprint("round ", round))
			at(time.Minute, prepared, round+1, "told for 10m0s")
			at(testSpread-2*time.Minute, prepared, round+1, "told for 0s")
			at(3*time.Minute, switched, round+2, "issues for 24h10m0s")
			at(testLife, switched, round+2, "issues for 10m0s")
			at(testSpread+2*time.Minute, whole, round+2, "")
		}
		at(7*24*time.Hour, whole, 3, "")
		cancel()
		following.Wait()
		h.mu.Lock()
		defer h.mu.Unlock()
		if last := used[len(used)-1]; string(last.Cert) != h.issuers[2] || string(last.Key) != string(h.secret.Data["tls.key"]) || string(last.Believed) != h.config.Data["ca.crt"] {
			t.Error("what is used last is not what is in the secret")
		}
	})
}

func TestAnAuthorityIsReplacedByItselfBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHeld(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a := h.replica()
		a.Poll = 6 * time.Hour
		go run(ctx, a, func(AuthorityKeys) {})
		time.Sleep(365 * 24 * time.Hour * 88 / 10)
		if got := h.state(); got != whole+"1 issued" {
			t.Errorf("more than a year before its end: got %s", got)
		}
		time.Sleep(365 * 24 * time.Hour * 3 / 10)
		if got := h.state(); got != whole+"2 issued" {
			t.Errorf("less than a year before its end: got %s", got)
		}
	})
}

// Every write of a life with one replacement is the last of the replica that makes it, once before it is done and once after.
func TestAReplacementGoesOnWhereAReplicaCrashed(t *testing.T) {
	for crashed := 1; crashed <= 10; crashed++ {
		for _, done := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				h := newHeld(t)
				h.crash = func(write int) (bool, bool) { return write == crashed && !done, write == crashed && done }
				ctx, cancel := context.WithCancel(t.Context())
				var following sync.WaitGroup
				replica := h.replica()
				following.Go(func() {
					for ctx.Err() == nil { // each time anew, as after a crash
						one, end := context.WithTimeout(ctx, 10*time.Minute)
						_ = run(one, replica, func(AuthorityKeys) {})
						end()
						time.Sleep(time.Second)
					}
				})
				time.Sleep(time.Minute)
				h.replace("now")
				time.Sleep(testLife + 3*testSpread)
				if got := h.state(); got != whole+"2 issued" {
					t.Errorf("write %d, done: %t: got %s", crashed, done, got)
				}
				if h.writes < crashed {
					t.Errorf("there is no write %d", crashed)
				}
				cancel()
				following.Wait()
			})
		}
	}
}

func TestReplicasThatRaceAndFailReplaceOneAuthorityByOne(t *testing.T) {
	for range 4 {
		synctest.Test(t, func(t *testing.T) {
			h := newHeld(t)
			h.hesitates = true
			h.crash = func(int) (bool, bool) { n := rand.IntN(10); return n == 0, n == 1 }
			ctx, cancel := context.WithCancel(t.Context())
			var following sync.WaitGroup
			for range 3 {
				replica := h.replica()
				following.Go(func() {
					for ctx.Err() == nil {
						one, end := context.WithTimeout(ctx, rand.N(2*time.Hour))
						_ = run(one, replica, func(keys AuthorityKeys) {
							if !strings.Contains(string(keys.Believed), string(keys.Cert)) {
								t.Error("the one that issues is not believed")
							}
						})
						end()
						time.Sleep(time.Second)
					}
				})
			}
			time.Sleep(5 * time.Minute)
			for round := range 3 {
				h.replace(fmt.Sprint(round))
				time.Sleep(testLife + 4*testSpread)
				if got, want := h.state(), whole+fmt.Sprintf("%d issued", round+2); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			cancel()
			following.Wait()
		})
	}
}

func TestTheWaitBeginsAnewWhenAgentsWereNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHeld(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go run(ctx, h.replica(), func(AuthorityKeys) {})
		time.Sleep(time.Minute)
		h.replace("now")
		time.Sleep(testSpread - time.Minute)
		h.mu.Lock()
		h.config.Data = map[string]string{"ca.crt": h.issuers[0]} // somebody puts back what was there
		h.check()
		h.mu.Unlock()
		time.Sleep(testSpread - time.Minute)
		if got := h.state() + "; " + h.stage(); got != prepared+"1 issued; told for 0s" {
			t.Errorf("got %s", got)
		}
		time.Sleep(3 * time.Minute)
		if got := h.state(); got != switched+"2 issued" {
			t.Errorf("got %s", got)
		}
	})
}

func TestASecretThatCannotBeUsedIsNamedAndLeftAsItIs(t *testing.T) {
	cert, key, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	other, otherKey, err := server.MakeAuthority()
	if err != nil {
		t.Fatal(err)
	}
	good := map[string][]byte{"tls.crt": cert, "tls.key": key}
	for name, test := range map[string]struct {
		change map[string][]byte
		want   string
	}{
		"no key":                {map[string][]byte{"tls.key": nil}, "tls.crt, tls.key: "},
		"only a next one":       {map[string][]byte{"tls.crt": nil, "tls.key": nil, "next.crt": other, "next.key": otherKey}, "put back what was there, or remove all keys"},
		"another's key":         {map[string][]byte{"tls.key": otherKey}, "does not match"},
		"next without key":      {map[string][]byte{"next.crt": other}, "next.crt, next.key: "},
		"next of another key":   {map[string][]byte{"next.crt": other, "next.key": key}, "remove both keys"},
		"two certificates":      {map[string][]byte{"next.crt": slices.Concat(other, cert), "next.key": otherKey}, "not one certificate"},
		"previous is text":      {map[string][]byte{"previous.crt": []byte("text")}, "previous.crt: not one certificate in PEM; put back"},
		"two stages":            {map[string][]byte{"previous.crt": other, "next.crt": other, "next.key": otherKey}, "remove next.crt and next.key"},
		"since is not a time":   {map[string][]byte{"next.crt": other, "next.key": otherKey, "since": []byte("noon")}, "since: "},
		"previous is no CA's":   {map[string][]byte{"previous.crt": key}, "previous.crt: "},
		"everything is removed": {map[string][]byte{"tls.crt": nil, "tls.key": nil}, "are gone; put them back, or restart the operator"},
	} {
		h := newHeld(t)
		h.secret.Data = maps.Clone(good)
		a := h.replica()
		if _, err := a.Keep(t.Context()); err != nil {
			t.Fatal(err)
		}
		maps.Copy(h.secret.Data, test.change)
		h.secret.Annotations = map[string]string{AnnotationReplace: "now"}
		before, writes := maps.Clone(h.secret.Data), h.writes
		for range 2 {
			_, err := a.settle(t.Context(), false)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "secret kube-system/tendril-authority") {
				t.Errorf("%s: got %v, want %q", name, err, test.want)
			} else if told := h.config.Data["problem"]; told != err.Error() {
				t.Errorf("%s: the ConfigMap says %q, the log %q", name, told, err)
			}
		}
		if h.writes != writes+1 || !reflect.DeepEqual(h.secret.Data, before) {
			t.Errorf("%s: %d writes, want one, of the problem", name, h.writes-writes)
		}
		h.secret.Data, h.secret.Annotations, h.issuers = maps.Clone(good), nil, nil // what the changes put there had not been told
		if _, err := a.settle(t.Context(), false); err != nil || h.config.Data["problem"] != "" {
			t.Errorf("%s: it is mended, and still said: %q, %v", name, h.config.Data["problem"], err)
		}
	}
	a := newHeld(t).replica()
	a.Name = "none"
	if _, err := a.Keep(t.Context()); err == nil || !strings.Contains(err.Error(), "kube-system/none") {
		t.Errorf("without a Secret: got %v", err)
	}
}
