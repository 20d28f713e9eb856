package node

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "tendril.io/tendril/api/agent/v1"
	"tendril.io/tendril/internal/flow"
	"tendril.io/tendril/internal/policy"
	"tendril.io/tendril/internal/service"
)

// derived is a table that a brain holds: it is printed from there, since a copy in rows would double the agent's memory
// and could disagree.
type derived struct {
	name, about string
	show        func(a *Agent) (header []string, rows [][]string)
}

// derivedTables lists them in the order in which information flows.
func derivedTables() []derived {
	return []derived{
		{"configuration", "the agent's configuration: when a change counts, what is in force, what the file says", showConfiguration},
		{"selectors", "selectors of the node's policies and their bits", ofPolicy((*policy.Engine).Selectors)},
		{"classes", "sets of selectors that match some peer", ofPolicy((*policy.Engine).Classes)},
		{"peers", "what policy tells apart about addresses", ofPolicy((*policy.Engine).Peers)},
		{"policy_programs", "compiled policies", ofPolicy((*policy.Engine).Programs)},
		{"addresses", "addresses and prefixes as the datapath knows them", ofPolicy((*policy.Engine).Addresses)},
		{"frontends", "service addresses as the datapath knows them", showFrontends},
	}
}

// ofPolicy prints rows that the policy engine lists.
func ofPolicy[Row policy.Row](list func(*policy.Engine) []Row) func(*Agent) ([]string, [][]string) {
	return func(a *Agent) (header []string, rows [][]string) {
		a.policies.Read(func(engine *policy.Engine) {
			for _, row := range list(engine) {
				rows = append(rows, row.Cells())
			}
		})
		var row Row
		return row.Header(), rows
	}
}

func showFrontends(a *Agent) (header []string, rows [][]string) {
	a.services.Read(func(brain *service.Brain) {
		for _, view := range brain.Views("") {
			var backends []string
			for _, backend := range view.Backends {
				if backend.Chosen() {
					backends = append(backends, backend.Addr.String())
				}
			}
			rows = append(rows, []string{
				view.Namespace + "/" + view.Name, view.Type, view.Frontend.String(), flow.ProtocolName(uint32(view.Proto)),
				fmt.Sprint(len(backends)), strings.Join(backends, " "),
			})
		}
	})
	return []string{"service", "type", "frontend", "protocol", "count", "backends"}, rows
}

// ListTables implements the API.
func (s *api) ListTables(context.Context, *agentv1.ListTablesRequest) (*agentv1.ListTablesResponse, error) {
	reply := &agentv1.ListTablesResponse{}
	for _, info := range s.a.tables.List(s.a.tables.DB.ReadTxn()) {
		reply.Tables = append(reply.Tables, &agentv1.ListTablesResponse_Table{
			Name: info.Name, Rows: uint64(info.Rows), Revision: info.Revision, About: info.About,
		})
	}
	for _, table := range derivedTables() {
		_, rows := table.show(s.a)
		reply.Tables = append(reply.Tables, &agentv1.ListTablesResponse_Table{
			Name: table.name, Rows: uint64(len(rows)), Revision: uint64(s.a.datapath.VerdictEpoch()), About: table.about,
		})
	}
	return reply, nil
}

// ShowTable implements the API.
func (s *api) ShowTable(_ context.Context, request *agentv1.ShowTableRequest) (*agentv1.ShowTableResponse, error) {
	header, rows, err := s.table(request.GetTable())
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	reply := &agentv1.ShowTableResponse{Header: header}
	for _, row := range rows {
		reply.Rows = append(reply.Rows, &agentv1.ShowTableResponse_Row{Cells: row})
	}
	return reply, nil
}

func (s *api) table(name string) (header []string, rows [][]string, err error) {
	names := make([]string, 0, 8)
	for _, table := range derivedTables() {
		if table.name == name {
			header, rows = table.show(s.a)
			return header, rows, nil
		}
		names = append(names, table.name)
	}
	if header, rows, err = s.a.tables.Show(s.a.tables.DB.ReadTxn(), name); err != nil {
		return nil, nil, fmt.Errorf("%w, %s", err, strings.Join(names, ", "))
	}
	return header, rows, nil
}
