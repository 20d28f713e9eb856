package store

import (
	"fmt"
	"iter"
	"net/netip"
	"reflect"

	"github.com/cilium/statedb"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/table"
)

// A shelf is where the records of one kind stand as rows.
type shelf interface {
	meta() statedb.TableMeta
	// put turns a record into a row and says whether that changed the table. A record that cannot be a row is an
	// error and leaves the row that was there. key is the event's, parsed.
	put(txn statedb.WriteTxn, key Key, e event) (changed bool, err error)
	remove(txn statedb.WriteTxn, key Key) (removed bool)
	keys(txn statedb.ReadTxn) iter.Seq[Key]
}

// rows is the shelf of one kind.
type rows[Row any] struct {
	// Where the rows of the kind stand.
	table statedb.RWTable[*Row]
	// Decodes a record and judges it: an error keeps it out.
	row func(Key, event) (*Row, error)
	// Finds the row of a key. text saves putting the key together again, where an index is by the same text.
	query func(key Key, text string) statedb.Query[*Row]
	// The way back, to find rows that the store no longer has.
	key func(*Row) Key
}

func (s *rows[Row]) meta() statedb.TableMeta { return s.table }

func (s *rows[Row]) put(txn statedb.WriteTxn, key Key, e event) (bool, error) {
	row, err := s.row(key, e)
	if err != nil {
		return false, err
	}
	// A row that is equal is left alone: readers of changes are not woken for nothing.
	if old, _, had := s.table.Get(txn, s.query(key, e.key)); had && reflect.DeepEqual(old, row) {
		return false, nil
	}
	if _, _, err := s.table.Insert(txn, row); err != nil {
		return false, fmt.Errorf("table %s: %w", s.table.Name(), err)
	}
	return true, nil
}

func (s *rows[Row]) remove(txn statedb.WriteTxn, key Key) bool {
	row, _, had := s.table.Get(txn, s.query(key, key.String()))
	if had {
		_, had, _ = s.table.Delete(txn, row)
	}
	return had
}

func (s *rows[Row]) keys(txn statedb.ReadTxn) iter.Seq[Key] {
	return func(yield func(Key) bool) {
		for row := range s.table.All(txn) {
			if !yield(s.key(row)) {
				return
			}
		}
	}
}

// byMessage decodes records into the same message again and again; row reads it before the next one comes.
func byMessage[Message proto.Message, Row any](scratch Message, row func(Key, Message) (*Row, error)) func(Key, event) (*Row, error) {
	return func(key Key, e event) (*Row, error) {
		if err := proto.Unmarshal(e.value, scratch); err != nil {
			return nil, err
		}
		return row(key, scratch)
	}
}

// shelves makes a shelf for each kind that becomes rows.
func shelves(t *table.Tables) map[Kind]shelf {
	return map[Kind]shelf{
		KindNode: &rows[table.Node]{
			t.Nodes, byMessage(&storev1.Node{}, nodeRow),
			func(k Key, _ string) statedb.Query[*table.Node] { return table.NodeByName(k.First) },
			func(n *table.Node) Key { return NodeKey(n.Name) },
		},
		KindPod: &rows[table.Pod]{
			t.Pods, newPodReader().row,
			func(_ Key, text string) statedb.Query[*table.Pod] { return table.PodByKey(text[len(KindPod)+1:]) },
			func(p *table.Pod) Key { return PodKey(p.Node, p.Namespace, p.Name) },
		},
		KindIP: &rows[table.IP]{t.IPs, byMessage(&storev1.IP{}, ipRow), ipQuery, ipKeyOf},
		KindLabels: &rows[table.LabelSet]{
			t.LabelSets, byMessage(&storev1.LabelSet{}, labelSetRow), labelsQuery,
			func(l *table.LabelSet) Key { return LabelsKey(l.Hash) },
		},
		KindNamespace: &rows[table.Namespace]{
			t.Namespaces, byMessage(&storev1.Namespace{}, namespaceRow),
			func(k Key, _ string) statedb.Query[*table.Namespace] { return table.NamespaceByName(k.First) },
			func(n *table.Namespace) Key { return NamespaceKey(n.Name) },
		},
		KindNodeLabels: &rows[table.NodeLabels]{
			t.NodeLabels, byMessage(&storev1.NodeLabels{}, nodeLabelsRow),
			func(k Key, _ string) statedb.Query[*table.NodeLabels] { return table.NodeLabelsByNode(k.First) },
			func(n *table.NodeLabels) Key { return NodeLabelsKey(n.Node) },
		},
		KindAlive: &rows[table.Alive]{
			t.Alive, byMessage(&storev1.Alive{}, aliveRow),
			func(k Key, _ string) statedb.Query[*table.Alive] { return table.AliveByNode(k.First) },
			func(a *table.Alive) Key { return AliveKey(a.Node) },
		},
		KindCIDRGroup: &rows[table.CIDRGroup]{
			t.CIDRGroups, byMessage(&storev1.CIDRGroup{}, cidrGroupRow),
			func(k Key, _ string) statedb.Query[*table.CIDRGroup] { return table.CIDRGroupByName(k.First) },
			func(g *table.CIDRGroup) Key { return CIDRGroupKey(g.Name) },
		},
		KindEgress: &rows[table.EgressGateway]{
			t.EgressGateways, byMessage(&storev1.EgressGateway{}, egressRow),
			func(k Key, _ string) statedb.Query[*table.EgressGateway] { return table.EgressGatewayByName(k.First) },
			func(g *table.EgressGateway) Key { return EgressKey(g.Name) },
		},
		KindService: &rows[table.Service]{
			t.Services, byMessage(&storev1.Service{}, serviceRow),
			func(k Key, _ string) statedb.Query[*table.Service] { return table.ServiceByName(k.First, k.Second) },
			func(s *table.Service) Key { return ServiceKey(s.Namespace, s.Name) },
		},
		KindEndpoints: &rows[table.Backends]{
			t.Backends, byMessage(&storev1.Endpoints{}, backendsRow),
			func(k Key, _ string) statedb.Query[*table.Backends] {
				return table.BackendsByKey(k.First, k.Second, k.Third)
			},
			func(b *table.Backends) Key { return EndpointsKey(b.Namespace, b.Service, b.Slice) },
		},
		KindCounter: &rows[table.Counter]{
			t.Counters, byMessage(&storev1.Synced{}, counterRow),
			func(k Key, _ string) statedb.Query[*table.Counter] { return table.CounterByKind(k.First) },
			func(c *table.Counter) Key { return Key{Kind: KindCounter, First: c.Kind} },
		},
		KindPolicy: &rows[table.Policy]{t.Policies, byMessage(&storev1.Policy{}, policyRow), policyQuery, policyKeyOf},
	}
}

// Queries and keys of the kinds whose keys are not simply names.
func ipQuery(k Key, _ string) statedb.Query[*table.IP] {
	at, _ := netip.ParseAddr(k.Second) // checked when the key was parsed
	return table.IPByKey(k.First, at)
}

func ipKeyOf(ip *table.IP) Key { return IPKey(ip.Node, ip.Addr) }

func labelsQuery(k Key, _ string) statedb.Query[*table.LabelSet] {
	hash, _ := parseHash(k.First) // checked when the key was parsed
	return table.LabelSetByHash(hash)
}

func policyQuery(k Key, _ string) statedb.Query[*table.Policy] {
	// In a key a cluster-wide policy's namespace is a dash, in a row it is empty.
	namespace := k.Second
	if namespace == noNamespace {
		namespace = ""
	}
	return table.PolicyByKey(k.First, namespace, k.Third)
}

func policyKeyOf(p *table.Policy) Key { return PolicyKey(p.Kind, p.Namespace, p.Name) }
