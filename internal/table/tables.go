package table

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/statedb"
)

// Tables is every table of an agent that holds rows, and the database that gives snapshots across them.
type Tables struct {
	DB *statedb.DB

	// From the store.
	Nodes          statedb.RWTable[*Node]
	Pods           statedb.RWTable[*Pod]
	IPs            statedb.RWTable[*IP]
	LabelSets      statedb.RWTable[*LabelSet]
	Namespaces     statedb.RWTable[*Namespace]
	NodeLabels     statedb.RWTable[*NodeLabels]
	Alive          statedb.RWTable[*Alive]
	CIDRGroups     statedb.RWTable[*CIDRGroup]
	EgressGateways statedb.RWTable[*EgressGateway]
	Services       statedb.RWTable[*Service]
	Backends       statedb.RWTable[*Backends]
	Policies       statedb.RWTable[*Policy]
	Counters       statedb.RWTable[*Counter]

	// From the CNI plugin and the kernel.
	Endpoints statedb.RWTable[*Endpoint]
	Devices   statedb.RWTable[*Device]
	Routes    statedb.RWTable[*Route]

	// Derived, by the node from Nodes.
	RoutesWanted statedb.RWTable[*RouteWanted]

	known []known // in the order of the fields
}

// known is what printing needs to know of a table.
type known struct {
	meta  statedb.TableMeta
	about string
}

// New makes a database with all tables, empty.
func New() (*Tables, error) {
	t := &Tables{DB: statedb.New(statedb.WithMetrics(&statedb.NopMetrics{}))}
	steps := []func(*Tables) error{addStored, addLocal}
	for _, step := range steps {
		if err := step(t); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Run collects deleted rows that every reader of changes has seen, until the context ends. Tables can be read and
// written without it, but then grow.
func (t *Tables) Run(ctx context.Context) error {
	if err := t.DB.Start(); err != nil {
		return fmt.Errorf("start tables: %w", err)
	}
	<-ctx.Done()
	return t.DB.Stop()
}

// Stored returns the tables that the store fills, for one transaction over all of them.
func (t *Tables) Stored() []statedb.TableMeta {
	return []statedb.TableMeta{
		t.Nodes, t.Pods, t.IPs, t.LabelSets, t.Namespaces, t.NodeLabels, t.Alive, t.CIDRGroups, t.EgressGateways, t.Services, t.Backends, t.Policies,
		t.Counters,
	}
}

// Info says how a table stands.
type Info struct {
	Name     string
	About    string
	Rows     int
	Revision uint64 // rises with each change of the table
}

// List describes every table, in the order in which information flows through them.
func (t *Tables) List(txn statedb.ReadTxn) []Info {
	infos := make([]Info, 0, len(t.known))
	for _, k := range t.known {
		infos = append(infos, Info{k.meta.Name(), k.about, k.meta.NumObjects(txn), k.meta.Revision(txn)})
	}
	return infos
}

// Show prints a table: its header, and its rows in the order of their primary key.
func (t *Tables) Show(txn statedb.ReadTxn, name string) (header []string, rows [][]string, err error) {
	at := slices.IndexFunc(t.known, func(k known) bool { return k.meta.Name() == name })
	if at < 0 {
		return nil, nil, fmt.Errorf("table %q does not exist; tables are %s", name, strings.Join(t.names(), ", "))
	}
	table := statedb.AnyTable{Meta: t.known[at].meta}
	for row := range table.All(txn) {
		rows = append(rows, table.TableRow(row))
	}
	return table.TableHeader(), rows, nil
}

func (t *Tables) names() []string {
	names := make([]string, 0, len(t.known))
	for _, k := range t.known {
		names = append(names, k.meta.Name())
	}
	return names
}

// add makes a table and puts it into its field of Tables.
func add[Row statedb.TableWritable](t *Tables, field *statedb.RWTable[Row], name, about string,
	primary statedb.Indexer[Row], secondary ...statedb.Indexer[Row],
) error {
	made, err := statedb.NewTable(t.DB, name, primary, secondary...)
	if err != nil {
		return fmt.Errorf("make table %s: %w", name, err)
	}
	*field = made
	t.known = append(t.known, known{made, about})
	return nil
}

// first returns the first error of a list of steps already taken.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func addStored(t *Tables) error {
	return first(
		add(t, &t.Nodes, "nodes", "nodes of the cluster", nodeByName()),
		add(t, &t.Pods, "pods", "pods of all nodes, as the operator knows them",
			podByKey(), podByName(), podByUID(), podByLabels()),
		add(t, &t.IPs, "ips", "addresses that nodes' agents gave to pods", ipByKey(), ipByAddr(), ipByPodUID()),
		add(t, &t.LabelSets, "labelsets", "label sets by content hash", labelSetByHash()),
		add(t, &t.Namespaces, "namespaces", "labels of namespaces", namespaceByName()),
		add(t, &t.NodeLabels, "nodelabels", "labels of nodes", nodeLabelsByNode()),
		add(t, &t.Alive, "alive", "nodes whose agents are alive", aliveByNode()),
		add(t, &t.CIDRGroups, "cidrgroups", "address ranges that policies name", cidrGroupByName()),
		add(t, &t.EgressGateways, "egressgateways", "by which nodes pods leave the cluster", egressGatewayByName()),
		add(t, &t.Services, "services", "services as declared", serviceByName()),
		add(t, &t.Backends, "backends", "backends of services, one row a slice", backendsByKey()),
		add(t, &t.Policies, "policies", "policies as written", policyByKey()),
		add(t, &t.Counters, "counters", "highest revisions that the store gave out", counterByKind()),
	)
}

func addLocal(t *Tables) error {
	return first(
		add(t, &t.Endpoints, "endpoints", "pods of this node",
			endpointByID(), endpointByIP(), endpointByPod()),
		add(t, &t.Devices, "devices", "network devices of this node", deviceByIndex()),
		add(t, &t.Routes, "routes", "routes of this node, from the kernel", routeByKey()),
		add(t, &t.RoutesWanted, "routes_wanted", "routes that this node should have", routeWantedByKey()),
	)
}
