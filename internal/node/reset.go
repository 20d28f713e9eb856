package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/table"
)

// clientResetter ends the sockets of processes whose backend is gone, so that they ask again instead of waiting for an
// answer that will not come. It looks only into network namespaces that had such a client.
type clientResetter struct {
	tables *table.Tables
	kernel clientKernel
	within func(netns *os.File, do func() error) error
	end    func([]netlink.Socket) error // in the thread's network namespace
	host   uint64                       // cookie of the node's own namespace
	log    *slog.Logger

	mu    sync.Mutex
	gone  []uint32 // backends
	all   bool     // look everywhere: backends may have gone while no agent ran
	woken chan struct{}
}

// clientKernel is what ends sockets.
type clientKernel interface {
	TakeClients(backends []uint32, namespaces []uint64) (map[uint64]bool, error)
	// ResetClients ends the sockets of the thread's network namespace whose backend is gone, and returns those that it cannot.
	ResetClients() ([]datapath.DueSocket, error)
}

// A socket that is connecting while its backend goes is seen by the second look.
const secondLook = 200 * time.Millisecond

// note has the clients of backends that are gone ended.
func (r *clientResetter) note(gone []uint32) {
	if len(gone) == 0 {
		return
	}
	r.mu.Lock()
	r.gone = append(r.gone, gone...)
	r.mu.Unlock()
	r.wake()
}

// everywhere has every namespace looked through.
func (r *clientResetter) everywhere() {
	r.mu.Lock()
	r.all = true
	r.mu.Unlock()
	r.wake()
}

func (r *clientResetter) wake() {
	select {
	case r.woken <- struct{}{}:
	default:
	}
}

// Run ends clients until ctx ends. A failure is logged: the sockets then end by their own timeouts.
func (r *clientResetter) Run(ctx context.Context) error {
	for {
		select {
		case <-r.woken:
		case <-ctx.Done():
			return nil
		}
		looked, err := r.look()
		if err == nil && len(looked) > 0 && sleep(ctx, secondLook) {
			err = r.reset(looked)
		}
		if err != nil {
			r.log.Warn("some clients of backends that are gone were not reset", "error", err)
		}
	}
}

// look resets the clients of what has gone so far and says where it looked, by cookie.
func (r *clientResetter) look() (map[uint64]string, error) {
	r.mu.Lock()
	gone, all := r.gone, r.all
	r.gone, r.all = nil, false
	r.mu.Unlock()
	paths := map[uint64]string{r.host: ""}
	for row := range r.tables.Endpoints.All(r.tables.DB.ReadTxn()) {
		if row.NetnsCookie != 0 {
			paths[row.NetnsCookie] = row.NetnsPath
		}
	}
	cookies := make([]uint64, 0, len(paths))
	for cookie := range paths {
		cookies = append(cookies, cookie)
	}
	found, err := r.kernel.TakeClients(gone, cookies)
	for _, cookie := range cookies {
		if !all && !found[cookie] {
			delete(paths, cookie)
		}
	}
	return paths, errors.Join(err, r.reset(paths))
}

// reset ends what has to end in the namespaces.
func (r *clientResetter) reset(paths map[uint64]string) error {
	var errs []error
	for _, path := range paths {
		if path == "" {
			errs = append(errs, r.resetHere())
			continue
		}
		errs = append(errs, r.resetPod(path))
	}
	return errors.Join(errs...)
}

// resetPod does the same in a pod's namespace; a pod that has gone has no clients.
func (r *clientResetter) resetPod(path string) error {
	netns, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer netns.Close()
	return r.within(netns, r.resetHere)
}

// resetHere does so in the thread's network namespace. Sockets that the programs only name, before kernel 6.5, sock_diag ends.
func (r *clientResetter) resetHere() error {
	due, err := r.kernel.ResetClients()
	sockets := make([]netlink.Socket, len(due))
	for i := range due {
		sockets[i] = netlink.Socket(due[i])
	}
	return errors.Join(err, r.end(sockets))
}

// features are what the kernel has, of what the node can use. They are tried once: it stays the same kernel, and one trial ends sockets.
var features = sync.OnceValue(func() []datapath.Feature {
	diag := datapath.Feature{
		Name: "sock-diag-destroy", Available: true,
		Detail: "without it, and without kfunc-sock-destroy, clients at the socket keep waiting for a backend that is gone",
	}
	if err := netlink.TryEndSockets(); err != nil {
		diag.Available, diag.Detail = false, fmt.Sprintf("%s: %v", diag.Detail, err)
	}
	return append(datapath.Features(), diag)
})
