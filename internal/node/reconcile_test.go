package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"tendril.io/tendril/internal/table"
)

// fakeRoutes is a target whose operations fail on demand.
type fakeRoutes struct {
	mu     sync.Mutex
	has    map[netip.Prefix]bool
	broken map[netip.Prefix]int // so many operations on a prefix fail
}

func (f *fakeRoutes) Update(_ context.Context, row *table.RouteWanted) error {
	return f.do(row, func() { f.has[row.Prefix] = true })
}

func (f *fakeRoutes) Delete(_ context.Context, row *table.RouteWanted) error {
	return f.do(row, func() { delete(f.has, row.Prefix) })
}

func (f *fakeRoutes) do(row *table.RouteWanted, change func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken[row.Prefix] > 0 {
		f.broken[row.Prefix]--
		return errors.New("no such device")
	}
	change()
	return nil
}

func (f *fakeRoutes) Prune(_ context.Context, rows iter.Seq[*table.RouteWanted]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	wanted := make(map[netip.Prefix]bool)
	for row := range rows {
		wanted[row.Prefix] = true
	}
	maps.DeleteFunc(f.has, func(prefix netip.Prefix, _ bool) bool { return !wanted[prefix] })
	return nil
}

func (f *fakeRoutes) list() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprint(slices.SortedFunc(maps.Keys(f.has), netip.Prefix.Compare))
}

func TestRoutesBecomeWhatTheTableSaysDespiteFailuresAndArePrunedOnlyWhenComplete(t *testing.T) {
	tables, err := table.New()
	if err != nil {
		t.Fatal(err)
	}
	stale, flaky, plain := netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("10.2.0.0/24"), netip.MustParsePrefix("10.3.0.0/24")
	routes := &fakeRoutes{has: map[netip.Prefix]bool{stale: true}, broken: map[netip.Prefix]int{flaky: 3}}
	complete := make(chan struct{})
	r := &reconciler[*table.RouteWanted]{
		name: "routes", db: tables.DB, table: tables.RoutesWanted, target: routes, complete: complete,
		key: func(row *table.RouteWanted) string { return row.Prefix.String() }, log: slog.New(slog.DiscardHandler),
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()

	txn := tables.DB.WriteTxn(tables.RoutesWanted)
	for _, prefix := range []netip.Prefix{flaky, plain} {
		if _, _, err := tables.RoutesWanted.Insert(txn, &table.RouteWanted{Prefix: prefix, Device: "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	txn.Commit()
	eventually(t, "both routes are there, and the stale one still is", func() bool {
		return routes.list() == "[10.2.0.0/24 10.3.0.0/24 10.9.0.0/24]"
	})
	close(complete)
	eventually(t, "the stale route goes once the table is complete", func() bool {
		return routes.list() == "[10.2.0.0/24 10.3.0.0/24]"
	})
	txn = tables.DB.WriteTxn(tables.RoutesWanted)
	if _, _, err := tables.RoutesWanted.Delete(txn, &table.RouteWanted{Prefix: plain, Device: "eth0"}); err != nil {
		t.Fatal(err)
	}
	txn.Commit()
	eventually(t, "a deleted row's route goes", func() bool { return routes.list() == "[10.2.0.0/24]" })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
