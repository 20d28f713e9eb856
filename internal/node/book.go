package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tendril.io/tendril/internal/ipam"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/store"
)

// podCIDRsFile keeps, in the state folder, the prefixes that the store named last.
const podCIDRsFile = "pod-cidrs.json"

// buildBook opens the book of the node's addresses.
func (a *Agent) buildBook(ctx context.Context) (err error) {
	if len(a.config.PodCIDRs) == 0 {
		if a.config.PodCIDRs, err = a.givenCIDRs(ctx, a.store.PodCIDRs, leaveCIDRs); err != nil {
			return err
		}
	}
	a.book, err = ipam.New(a.config.PodCIDRs...)
	return err
}

// askTime is how long the store may take to name the node's prefixes before those that it named last are used.
const askTime = 3 * time.Second

// givenCIDRs are the prefixes that the operator gave this node. While the store is away they are those of the last start: a node must
// come back without it. A node that never had any waits for them; one that has got others leaves the old ones first.
func (a *Agent) givenCIDRs(
	ctx context.Context, ask func(context.Context) ([]netip.Prefix, error), leave func([]netip.Prefix) error,
) ([]netip.Prefix, error) {
	path := filepath.Join(a.config.StateDir, podCIDRsFile)
	known, err := readCIDRs(path)
	if err != nil {
		return nil, err
	}
	backoff := store.Backoff{Max: askTime}
	for ctx.Err() == nil {
		given, err := a.askCIDRs(ctx, ask)
		if len(given) > 0 && len(known) > 0 && !slices.Equal(given, known) {
			a.log.Warn("this node was given other pod CIDRs", "pod_cidrs", given, "before", known)
			if err := leave(known); err != nil {
				return nil, err
			}
		}
		if len(given) > 0 {
			return given, writeCIDRs(path, given)
		}
		if len(known) > 0 {
			a.log.Warn("the store does not name this node's pod CIDRs; those of the last start are used", "pod_cidrs", known, "error", err)
			return known, nil
		}
		a.log.Warn("waiting for this node's pod CIDRs: does the operator run, and has the Node object a podCIDR?", "error", err)
		if !sleep(ctx, backoff.Next()) {
			break
		}
	}
	return nil, fmt.Errorf("wait for pod CIDRs: %w", ctx.Err())
}

// leaveCIDRs takes from the node the addresses of its own that lie in prefixes.
func leaveCIDRs(cidrs []netip.Prefix) error {
	own, err := ownAddresses(cidrs)
	if err != nil {
		return err
	}
	links, err := netlink.Open()
	if err != nil {
		return err
	}
	return errors.Join(links.RemoveNodeAddresses(own), links.Close())
}

// ownAddresses are those that the node itself has of its pods' prefixes.
func ownAddresses(cidrs []netip.Prefix) ([]netip.Addr, error) {
	if len(cidrs) == 0 { // no agent ever got as far as to have any
		return nil, nil
	}
	book, err := ipam.New(cidrs...)
	if err != nil {
		return nil, err
	}
	return append(book.Routers(), book.Healths()...), nil
}

// askCIDRs asks once. Prefixes that this agent cannot use are an error, and the node's mistake to wait out.
func (a *Agent) askCIDRs(ctx context.Context, ask func(context.Context) ([]netip.Prefix, error)) ([]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	given, err := ask(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join((Config{PodCIDRs: given}).validatePodCIDRs()...); err != nil {
		return nil, fmt.Errorf("what the store names: %w", err)
	}
	return given, nil
}

// readCIDRs reads what writeCIDRs wrote; none if it never did.
func readCIDRs(path string) (cidrs []netip.Prefix, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &cidrs)
	}
	if err != nil {
		return nil, fmt.Errorf("pod CIDRs of the last start, %s: %w", path, err)
	}
	return cidrs, nil
}

func writeCIDRs(path string, cidrs []netip.Prefix) error {
	text, err := json.Marshal(cidrs)
	if err != nil {
		return err
	}
	return replaceFile(path, text)
}
