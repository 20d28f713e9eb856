package server_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/store"
	"tendril.io/tendril/internal/store/server"
)

func TestAnAgentGoesThroughAReplacementOfTheAuthorityAndOneThatWasNotToldIsRefused(t *testing.T) {
	const life = 10 * time.Second // of which a renewal has a quarter
	first, firstKey, err := server.MakeAuthority()
	next, nextKey, nextErr := server.MakeAuthority()
	a, newErr := server.NewAuthority(server.AuthorityConfig{Cert: first, Key: firstKey, Tokens: tokens{}, Life: life, Hosts: []string{"127.0.0.1"}})
	if err := errors.Join(err, nextErr, newErr); err != nil {
		t.Fatal(err)
	}
	running := serveAs(t, a)
	writer := begin(t, running.AdminEndpoint())
	ca, stale := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "ca")
	if err := errors.Join(os.WriteFile(ca, first, 0o600), os.WriteFile(stale, first, 0o600)); err != nil {
		t.Fatal(err)
	}
	client, tables, _ := enrol(t, running, ca, "token-n1")
	await(t, "the agent is complete", func() bool { return client.Status().Synced })
	both, written := slices.Concat(first, next), 0
	for stage, believed := range [][]byte{both, both, next} {
		if err := errors.Join(os.WriteFile(ca+".new", believed, 0o600), os.Rename(ca+".new", ca)); err != nil {
			t.Fatal(err)
		}
		cert, key := next, nextKey
		if stage == 0 {
			cert, key = first, firstKey
		}
		if err := a.Replace(cert, key, believed); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(life + time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			written++
			if _, err := writer.Apply(t.Context(), []store.Record{{Key: fmt.Sprintf("namespaces/w%d", written), Value: &storev1.Namespace{}}}); err != nil {
				t.Fatal(err)
			}
			ack := store.Key{Kind: store.KindAck, First: "n1"}
			if err := client.Publisher().Set(ack, &storev1.Ack{PolicyRevision: uint64(written)}); err != nil {
				t.Fatal(err)
			}
			await(t, "the agent hears", func() bool { return tables.Namespaces.NumObjects(tables.DB.ReadTxn()) == written })
			await(t, "the agent is heard", func() bool { return client.Publisher().Settled(ack) })
			if now := client.Status(); !now.Synced || len(now.Problems) > 0 || now.Counters.Snapshots != 1 {
				t.Errorf("stage %d: synced %t, problems %v, read whole %d times", stage, now.Synced, now.Problems, now.Counters.Snapshots)
			}
		}
	}
	late, _, _ := enrol(t, running, stale, "token-n1")
	await(t, "who was not told is refused and told what to do", func() bool {
		return strings.Contains(fmt.Sprint(late.Status().Problems), "bring the file with the authorities up to date")
	})
}
