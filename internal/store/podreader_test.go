package store

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	storev1 "tendril.io/tendril/api/store/v1"
	"tendril.io/tendril/internal/table"
)

// agree reads a pod's record by hand and as a message, and wants one answer: the same row, or none from either.
func agree(t interface{ Errorf(string, ...any) }, r *podReader, value []byte) {
	key := PodKey("n1", "ns", "web")
	got, gotErr := r.row(key, event{value: value})
	want, wantErr := byMessage(&storev1.Pod{}, podRow)(key, event{value: value})
	if (gotErr == nil) != (wantErr == nil) {
		t.Errorf("%x: by hand %v, as a message %v", value, gotErr, wantErr)
		return
	}
	if diff := cmp.Diff(want, got); gotErr == nil && diff != "" {
		t.Errorf("%x (-message +by hand):\n%s", value, diff)
	}
}

// drawField is a field that a record may have or not, of its own kind or another.
func drawField(t *rapid.T, inner func(*rapid.T) []byte) []byte {
	id := protowire.Number(rapid.IntRange(1, 6).Draw(t, "field"))
	if rapid.IntRange(0, 30).Draw(t, "far") == 0 {
		id = protowire.Number(rapid.SampledFrom([]int{15, 16, 1<<29 - 1, 1 << 29, 1<<31 - 1}).Draw(t, "far field"))
	}
	field := func(kind protowire.Type) []byte { return protowire.AppendVarint(nil, uint64(id)<<3|uint64(kind)) }
	switch rapid.SampledFrom([]string{"varint", "bytes", "hash", "inner", "fixed32", "fixed64", "group"}).Draw(t, "kind") {
	case "varint":
		number := rapid.SampledFrom([]uint64{0, 1, 6, 8080, 65535, 65536, 1 << 32, 1<<32 + 80, 1<<64 - 1}).Draw(t, "number")
		return protowire.AppendVarint(field(protowire.VarintType), number)
	case "bytes":
		return protowire.AppendBytes(field(protowire.BytesType), rapid.SampledFrom([][]byte{nil, []byte("http"), {0xff, 0xfe}, []byte("é")}).Draw(t, "bytes"))
	case "hash":
		return protowire.AppendBytes(field(protowire.BytesType), slices.Repeat([]byte{7}, rapid.IntRange(15, 17).Draw(t, "length")))
	case "inner":
		return protowire.AppendBytes(field(protowire.BytesType), inner(t))
	case "fixed32":
		return protowire.AppendFixed32(field(protowire.Fixed32Type), 1)
	case "fixed64":
		return protowire.AppendFixed64(field(protowire.Fixed64Type), 1)
	}
	return append(field(protowire.StartGroupType), field(protowire.EndGroupType)...)
}

func drawMessage(t *rapid.T, inner func(*rapid.T) []byte) (message []byte) {
	for range rapid.IntRange(0, 6).Draw(t, "fields") {
		message = append(message, drawField(t, inner)...)
	}
	return message
}

func TestAPodReadByHandIsWhatItsMessageSays(t *testing.T) {
	reader := newPodReader() // one for all: lists are shared between records
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		none := func(*rapid.T) []byte { return nil }
		value := drawMessage(t, func(t *rapid.T) []byte { return drawMessage(t, none) })
		if rapid.Bool().Draw(t, "with labels") {
			value = append(value, 18, 16)
			value = append(value, slices.Repeat([]byte{9}, 16)...)
		}
		agree(t, reader, value)
		agree(t, reader, value[:rapid.IntRange(0, len(value)).Draw(t, "cut")])
		if _, err := reader.row(PodKey("n1", "ns", "web"), event{value: value}); err == nil {
			accepted++
		}
	})
	if accepted == 0 {
		t.Error("no record was accepted: nothing was compared")
	}
}

func FuzzPodReader(f *testing.F) {
	for _, pod := range []*storev1.Pod{{}, {Uid: "u", Labels: make([]byte, 16), HostNetwork: true, NamedPorts: []*storev1.NamedPort{{Name: "http", Port: 80, Protocol: 6}, {}}}} {
		value, err := proto.Marshal(pod)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value)
	}
	reader := newPodReader()
	f.Fuzz(func(t *testing.T, value []byte) { agree(t, reader, value) })
}

func TestPodsOfOneWorkloadShareTheirPorts(t *testing.T) {
	reader := newPodReader()
	read := func(port uint32) []table.NamedPort {
		t.Helper()
		ports := []*storev1.NamedPort{{Name: "http", Port: port, Protocol: 6}}
		row, err := reader.row(PodKey("n1", "ns", "web"), event{value: Encoded(t, &storev1.Pod{Labels: make([]byte, 16), NamedPorts: ports})})
		if err != nil {
			t.Fatal(err)
		}
		return row.NamedPorts
	}
	one, other := read(80), read(80)
	if &one[0] != &other[0] {
		t.Error("two pods with the same ports have a list each")
	}
	for port := range uint32(podLists + 10) {
		read(port)
	}
	if len(reader.lists) > podLists {
		t.Errorf("%d lists are known, at most %d may be", len(reader.lists), podLists)
	}
	if diff := cmp.Diff(read(80), one); diff != "" {
		t.Errorf("a row from before the lists were forgotten (-now +then):\n%s", diff)
	}
}

// A change of a pod costs the copy of its key and value, and its row: two allocations, and more only for a list of ports that is new.
func TestAPodThatChangesCostsTwoAllocations(t *testing.T) {
	f := &feed{prefix: Prefix("c")}
	reader := newPodReader()
	record := PodRecord("worker-1", "web-6d4b75cb6d-x7k2p")
	record.Value.(*storev1.Pod).NamedPorts = []*storev1.NamedPort{{Name: "http", Port: 8080, Protocol: 6}}
	kv := &mvccpb.KeyValue{Key: []byte(f.prefix + record.Key), Value: Encoded(t, record.Value)}
	var row *table.Pod
	allocations := testing.AllocsPerRun(100, func() {
		e := f.event(kv)
		key, err := ParseKey(e.key)
		if err != nil {
			t.Fatal(err)
		}
		if row, err = reader.row(key, e); err != nil {
			t.Fatal(err)
		}
	})
	if allocations > 2 {
		t.Errorf("%v allocations, want 2", allocations)
	}
	want := *row
	want.Name, want.UID = strings.Clone(row.Name), strings.Clone(row.UID)
	clear(kv.Key) // the client's, who may decode the next answer there
	clear(kv.Value)
	if diff := cmp.Diff(&want, row); diff != "" || want.Name != "web-6d4b75cb6d-x7k2p" || want.UID == "" {
		t.Errorf("the row is %+v, and quotes what is not ours (-then +now):\n%s", want, diff)
	}
}
