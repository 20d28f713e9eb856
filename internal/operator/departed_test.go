package operator

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestANodeIsDueOnceItWasMissedForTheWholeGrace(t *testing.T) {
	const alive, silent = true, false
	type step struct {
		what          string
		second        int
		stored, known map[string]bool
		want          []string
	}
	in := func(names ...string) map[string]bool {
		set := map[string]bool{}
		for _, name := range names {
			set[name] = true
		}
		return set
	}
	d := departed{}
	for _, s := range []step{
		{"first seen", 0, map[string]bool{"gone": silent, "here": silent, "guest": alive}, in("here"), nil},
		{"within the grace", 59, map[string]bool{"gone": silent, "here": silent, "guest": alive}, in("here"), nil},
		{"after it", 60, map[string]bool{"gone": silent, "here": silent, "guest": alive}, in("here"), []string{"gone"}},
		{"still there", 61, map[string]bool{"gone": silent, "late": silent}, in("here"), []string{"gone"}},
		{"gone at last", 62, map[string]bool{"late": silent}, in("here"), nil},
		{"the name comes back", 63, map[string]bool{"gone": silent, "late": silent}, in("here"), nil},
		{"it was alive in between", 64, map[string]bool{"gone": silent, "late": alive}, in("here"), nil},
		{"and is silent again", 65, map[string]bool{"gone": silent, "late": silent}, in("here"), nil},
		{"one grace is over", 123, map[string]bool{"gone": silent, "late": silent}, in("here"), []string{"gone"}},
		{"a Node object came", 124, map[string]bool{"late": silent}, in("late"), nil},
		{"no Node object at all", 1000, map[string]bool{"late": silent}, nil, nil},
		{"the grace begins anew", 1001, map[string]bool{"late": silent}, in("here"), nil},
	} {
		got := d.due(time.Unix(int64(s.second), 0), time.Minute, s.stored, s.known)
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.what, diff)
		}
	}
}

func TestWhatANodeThatIsGoneLeftIsRemoved(t *testing.T) {
	c := prepare(t, node())
	c.memory.nodes = map[string]bool{"n1": false, "n2": false, "guest": true}
	c.config.Grace = time.Millisecond
	c.run()
	c.until(func() string { return cmp.Diff(map[string]bool{"n1": false, "guest": true}, c.memory.nodesNow()) })

	// Its Node object goes, too, and with it all others: nobody is left to say who belongs to the cluster.
	c.remove("nodes", "", "n1")
	c.await(0)
	before := c.memory.looks()
	c.until(func() string {
		if c.memory.looks() < before+3 {
			return "nobody looked"
		}
		return cmp.Diff(map[string]bool{"n1": false, "guest": true}, c.memory.nodesNow())
	})
}
