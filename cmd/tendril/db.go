package main

import (
	"context"

	"github.com/spf13/cobra"

	agentv1 "tendril.io/tendril/api/agent/v1"
)

// newDBCommand shows the agent's tables: what it knows, row by row.
func newDBCommand(a *app) *cobra.Command {
	return group("db", "Read the agent's tables", newDBListCommand(a), newDBShowCommand(a))
}

// newDBListCommand names the tables, since nobody knows them by heart.
func newDBListCommand(a *app) *cobra.Command {
	return answer(a, &cobra.Command{
		Use:     "list",
		Short:   "List the tables",
		Example: `  tendril db list`,
	}, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ListTablesResponse, error) {
		return agent.ListTables(ctx, &agentv1.ListTablesRequest{})
	}, func(v *view, r *agentv1.ListTablesResponse) {
		v.header("TABLE", "ROWS", "REVISION", "ABOUT")
		for _, t := range r.GetTables() {
			v.row(t.GetName(), number(t.GetRows()), number(t.GetRevision()), t.GetAbout())
		}
	})
}

// newDBShowCommand prints rows as the agent prints them: the agent knows the columns, this command does not.
func newDBShowCommand(a *app) *cobra.Command {
	var table string
	cmd := &cobra.Command{
		Use:     "show TABLE",
		Short:   "Print a table",
		Example: `  tendril db show endpoints`,
		Args:    argument(&table, "table", false),
	}
	return answer(a, cmd, func(ctx context.Context, agent agentv1.AgentClient) (*agentv1.ShowTableResponse, error) {
		return agent.ShowTable(ctx, &agentv1.ShowTableRequest{Table: table})
	}, func(v *view, r *agentv1.ShowTableResponse) {
		v.header(r.GetHeader()...)
		for _, row := range r.GetRows() {
			v.row(row.GetCells()...)
		}
	})
}
