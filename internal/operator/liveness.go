package operator

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/connrotation"
)

const (
	// The lease is asked for every two seconds, by whoever leads and by whoever waits for it, so a server that lives is heard as often.
	serverSilence = 15 * time.Second
	// Every watch is sent a bookmark about once a minute where nothing else happens (bookmarkFrequency in the API server's cacher.go).
	watchSilence = 3 * time.Minute
	// How long connections that were made anew are given at most, before they are again.
	longestSilence = 2 * time.Minute
	dialTimeout    = 5 * time.Second
)

// Liveness judges the API server by what was last heard of it: an answer, an event of a watch, a bookmark. It asks nothing of its own.
//
// A server that goes without a word, or whatever stood before it, leaves connections that lead nowhere and fail nothing: TCP takes a quarter of an
// hour to see it, HTTP/2's pings 45 seconds, and pings say nothing of a watch that ended at the far side of a proxy. So all connections are made anew
// when nobody has answered for a while, in case that another server stands at the address by now; and a watch without a bookmark goes on as another,
// from where it was.
type Liveness struct {
	connections *connrotation.ConnectionTracker
	logger      *slog.Logger
	server      time.Duration // serverSilence, less in tests
	watch       time.Duration // watchSilence
	began       time.Time
	heard       atomic.Int64 // after began
}

// NewLiveness has the clients that are made of the configuration listened to.
func NewLiveness(config *rest.Config, logger *slog.Logger) *Liveness {
	l := &Liveness{
		connections: connrotation.NewConnectionTracker(), logger: logger, server: serverSilence, watch: watchSilence, began: time.Now(),
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	config.Dial = connrotation.NewDialerWithTracker(dialer.DialContext, l.connections).DialContext
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &listening{next, l} })
	return l
}

// Heard is when the API server last said anything; before it has, when this began.
func (l *Liveness) Heard() time.Time { return l.began.Add(time.Duration(l.heard.Load())) }

func (l *Liveness) note() { l.heard.Store(int64(time.Since(l.began))) }

// Run makes connections anew that nothing comes by, until the context ends.
func (l *Liveness) Run(ctx context.Context) {
	limit := l.server
	for pause(ctx, l.server/10) == nil {
		silent := time.Since(l.Heard())
		switch {
		case silent >= limit:
			l.logger.Warn("nothing is heard from the API server; its connections are made anew", "for", silent.Round(time.Second))
			l.connections.CloseAll()
			limit = silent + min(silent, longestSilence)
		case silent < l.server && limit > l.server:
			l.logger.Info("the API server is heard again")
			limit = l.server
		}
	}
}

// listening is the way of all requests.
type listening struct {
	next     http.RoundTripper
	liveness *Liveness
}

// WrappedRoundTripper is how client-go looks for what is below.
func (t *listening) WrappedRoundTripper() http.RoundTripper { return t.next }

// RoundTrip implements http.RoundTripper.
func (t *listening) RoundTrip(r *http.Request) (*http.Response, error) {
	body := &heardBody{liveness: t.liveness, done: func() {}}
	if r.URL.Query().Get("watch") == "true" {
		ctx, cancel := context.WithCancel(r.Context())
		r = r.WithContext(ctx)
		body.timer = time.AfterFunc(t.liveness.watch, func() {
			body.silent.Store(true)
			t.liveness.logger.Warn("a watch of the API server is silent; it goes on as another", "path", r.URL.Path, "for", t.liveness.watch)
			cancel()
		})
		body.done = func() {
			body.timer.Stop()
			cancel()
		}
	}
	response, err := t.next.RoundTrip(r)
	if err != nil {
		body.done()
		return nil, body.failed(err)
	}
	// Others are of whoever stands before a server that does not answer, or of one that has lost its own store.
	if response.StatusCode < http.StatusInternalServerError {
		body.counts = true
		t.liveness.note()
	}
	body.ReadCloser, response.Body = response.Body, body
	return response, nil
}

// heardBody is what an answer has, as it comes.
type heardBody struct {
	io.ReadCloser
	liveness *Liveness
	counts   bool        // as a sign of life
	timer    *time.Timer // ends the watch; nil: it is no watch
	silent   atomic.Bool // the timer has
	done     func()
}

// Read implements io.Reader.
func (b *heardBody) Read(to []byte) (int, error) {
	n, err := b.ReadCloser.Read(to)
	if n > 0 && b.counts {
		b.liveness.note()
		if b.timer != nil && err == nil {
			b.timer.Reset(b.liveness.watch)
		}
	}
	return n, b.failed(err)
}

// Close implements io.Closer.
func (b *heardBody) Close() error {
	b.done()
	return b.ReadCloser.Close()
}

// failed puts a reason in the place of the error if it is that the watch was ended here.
func (b *heardBody) failed(err error) error {
	if err != nil && err != io.EOF && b.silent.Load() {
		return errSilent{}
	}
	return err
}

// errSilent is a timeout to client-go, which then watches again from the last event and need not list everything.
type errSilent struct{}

func (errSilent) Error() string   { return "the watch is silent, bookmarks included" }
func (errSilent) Timeout() bool   { return true }
func (errSilent) Temporary() bool { return true }
