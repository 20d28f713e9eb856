package netlink

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	lib "github.com/vishvananda/netlink"

	"tendril.io/tendril/internal/table"
)

// Leftover is what an agent put into its node's namespace.
type Leftover struct {
	Devices     string       // how the names of pods' devices begin
	Adopted     []string     // names of programs on pods' devices that other plugins made
	Addrs       []netip.Addr // given by EnsureNodeAddresses
	Classifiers []string     // names of programs that AttachClassifiers put on devices that are not the agent's own
}

// Clear removes it, and the overlay device and the routes to other nodes. What is gone already is no error. Sysctls stay: nobody
// knows who else relies on them by now.
func (h *Handle) Clear(l Leftover) error {
	links, err := again(h.lib.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	none := iter.Seq[*table.RouteWanted](func(func(*table.RouteWanted) bool) {})
	failed := []error{h.Routes().Prune(context.Background(), none), h.RemoveOverlay(), h.RemoveNodeAddresses(l.Addrs)}
	for _, link := range links {
		switch name := link.Attrs().Name; {
		case strings.HasPrefix(name, l.Devices):
			failed = append(failed, h.RemovePair(name))
		default:
			failed = append(failed, h.closeAdopted(link, l.Adopted), h.removeClassifiers(link, l.Classifiers))
		}
	}
	return errors.Join(failed...)
}

// closeAdopted takes a device down that another plugin made and that carries programs of a pod, and the programs off it: a pod that was
// judged does not go on unjudged.
func (h *Handle) closeAdopted(link lib.Link, names []string) error {
	filters, err := h.classifiers(link)
	if err != nil || !slices.ContainsFunc(filters, func(filter lib.Filter) bool { return isNamed(filter, names) }) {
		return err
	}
	if err := h.lib.LinkSetDown(link); err != nil {
		return fmt.Errorf("set device %s down: %w", link.Attrs().Name, err)
	}
	return h.removeClassifiers(link, names)
}

// classifiers lists what is attached to a device's clsact, in both directions.
func (h *Handle) classifiers(link lib.Link) (all []lib.Filter, err error) {
	for _, parent := range []uint32{parentIngress, parentEgress} {
		filters, err := again(func() ([]lib.Filter, error) { return h.lib.FilterList(link, parent) })
		if err != nil {
			return nil, fmt.Errorf("list classifiers of %s: %w", link.Attrs().Name, err)
		}
		all = append(all, filters...)
	}
	return all, nil
}

// isNamed says whether a classifier is a program of one of these names.
func isNamed(filter lib.Filter, names []string) bool {
	program, ok := filter.(*lib.BpfFilter)
	return ok && slices.Contains(names, program.Name)
}

// removeClassifiers takes programs off a device by their names; clsact goes as well if nothing else hangs on it.
func (h *Handle) removeClassifiers(link lib.Link, names []string) error {
	filters, err := h.classifiers(link)
	if err != nil {
		return err
	}
	removed := 0
	for _, filter := range filters {
		if !isNamed(filter, names) {
			continue
		}
		if err := h.lib.FilterDel(filter); err != nil {
			return fmt.Errorf("take %s off %s: %w", filter.(*lib.BpfFilter).Name, link.Attrs().Name, err)
		}
		removed++
	}
	if removed == 0 || removed < len(filters) {
		return nil
	}
	clsact := &lib.GenericQdisc{
		QdiscAttrs: lib.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: handleClsact, Parent: parentClsact}, QdiscType: "clsact",
	}
	if err := h.lib.QdiscDel(clsact); err != nil {
		return fmt.Errorf("remove clsact of %s: %w", link.Attrs().Name, err)
	}
	return nil
}
