package node

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// configuration is what the agent goes by: what it was started with, and since then what its file says of the settings that
// may change under it. Who goes by one of those asks InForce.
type configuration struct {
	// load swaps the datapath for one that is loaded with a configuration, and returns its version.
	load func(ctx context.Context, config *Config) (uint32, error)
	// move has the store's client go to other addresses; it refuses such as can be none.
	move     func(store, publish []string) error
	applying sync.Mutex // a load, and that its configuration is in force, are one step; before mu

	mu      sync.Mutex
	inForce *Config   // nobody changes it
	since   time.Time // when it came into force
	changed chan struct{}
	wanted  *Config // what the file said when it could last be read
	refused error   // why the file is not followed as it is now; nil: it is
	remedy  string
}

func newConfiguration(config Config) *configuration {
	return &configuration{inForce: &config, wanted: &config, since: time.Now(), changed: make(chan struct{})}
}

// InForce is the configuration in force, and what is closed when it is another.
func (c *configuration) InForce() (config *Config, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inForce, c.changed
}

// refuse notes that the file is not followed, and reports whether that is news.
func (c *configuration) refuse(err error, remedy string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	news := c.refused == nil || c.refused.Error() != err.Error()
	c.refused, c.remedy = err, remedy
	return news
}

// adopt puts a configuration into force, which is as much of the file's as can be.
func (c *configuration) adopt(next, wanted *Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	differs := len(changes(c.inForce, next)) > 0
	c.inForce, c.wanted, c.refused = next, wanted, nil
	if differs {
		c.since = time.Now()
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// waiting lists what waits for the next start of the agent.
func (c *configuration) waiting() []change {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(changes(c.inForce, c.wanted), func(ch change) bool { return ch.effect != effectRestart })
}

// problems are a file that is not followed, and what waits for a restart.
func (c *configuration) problems() []*agentv1.Problem {
	waiting := c.waiting()
	c.mu.Lock()
	defer c.mu.Unlock()
	file := "configuration " + c.inForce.origin.path
	var all []*agentv1.Problem
	for _, err := range mistakes(c.refused) {
		all = append(all, &agentv1.Problem{Object: file, Message: err.Error(), Remedy: c.remedy})
	}
	for _, ch := range waiting {
		all = append(all, &agentv1.Problem{
			Object: file, Message: fmt.Sprintf("%s: %s is in force, the file says %s, which waits for a restart of the agent", ch.key, orNone(ch.was), orNone(ch.is)),
			Remedy: "restart the agent, or take the change back",
		})
	}
	return all
}

// orNone shows a value that may be missing.
func orNone(text string) string { return cmp.Or(text, "nothing") }

// mistakes takes joined errors apart, however often they were wrapped.
func mistakes(err error) []error {
	for at := err; at != nil; {
		switch e := at.(type) {
		case interface{ Unwrap() []error }:
			return e.Unwrap()
		case interface{ Unwrap() error }:
			at = e.Unwrap()
		default:
			return []error{err}
		}
	}
	return nil
}

const (
	// lookAgain is how often the file is read without being told of a change: not every file system tells, and not every
	// place that a link points to is watched.
	lookAgain = time.Minute
	// applyAgain is how soon a change is tried again that was valid and could not be put into force.
	applyAgain = 10 * time.Second
)

// followConfiguration keeps to the configuration file until ctx ends. It watches the file's folder: an editor replaces the file, and
// kubelet, of a ConfigMap, the link "..data" in the folder, through which the file's own link goes.
func (a *Agent) followConfiguration(ctx context.Context) error {
	path := a.config.origin.path
	if path == "" {
		return nil
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil { // as where root has used up its inotify instances
		a.log.Warn("watch the configuration's folder; its file is read once a minute instead", "file", path, "error", err)
		watcher = &fsnotify.Watcher{} // tells nothing
	} else {
		defer watcher.Close()
	}
	due := time.Now()
	soon := func() { // what is due already is not put off: something in the folder may change all the time
		if gathered := time.Now().Add(gathering); gathered.Before(due) {
			due = gathered // an editor may not have written all of it
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			soon()
			continue
		case lost := <-watcher.Errors:
			a.log.Warn("watch the configuration's folder", "file", path, "error", lost)
			soon()
			continue
		case <-time.After(time.Until(due)):
		}
		if err == nil { // each time, since the folder may be another: watched before it is read, so that no change falls between
			if lost := watcher.Add(filepath.Dir(path)); lost != nil {
				a.log.Warn("watch the configuration's folder; will try again", "file", path, "error", lost)
			}
		}
		due = time.Now().Add(jittered(lookAgain))
		if !a.takeOver(ctx) {
			due = time.Now().Add(jittered(applyAgain))
		}
	}
}

// takeOver has the agent go by its file as far as it can without a restart: all of it or, if the file has a mistake, none. It reports
// false if the file is right, and the kernel did not take it.
func (a *Agent) takeOver(ctx context.Context) bool {
	c := a.configuration
	wanted, err := Load(a.config.origin.path, a.config.origin.node)
	if err != nil {
		if c.refuse(err, "correct the file: until then everything stays as it was, but an agent would not start with it") {
			a.log.Error("configuration refused; what was in force stays in force", "error", err)
		}
		return true
	}
	before := c.wanted // nobody else writes it
	if err := a.putInForce(ctx, &wanted); err != nil {
		if c.refuse(err, "take the change back if this lasts: until then everything stays as it was; it is tried again all the time") {
			a.log.Error("put a changed configuration into force; will try again", "error", err)
		}
		return false
	}
	for _, ch := range changes(before, &wanted) {
		a.log.Info("configuration changed", "key", ch.key, "from", ch.was, "to", ch.is, "counts", ch.effect)
	}
	return true
}

// putInForce makes wanted the configuration in force, but for what needs a restart. The kernel comes first: it may refuse.
func (a *Agent) putInForce(ctx context.Context, wanted *Config) error {
	c := a.configuration
	c.applying.Lock()
	defer c.applying.Unlock()
	inForce, _ := c.InForce()
	next := inForce.followed(wanted)
	if !slices.Equal(next.Store, inForce.Store) || !slices.Equal(next.Publish, inForce.Publish) {
		if err := c.move(next.Store, next.Publish); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(changes(inForce, next), func(ch change) bool { return ch.effect == effectReload }) {
		if _, err := c.load(ctx, next); err != nil {
			return err
		}
	}
	a.flows.Resize(next.FlowHistory)
	c.adopt(next, wanted)
	return nil
}

// reload loads the datapath anew with the configuration in force.
func (c *configuration) reload(ctx context.Context) (version uint32, err error) {
	c.applying.Lock()
	defer c.applying.Unlock()
	config, _ := c.InForce()
	return c.load(ctx, config)
}

// showConfiguration prints every setting.
func showConfiguration(a *Agent) (header []string, rows [][]string) {
	c := a.configuration
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range settings() {
		rows = append(rows, []string{s.key, string(s.effect), cmp.Or(s.text(c.inForce), "-"), cmp.Or(s.text(c.wanted), "-")})
	}
	return []string{"key", "change", "in force", "file"}, rows
}

// message says how far the file is followed.
func (c *configuration) message() *agentv1.Configuration {
	waiting := c.waiting()
	c.mu.Lock()
	defer c.mu.Unlock()
	message := &agentv1.Configuration{
		File: c.inForce.origin.path, Digest: c.inForce.origin.digest, SinceUnixNano: c.since.UnixNano(), Refused: c.refused != nil,
	}
	for _, ch := range waiting {
		message.Waiting = append(message.Waiting, &agentv1.Setting{Key: ch.key, InForce: ch.was, Wanted: ch.is})
	}
	return message
}
