package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/datapath"
	"tendril.io/tendril/internal/egress"
	"tendril.io/tendril/internal/endpoint"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/ipam"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/table"
)

// Version is the release, set by the linker.
var Version = "dev"

// Agent is everything that runs on a node. Build makes one, Run runs it.
type Agent struct {
	config  Config // as it was started; what may have changed since, configuration knows
	log     *slog.Logger
	started time.Time

	configuration *configuration

	tables    *table.Tables
	links     *netlink.Handle
	uplink    uplink
	xdp       xdpState
	overlay   uint32 // ifindex; 0: native routing
	mtus      endpoint.MTUs
	book      *ipam.Book
	datapath  *datapath.Datapath
	store     *store.Client
	numbering *numbering
	policies  *policyLoop
	services  *serviceLoop
	resetter  *clientResetter
	announcer *announcer
	voice     *netlink.Announcer
	egress    *egressGateways
	pinger    *netlink.Pinger
	routes    *reconciler[*table.RouteWanted]
	endpoints *endpoint.Manager
	addresses *addressPublisher
	flows     *flow.Ring
	sockets   []*net.UnixListener // agent.sock, cni.sock
	locks     []*os.File          // of run_dir and state_dir, until Close
}

// Build makes the agent's parts, in the order in which facts flow through them. Nothing runs yet, but the datapath is
// in force: what an earlier agent left is adopted, not replaced.
func Build(ctx context.Context, config Config, log *slog.Logger) (_ *Agent, err error) {
	a := &Agent{config: config, configuration: newConfiguration(config), log: log, started: time.Now()}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"folders", a.buildFolders},
		{"store", a.buildStore},
		{"pod CIDRs", a.buildBook},
		{"links", a.buildLinks},
		{"datapath", a.buildDatapath},
		{"brains", a.buildBrains},
		{"sockets", a.buildSockets},
		{"endpoints", a.buildEndpoints},
	}
	for _, step := range steps {
		begun := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("start %s: %w", step.name, err)
		}
		log.Debug("built", "part", step.name, "took", time.Since(begun))
	}
	return a, nil
}

func (a *Agent) buildFolders(ctx context.Context) error {
	for field, folder := range map[string]string{"run_dir": a.config.RunDir, "state_dir": a.config.StateDir} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
		lock, err := lockFolder(ctx, field, folder)
		if err != nil {
			return err
		}
		a.locks = append(a.locks, lock)
	}
	return nil
}

// lockPatience is how long a start waits for the agent before it to end. One that was killed may hold its locks for
// some milliseconds after its process looks dead: its threads end one by one.
const lockPatience = 2 * time.Second

// lockFolder makes this agent the only one on a folder for as long as the file is open, the process's end included. It
// comes before everything else: a second agent must not take the sockets, the journal or the node's addresses away from
// one that runs, and the BPF folder, which has a lock of its own, may be another one.
func lockFolder(ctx context.Context, field, folder string) (*os.File, error) {
	lock, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	for begun := time.Now(); ; {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(begun) > lockPatience || !sleep(ctx, 5*time.Millisecond) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("another agent is running on it: stop that one, or give this one a folder of its own")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s %s: %w", field, folder, err), lock.Close())
	}
	return lock, nil
}

// buildLinks prepares the node's own namespace and finds out what it is connected to.
func (a *Agent) buildLinks(context.Context) (err error) {
	if a.links, err = netlink.Open(); err != nil {
		return err
	}
	// sysctls first: a pod's device inherits some of them when it is made.
	if err := a.links.PrepareNode(); err != nil {
		return err
	}
	if a.uplink, err = findUplink(a.links, a.config.Uplink); err != nil {
		return err
	}
	a.mtus = endpoint.MTU(endpoint.Underlay{
		DeviceMTU: uint32(a.uplink.mtu),
		Tunnel:    a.config.Mode == ModeVXLAN,
		IPv6:      !a.uplink.addr4.IsValid(),
	})
	if !a.mtus.Fits() {
		return fmt.Errorf("uplink %s: MTU %d leaves %d bytes for pods' packets; IPv6 needs 1280 (RFC 8200): raise the device's MTU",
			a.uplink.name, a.uplink.mtu, a.mtus.Route)
	}
	if err := a.links.EnsureNodeAddresses(slices.Concat(a.book.Routers(), a.book.Healths())); err != nil {
		return err
	}
	if a.config.Mode != ModeVXLAN {
		return a.links.RemoveOverlay()
	}
	a.overlay, err = a.links.EnsureOverlay(netlink.Overlay{Port: a.config.TunnelPort, MTU: a.mtus.Tunnel})
	return err
}

// findUplink describes the outward device: the one that is named, else that of the default route.
func findUplink(links *netlink.Handle, name string) (uplink, error) {
	if name == "" {
		hop, err := links.Uplink()
		if err != nil {
			return uplink{}, err
		}
		name = hop.Device
	}
	snapshot, err := links.Snapshot()
	if err != nil {
		return uplink{}, err
	}
	at := slices.IndexFunc(snapshot.Devices, func(d table.Device) bool { return d.Name == name })
	if at < 0 {
		return uplink{}, fmt.Errorf("uplink: no device %q on this node; name one in the configuration", name)
	}
	device := snapshot.Devices[at]
	up := uplink{name: device.Name, kind: device.Type, ifindex: device.Index, mtu: int(device.MTU), mac: device.MAC}
	for _, prefix := range device.Addrs {
		addr := prefix.Addr()
		up.networks = append(up.networks, prefix.Masked())
		switch {
		case addr.IsLinkLocalUnicast():
		case addr.Is4() && !up.addr4.IsValid():
			up.addr4 = addr
		case addr.Is6() && !up.addr6.IsValid():
			up.addr6 = addr
		}
	}
	if !up.addr4.IsValid() && !up.addr6.IsValid() {
		return uplink{}, fmt.Errorf("uplink %s: has no address; give it one before the agent starts", name)
	}
	return up, nil
}

// buildDatapath puts the programs in force and attaches them to everything that is not a pod.
func (a *Agent) buildDatapath(ctx context.Context) (err error) {
	a.datapath, err = datapath.Open(ctx, datapath.Config{
		Root: a.config.BPFRoot, Cgroup: a.config.Cgroup, Node: a.nodeConfig(&a.config), Sizes: a.config.MapSizes, Logger: a.log,
	})
	if err != nil {
		return err
	}
	a.configuration.load = func(ctx context.Context, config *Config) (uint32, error) {
		return a.datapath.Reload(ctx, a.nodeConfig(config))
	}
	a.numbering = &numbering{numbers: a.datapath.Numbers(), known: make(map[string]uint32)}
	row := datapath.Uplink{
		Name: a.uplink.name, IfIndex: a.uplink.ifindex, Addr4: a.uplink.addr4, Addr6: a.uplink.addr6, MTU: uint32(a.uplink.mtu),
	}
	if err := a.datapath.WriteUplink(&row); err != nil {
		return err
	}
	if err := a.attach(a.uplink.ifindex, a.datapath.AttachUplink, hooks{netlink.Ingress: bpf.EntryNetIn, netlink.Egress: bpf.EntryNetOut}); err != nil {
		return err
	}
	if err := a.attachXDP(); err != nil {
		return err
	}
	if a.overlay != 0 {
		if err := a.attach(a.overlay, a.datapath.AttachOverlay, hooks{netlink.Ingress: bpf.EntryTunnelIn, netlink.Egress: bpf.EntryTunnelOut}); err != nil {
			return err
		}
	}
	if err := a.attach(loopback, a.datapath.AttachLoopback, hooks{netlink.Egress: bpf.EntryLoopOut}); err != nil {
		return err
	}
	if a.config.Cgroup == "" {
		return nil
	}
	return a.datapath.AttachSockets()
}

// loopback is the loopback device's index in every network namespace (LOOPBACK_IFINDEX of the kernel).
const loopback = 1

// hooks are the entries of a device of the node, by direction.
type hooks map[netlink.Direction]bpf.Entry

// attach prefers TCX links and falls back to clsact filters where the kernel has none (before 6.6).
func (a *Agent) attach(ifindex uint32, tcx func(uint32) error, at hooks) error {
	err := tcx(ifindex)
	if _, ok := errors.AsType[*datapath.NeedClsactError](err); !ok {
		return err
	}
	classifiers := make([]netlink.Classifier, 0, len(at))
	for direction, entry := range at {
		stub, err := a.datapath.LoadStub(0, 0, entry)
		if err != nil {
			return err
		}
		defer stub.Close() // the device holds what is attached to it
		classifiers = append(classifiers, netlink.Classifier{Direction: direction, FD: stub.FD(), Name: entry.String()})
	}
	return a.links.AttachClassifiers(ifindex, classifiers...)
}

// snapshotFile is where the store's last known records are kept, in the state folder.
const snapshotFile = "store.snapshot"

// Sources that a pod sees when it reaches itself through its service: addresses that nobody else can have (RFC 3927,
// RFC 4193).
const (
	hairpinSource4 = "169.254.7.71"
	hairpinSource6 = "fd74:656e:6472:696c::71"
)

// nodeConfig is what programs know of the node when they are loaded.
func (a *Agent) nodeConfig(c *Config) bpf.NodeConfig {
	// Ports below 1024 are left to the node's own services: a masqueraded flow must not answer in their name.
	config := bpf.NodeConfig{
		Node4:                addressOf(a.uplink.addr4),
		Node6:                addressOf(a.uplink.addr6),
		Loopback4:            bpf.AddressOf(netip.MustParseAddr(hairpinSource4)),
		Loopback6:            bpf.AddressOf(netip.MustParseAddr(hairpinSource6)),
		Features:             bpf.FeatureServices | bpf.FeatureIPv4 | bpf.FeatureIPv6,
		UplinkIfIndex:        a.uplink.ifindex,
		OverlayIfIndex:       a.overlay,
		VNI:                  c.VNI,
		OverlayPort:          c.TunnelPort,
		PodMTU:               a.mtus.Device,
		TunnelMTU:            a.mtus.Tunnel,
		HalfOpenLimit:        c.HalfOpenLimit,
		OutsideHalfOpenLimit: cmp.Or(c.OutsideHalfOpenLimit, max(1, cmp.Or(c.MapSizes["flows"], uint32(bpf.CapFlows))/8)),
		NATPortMin:           1024,
		NATPortMax:           65535,
	}
	for _, router := range a.book.Routers() {
		if router.Is4() {
			config.Router4 = bpf.AddressOf(router)
		} else {
			config.Router6 = bpf.AddressOf(router)
		}
	}
	for feature, on := range map[bpf.Feature]bool{
		bpf.FeatureTunnel: a.overlay != 0, bpf.FeatureMasquerade: c.Masquerade, bpf.FeatureFlowRecords: c.FlowRecords,
	} {
		if on {
			config.Features |= feature
		}
	}
	return config
}

// addressOf is the zero address for an invalid one.
func addressOf(addr netip.Addr) bpf.Address {
	if !addr.IsValid() {
		return bpf.Address{}
	}
	return bpf.AddressOf(addr)
}

func (a *Agent) buildStore(context.Context) (err error) {
	if a.tables, err = table.New(); err != nil {
		return err
	}
	a.store, err = store.Dial(store.Config{
		Endpoints: a.config.Store, Publish: a.config.Publish, Cluster: a.config.Cluster, Node: a.config.Node,
		SnapshotPath: filepath.Join(a.config.StateDir, snapshotFile),
		JournalPath:  filepath.Join(a.config.StateDir, "publish.journal"),
		TLS:          a.config.storeFiles(), Token: a.config.StoreToken,
		Logger: a.log,
	})
	if err != nil {
		return err
	}
	a.configuration.move = a.store.Move
	return nil
}

func (a *Agent) buildBrains(context.Context) (err error) {
	facts := newFacts(a.tables, a.config, a.numbering.number)
	engine := policy.New(policy.Config{DenyLocalHost: a.config.DenyLocalHost}, a.datapath.Numbers())
	rows := &nodeRows{
		tables: a.tables, datapath: a.datapath, numbering: a.numbering, self: a.config.Node, uplink: a.uplink,
		wanted: make(map[string][]*table.RouteWanted), shown: make(map[netip.Prefix]*table.RouteWanted),
	}
	if a.overlay != 0 {
		rows.overlay = netlink.OverlayDevice
	}
	a.policies = newPolicyLoop(a.tables, facts, engine, a.datapath, rows, a.log)
	a.policies.configured = a.configuration.InForce
	a.policies.setSelf(a.selfRow())
	if a.pinger, err = netlink.OpenPinger(); err != nil {
		return err
	}
	a.egress = &egressGateways{
		tables: a.tables, self: a.config.Node, kernel: a.datapath, number: a.numbering.number, ping: a.pinger, log: a.log,
		plan: egress.New(), health: make(map[string]*egressHealth), rows: make(map[uint32]bpf.Gateway),
	}
	a.policies.egress = a.egress
	if err := a.resumeTrial(); err != nil {
		return err
	}
	brain, err := service.New(service.Config{NodeName: a.config.Node, Zone: a.config.Zone, MaglevSize: a.config.MaglevSize, DSR: a.config.LBMode == LBModeDSR}, a.datapath.Numbers())
	if err != nil {
		return err
	}
	a.resetter = &clientResetter{
		tables: a.tables, kernel: a.datapath, within: netlink.Within, end: netlink.EndSockets, host: a.datapath.NetnsCookie(), log: a.log,
		woken: make(chan struct{}, 1),
	}
	a.services = &serviceLoop{
		tables: a.tables, publisher: a.datapath, number: a.numbering.number, gone: a.resetter.note, log: a.log, brain: brain,
		self: a.config.Node, hostPorts: make(map[uint32][]serviceName), configured: a.configuration.InForce,
	}
	if err := a.buildAnnouncer(); err != nil {
		return err
	}
	a.routes = &reconciler[*table.RouteWanted]{
		name: "routes", db: a.tables.DB, table: a.tables.RoutesWanted, target: a.links.Routes(), log: a.log,
		key: func(row *table.RouteWanted) string { return row.Prefix.String() },
	}
	a.flows = flow.NewRing(a.config.FlowHistory)
	return nil
}

// buildAnnouncer gives the node a voice on its uplink's link.
func (a *Agent) buildAnnouncer() error {
	voice, err := netlink.OpenAnnouncer(a.uplink.ifindex, a.uplink.mac)
	if err != nil {
		return err
	}
	a.voice = voice
	a.announcer = &announcer{
		tables: a.tables, self: a.config.Node, mac: a.uplink.mac, kernel: a.datapath, link: voice,
		configured: a.configuration.InForce,
		lease:      a.store.Publisher().Lease, now: store.SinceBoot, log: a.log,
	}
	return nil
}

// selfRow is what this node says of itself.
func (a *Agent) selfRow() *table.Node {
	row := &table.Node{
		Name: a.config.Node, PodCIDRs: a.book.Pools(), Routers: a.book.Routers(), Healths: a.book.Healths(),
	}
	for _, addr := range []netip.Addr{a.uplink.addr4, a.uplink.addr6} {
		if addr.IsValid() {
			row.Addresses = append(row.Addresses, addr)
		}
	}
	row.Tunnel = row.Addresses[0]
	return row
}

// buildEndpoints takes over the pods that are there. Sockets exist by then, so that no deletion is queued unseen.
func (a *Agent) buildEndpoints(ctx context.Context) (err error) {
	a.addresses = &addressPublisher{publisher: a.store.Publisher(), node: a.config.Node}
	a.endpoints, err = endpoint.New(endpoint.Config{
		Node: a.config.Node, Cluster: a.config.Cluster, StateDir: a.config.StateDir, MTUs: a.mtus, Book: a.book,
		Numbers: a.datapath.Numbers(), Links: a.links, Publisher: a.addresses,
		LoadStub: func(id, generation uint32, entry bpf.Entry) (endpoint.Program, error) {
			return a.datapath.LoadStub(id, generation, entry)
		},
		IsNodeAddress: a.isNodeAddress,
		AdoptStub:     a.datapath.AdoptStub, Tables: a.tables, Log: a.log,
	})
	if err != nil {
		return err
	}
	if err := a.endpoints.Restore(ctx, a.deletions()); err != nil {
		a.log.Error("some endpoints could not be restored; their pods stay closed", "error", err)
	}
	return nil
}

// isNodeAddress says whether a device of the node has an address.
func (a *Agent) isNodeAddress(addr netip.Addr) bool {
	snapshot, err := a.links.Snapshot()
	if err != nil {
		a.log.Warn("list the node's addresses", "error", err)
		return false
	}
	return slices.ContainsFunc(snapshot.Devices, func(d table.Device) bool {
		return slices.ContainsFunc(d.Addrs, func(prefix netip.Prefix) bool { return prefix.Addr() == addr })
	})
}

// deletions is where the plugin leaves what it was asked to delete while nobody listened.
func (a *Agent) deletions() cni.Queue { return cni.NewQueue(a.config.StateDir) }

func (a *Agent) buildSockets(context.Context) error {
	for _, path := range []string{filepath.Join(a.config.RunDir, "agent.sock"), a.config.cniSocket()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove old socket: %w", err)
		}
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		if err := os.Chmod(path, 0o600); err != nil {
			return errors.Join(err, listener.Close())
		}
		a.sockets = append(a.sockets, listener)
	}
	return nil
}

// Run runs the agent until ctx ends or a part fails. The datapath goes on without it.
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	run := func(part func(context.Context) error) {
		group.Go(func() error { return part(ctx) })
	}
	settled := newSettled()
	a.routes.complete = a.store.Synced()
	run(a.tables.Run)
	run(func(ctx context.Context) error { return a.store.Run(ctx, a.tables) })
	run(a.followConfiguration)
	run(a.introduce)
	run(a.addresses.Run)
	run(a.watchKernel)
	run(func(ctx context.Context) error { return a.policies.Run(ctx, a.store.Loaded(), settled.policy) })
	run(func(ctx context.Context) error { return a.services.Run(ctx, a.store.Loaded(), settled.service) })
	run(a.resetter.Run)
	run(func(ctx context.Context) error { return a.announcer.Run(ctx, a.store.Loaded()) })
	run(func(ctx context.Context) error { return a.egress.Run(ctx, a.store.Loaded()) })
	run(func(ctx context.Context) error { return a.policies.superviseTrials(ctx, a.store.Probe) })
	run(a.pruner(settled).Run)
	run(func(ctx context.Context) error { return a.offer(ctx, settled) })
	run(func(ctx context.Context) error { return a.serveReady(ctx, settled) })
	run(a.routes.Run)
	run(a.datapath.Run)
	run(a.recordFlows)
	run(a.countLost)
	run(a.acknowledge)
	run(a.drainDeletions)
	run(func(ctx context.Context) error { return a.serveAPI(ctx, a.sockets[0]) })
	run(func(ctx context.Context) error { return cni.Serve(ctx, a.sockets[1], a.endpoints) })
	a.log.Info("agent runs", "version", Version, "mode", a.config.Mode, "uplink", a.uplink.name, "mtu", a.mtus.Route)
	return group.Wait()
}

// Close lets go of everything and removes nothing.
func (a *Agent) Close() error {
	var problems []error
	for _, socket := range a.sockets {
		if err := socket.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			problems = append(problems, err)
		}
	}
	if a.endpoints != nil {
		problems = append(problems, a.endpoints.Close())
	}
	if a.voice != nil {
		problems = append(problems, a.voice.Close())
	}
	if a.pinger != nil {
		problems = append(problems, a.pinger.Close())
	}
	if a.store != nil {
		problems = append(problems, a.store.Close())
	}
	if a.datapath != nil {
		problems = append(problems, a.datapath.Close())
	}
	if a.links != nil {
		problems = append(problems, a.links.Close())
	}
	for _, lock := range a.locks { // last: until then nobody else may touch what is being closed
		problems = append(problems, lock.Close())
	}
	return errors.Join(problems...)
}
