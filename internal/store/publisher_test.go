package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	storev1 "tendril.io/tendril/api/store/v1"
)

func (p *Publisher) mustSet(t *testing.T, key Key, pod string) {
	t.Helper()
	if err := p.Set(key, IPValue(pod)); err != nil {
		t.Fatal(err)
	}
}

func (p *Publisher) mustDelete(t *testing.T, key Key) {
	t.Helper()
	if err := p.Delete(key); err != nil {
		t.Fatal(err)
	}
}

func addrKey(i int) Key { return AddrKey("n1", fmt.Sprintf("10.1.0.%d", i)) }

func TestAKeySetTwiceIsSentOnceInItsLastPlace(t *testing.T) {
	fake := newFake()
	p := testPublisher(t, filepath.Join(t.TempDir(), "journal"), fake)
	defer p.close()
	p.mustSet(t, addrKey(1), "a")
	p.mustSet(t, addrKey(2), "b")
	p.mustSet(t, addrKey(1), "c")
	p.mustSet(t, addrKey(3), "d")
	p.mustDelete(t, addrKey(3))
	p.mustSet(t, addrKey(1), "c") // no change
	if p.Settled(addrKey(1)) {
		t.Error("settled before it was sent")
	}
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"+ips/n1/10.1.0.2", "+ips/n1/10.1.0.1", "-ips/n1/10.1.0.3"}
	if diff := cmp.Diff(want, fake.keys()); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	if !p.Settled(addrKey(1)) || !p.Settled(addrKey(3)) {
		t.Error("not settled after it was sent")
	}
	if err := p.drain(t.Context()); err != nil || len(fake.puts) != 1 {
		t.Errorf("sent again: %d requests, %v", len(fake.puts), err)
	}
}

func TestATransactionHoldsNoMoreThanTheStoreTakes(t *testing.T) {
	fake := newFake()
	p := testPublisher(t, filepath.Join(t.TempDir(), "journal"), fake)
	defer p.close()
	var want []string
	for i := range 300 {
		key := AddrKey("n1", fmt.Sprintf("10.1.%d.%d", i/100, i%100))
		p.mustSet(t, key, "a")
		want = append(want, "+"+key.String())
	}
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range fake.puts {
		if n := len(r.GetWrites()); n > MaxWrites {
			t.Errorf("%d writes in one transaction", n)
		}
	}
	if diff := cmp.Diff(want, fake.keys()); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
}

func TestANewEpochGetsAllKeysAgainAndThenTheMarker(t *testing.T) {
	fake := newFake()
	path := filepath.Join(t.TempDir(), "journal")
	p := testPublisher(t, path, fake)
	p.mustSet(t, addrKey(1), "a")
	if !p.republish("e1", false) {
		t.Error("a first epoch was not news")
	}
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"+ips/n1/10.1.0.1"}, fake.keys()); diff != "" {
		t.Errorf("before the node has introduced itself (-want +got):\n%s", diff)
	}
	if err := p.Set(NodeKey("n1"), NodeValue("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"+ips/n1/10.1.0.1", "+nodes/n1", "+synced/e1/ips/n1"}
	if diff := cmp.Diff(want, fake.keys()); diff != "" {
		t.Errorf("once it has (-want +got):\n%s", diff)
	}
	if p.republish("e1", false) {
		t.Error("the same epoch was news")
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}

	fake.puts = nil
	p = testPublisher(t, path, fake) // restarted: it knows what it has published
	defer p.close()
	if p.republish("e1", false) {
		t.Error("after a restart the same epoch was news")
	}
	p.republish("e2", false)
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	want = []string{"+ips/n1/10.1.0.1", "+nodes/n1", "+synced/e2/ips/n1"}
	if diff := cmp.Diff(want, fake.keys()); diff != "" {
		t.Errorf("in the next epoch (-want +got):\n%s", diff)
	}
}

func TestAnAgentKilledWhilePublishingAnewStartsOver(t *testing.T) {
	fake := newFake()
	path := filepath.Join(t.TempDir(), "journal")
	p := testPublisher(t, path, fake)
	p.mustSet(t, addrKey(1), "a")
	if err := p.Set(NodeKey("n1"), NodeValue("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	fake.answer = func(r *storev1.PutRequest) error {
		if r.GetWrites()[0].GetKey() == "synced/e1/ips/n1" {
			return status.Error(codes.Unavailable, "killed here")
		}
		return nil
	}
	p.republish("e1", false)
	if err := p.drain(t.Context()); err == nil {
		t.Fatal("the fault did not happen")
	}
	p.close()
	p = testPublisher(t, path, fake)
	defer p.close()
	if !p.republish("e1", false) {
		t.Error("the epoch counts as published")
	}
}

func TestWhatIsForAnEpochThatIsOverWaitsForTheNext(t *testing.T) {
	fake := newFake()
	p := testPublisher(t, filepath.Join(t.TempDir(), "journal"), fake)
	defer p.close()
	if err := p.Set(NodeKey("n1"), NodeValue("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	fake.answer = func(r *storev1.PutRequest) error {
		if r.GetWrites()[0].GetKey() == "synced/e1/ips/n1" {
			return status.Error(codes.FailedPrecondition, "another epoch")
		}
		return nil
	}
	p.republish("e1", false)
	if err := p.drain(t.Context()); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a marker of an epoch that is over: got %v, want it to be tried again", err)
	}
	if p.republish("e1", false) {
		t.Error("the epoch that it waits for was news")
	}
	if !p.republish("e2", false) {
		t.Error("the next epoch was not news")
	}
	fake.puts = nil
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"+nodes/n1", "+synced/e2/ips/n1"}
	if diff := cmp.Diff(want, fake.keys()); diff != "" {
		t.Errorf("published to the next epoch (-want +got):\n%s", diff)
	}
	for _, put := range fake.puts {
		if put.GetEpoch() != "e2" {
			t.Errorf("%v is for epoch %q, want e2", put.GetWrites(), put.GetEpoch())
		}
	}
}

func TestAWriteThatTheServerNeverTakesDoesNotHoldUpOthers(t *testing.T) {
	fake := newFake()
	p := testPublisher(t, filepath.Join(t.TempDir(), "journal"), fake)
	defer p.close()
	bad := addrKey(2).String()
	fake.answer = func(r *storev1.PutRequest) error {
		if slices.ContainsFunc(r.GetWrites(), func(w *storev1.Write) bool { return w.GetKey() == bad }) {
			return status.Error(codes.InvalidArgument, "no")
		}
		return nil
	}
	for i := range 4 {
		p.mustSet(t, addrKey(i), "a")
	}
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"+ips/n1/10.1.0.0", "+ips/n1/10.1.0.1", "+ips/n1/10.1.0.3"}
	if diff := cmp.Diff(want, fake.keys()); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	if pending, problems := p.describe(); pending != 0 || len(problems) != 1 || problems[0].Object != bad {
		t.Errorf("pending %d, problems %v", pending, problems)
	}
}

// The journal is cut at a random byte, as by a machine's crash, after random changes, some of them sent. What the store
// holds in the end must be what was set last before the cut, never a mix.
func TestAJournalCutAtAnyByteReplaysAStateThatOnceWas(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7))
		path := filepath.Join(t.TempDir(), fmt.Sprint(seed))
		fake := newFake()
		p := testPublisher(t, path, fake)
		states := map[string]bool{"[]": true}
		for range 30 {
			key := addrKey(random.IntN(4))
			switch random.IntN(4) {
			case 0:
				p.mustDelete(t, key)
			case 1:
				if err := p.drain(t.Context()); err != nil {
					t.Fatal(err)
				}
			default:
				p.mustSet(t, key, fmt.Sprint(random.IntN(100)))
			}
			states[ownState(p)] = true
		}
		if err := p.close(); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		cut := len(logMagic) + random.IntN(len(raw)-len(logMagic)+1)
		if err := os.WriteFile(path, raw[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		p = testPublisher(t, path, fake)
		if !states[ownState(p)] {
			t.Fatalf("seed %d, cut at %d of %d: %s never was", seed, cut, len(raw), ownState(p))
		}
		if err := p.drain(context.Background()); err != nil {
			t.Fatal(err)
		}
		p.close()
	}
}

// ownState prints what the node's keys are, sent or not.
func ownState(p *Publisher) string {
	var lines []string
	for _, key := range p.Own() {
		lines = append(lines, fmt.Sprintf("%s=%x", key, p.own[key].value))
	}
	return fmt.Sprint(lines)
}

func TestTheJournalStaysSmallHoweverOftenKeysChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	p := testPublisher(t, path, newFake())
	defer p.close()
	for i := range 60000 {
		p.mustSet(t, addrKey(i%10), fmt.Sprint(i))
		if i%1000 == 0 {
			if err := p.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 3*logSlack {
		t.Errorf("the journal has %d bytes (%v)", info.Size(), err)
	}
	if len(p.Own()) != 10 {
		t.Errorf("own keys: %v", p.Own())
	}
}

func TestAnAgentKilledBetweenTwoBatchesStillKnowsWhatWasNotSent(t *testing.T) {
	fake := newFake()
	path := filepath.Join(t.TempDir(), "journal")
	p := testPublisher(t, path, fake)
	for i := range MaxWrites + 2 {
		p.mustSet(t, addrKey(i), "a")
	}
	p.republish("e1", false)
	fake.answer = func(*storev1.PutRequest) error {
		if len(fake.puts) == 1 {
			return status.Error(codes.Unavailable, "killed here")
		}
		return nil
	}
	if err := p.drain(t.Context()); err == nil {
		t.Fatal("the fault did not happen")
	}
	p.close()
	p = testPublisher(t, path, fake)
	defer p.close()
	if p.Settled(addrKey(MaxWrites + 1)) {
		t.Error("a key that was never sent counts as sent")
	}
}

func TestAStoreThatLostWritesGetsAllKeysAgainEvenAfterAKill(t *testing.T) {
	fake := newFake()
	path := filepath.Join(t.TempDir(), "journal")
	p := testPublisher(t, path, fake)
	if err := p.Set(NodeKey("n1"), NodeValue("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	p.republish("e1", false)
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !p.republish("e1", true) {
		t.Error("a lost write was no reason to publish again")
	}
	p.close() // killed before it could
	p = testPublisher(t, path, fake)
	defer p.close()
	if !p.republish("e1", false) {
		t.Error("after a restart the keys count as published")
	}
}

func TestARecordOfAnotherKindIsNotPublished(t *testing.T) {
	p := testPublisher(t, t.TempDir()+"/journal", newFake())
	defer p.close()
	for _, test := range []struct {
		key    Key
		record proto.Message
	}{
		{NodeKey("n1"), IPValue("web")}, {NodeKey("n2"), NodeValue("192.0.2.1")}, {PodKey("n1", "a", "b"), &storev1.Pod{}},
		{NodeKey("n1"), nil}, {Key{Kind: KindIP, First: "n1", Second: "x"}, IPValue("web")},
	} {
		if err := p.Set(test.key, test.record); err == nil || !strings.Contains(err.Error(), test.key.String()) {
			t.Errorf("%s: got %v, want an error that names the key", test.key, err)
		}
	}
	if pending, _ := p.describe(); pending != 0 {
		t.Errorf("%d changes wait", pending)
	}
}

func TestKeysOfTheNodeThatNobodyKnowsAreRemovedOnceTheNodeIsPublished(t *testing.T) {
	fake := newFake()
	p := testPublisher(t, t.TempDir()+"/journal", fake)
	defer p.close()
	stored := []Key{addrKey(1), addrKey(2), addrKey(3)}
	p.mustSet(t, addrKey(1), "web")
	p.disown(stored)
	if pending, _ := p.describe(); pending != 1 || p.disowned.Load() != 0 {
		t.Fatalf("before the node said what it has: %d changes wait, %d keys disowned", pending, p.disowned.Load())
	}
	if err := p.Set(NodeKey("n1"), NodeValue("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	p.mustDelete(t, addrKey(2)) // known, and on its way
	p.disown(stored)
	p.disown(stored) // once is enough
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"+ips/n1/10.1.0.1", "+nodes/n1", "-ips/n1/10.1.0.2", "-ips/n1/10.1.0.3"}
	if diff := cmp.Diff(want, fake.keys()); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	if got := p.disowned.Load(); got != 1 {
		t.Errorf("disowned: got %d, want 1", got)
	}
}

func TestANodeThatTookItselfAwayDisownsNothing(t *testing.T) {
	p := testPublisher(t, t.TempDir()+"/journal", newFake())
	defer p.close()
	if err := p.Set(NodeKey("n1"), NodeValue("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	p.mustDelete(t, NodeKey("n1"))
	p.disown([]Key{addrKey(1)})
	if got := p.Own(); len(got) != 0 || p.disowned.Load() != 0 {
		t.Errorf("own keys %v, %d disowned", got, p.disowned.Load())
	}
}
