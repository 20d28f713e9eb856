package operator

import (
	"context"
	"maps"
	"slices"
	"time"
)

// collectEvery is how often nodes that are gone are looked for, before jitter: a tenth of the grace, as it is a little longer then.
func (c Config) collectEvery() time.Duration { return max(c.Grace/10, time.Millisecond) }

// defaultGrace is how long a node is missed before what its agent published is removed. It is longer than any lease of a sign of
// life, so that an operator that was away itself does not take the nodes that it did not hear for dead.
const defaultGrace = 10 * time.Minute

// departed are the nodes that the store has, the API server does not have, and that are not alive, with the time at which
// this leader first found each so. What happened before it led leaves no trace but these, so a node that went while
// there was no leader is found like any other; it has the full grace again.
type departed map[string]time.Time

// due takes what the store has, and says which nodes have been missed for the whole grace. A cluster without Node objects says
// nothing about who belongs to it, so nobody is missed there.
func (d departed) due(now time.Time, grace time.Duration, stored, known map[string]bool) []string {
	maps.DeleteFunc(d, func(node string, _ time.Time) bool {
		alive, has := stored[node]
		return !has || alive || known[node] || len(known) == 0
	})
	var due []string
	for node, alive := range stored {
		if alive || known[node] || len(known) == 0 {
			continue
		}
		since, missed := d[node]
		if !missed {
			d[node], since = now, now
		}
		if now.Sub(since) >= grace {
			due = append(due, node)
		}
	}
	slices.Sort(due)
	return due
}

// collect removes what agents of nodes that are gone have left. What fails is tried again the next time.
func (w *writing) collect(ctx context.Context) {
	stored, err := w.Store.Nodes(ctx)
	if err != nil {
		w.Logger.Warn("cannot tell which nodes are gone; trying again", "error", err)
		return
	}
	for _, node := range w.departed.due(time.Now(), w.Grace, stored, w.watcher.nodes()) {
		switch gone, err := w.Store.DeleteDeadNode(ctx, node); {
		case err != nil:
			w.Logger.Warn("a node that is gone stays in the store; trying again", "node", node, "error", err)
		case gone:
			w.Logger.Info("a node is neither in the API server nor alive; what its agent published is removed", "node", node)
		}
	}
}
