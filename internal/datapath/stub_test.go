package datapath

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tendril.io/tendril/bpf"
)

func BenchmarkLoadStub(b *testing.B) {
	d := openBench(b)
	b.ReportAllocs()
	var times []time.Duration
	for i := 0; b.Loop(); i++ {
		stub, err := d.LoadStub(uint32(i%50)+1, 7, bpf.EntryFromPod)
		if err != nil {
			b.Fatal(err)
		}
		times = append(times, stub.LoadTime)
		stub.Close()
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-us")
}

func TestStubsAreListedByTemplate(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	for _, endpoint := range []uint32{3, 1, 2} {
		stub, err := d.LoadStub(endpoint, 1, bpf.EntryFromPod)
		if err != nil {
			t.Fatal(err)
		}
		defer stub.Close()
	}
	list := d.Templates()
	i := slices.IndexFunc(list, func(row Template) bool { return row.Entry == bpf.EntryFromPod })
	var endpoints []uint32
	for _, instance := range list[i].Instances {
		endpoints = append(endpoints, instance.Endpoint)
		if instance.ProgramID == 0 || instance.LoadTime == 0 {
			t.Errorf("instance %+v lacks program or time", instance)
		}
	}
	if diff := cmp.Diff([]uint32{1, 2, 3}, endpoints); diff != "" {
		t.Errorf("instances of from-pod (-want +got):\n%s", diff)
	}
	d.ForgetStubs(2)
	if n := len(d.Templates()[i].Instances); n != 2 {
		t.Errorf("%d instances after one was forgotten, want 2", n)
	}
}

func TestStubWhoseEntryIsEmptyDropsAndCounts(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	stub, err := d.LoadStub(1, 1, bpf.EntryToPod)
	if err != nil {
		t.Fatal(err)
	}
	defer stub.Close()
	packet := make([]byte, 100)
	verdict, _, err := stub.program.Test(packet)
	if err != nil {
		t.Fatal(err)
	}
	if verdict != tcActShot {
		t.Errorf("verdict %d, want a drop (%d)", verdict, tcActShot)
	}
	counters, err := d.Counters()
	if err != nil {
		t.Fatal(err)
	}
	want := []Counter{{Reason: bpf.DropTailCall, Hook: bpf.HookToPod, Packets: 1, Bytes: 100}}
	if diff := cmp.Diff(want, counters); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

func TestStubReachesItsEntryWithItsConstants(t *testing.T) {
	d := bare(t, testConfig(rootFolder(t)))
	probe := loadProbe(t, "report stub words", reportStubWords())
	if err := d.set.maps["entries"].Put(uint32(bpf.EntryFromPod), probe); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ endpoint, generation uint32 }{{1, 1}, {63, 0xfffffffe}, {0x80000001, 2}} {
		stub, err := d.LoadStub(want.endpoint, want.generation, bpf.EntryFromPod)
		if err != nil {
			t.Fatal(err)
		}
		_, out, err := stub.program.Test(make([]byte, 64))
		stub.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]uint32{wordAt(out, 0), wordAt(out, 4)}; got != [2]uint32{want.endpoint, want.generation} {
			t.Errorf("stub of %+v wrote %v", want, got)
		}
	}
}

func TestStubIsKnownAgainByAnotherAgent(t *testing.T) {
	root := rootFolder(t)
	first := bare(t, testConfig(root))
	stub, err := first.LoadStub(5, 9, bpf.EntryFromPod)
	if err != nil {
		t.Fatal(err)
	}
	defer stub.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := bare(t, testConfig(root))
	for _, c := range []struct {
		name                          string
		program, endpoint, generation uint32
		entry                         bpf.Entry
		want                          bool
	}{
		{"the same", stub.ProgramID, 5, 9, bpf.EntryFromPod, true},
		{"another endpoint", stub.ProgramID, 6, 9, bpf.EntryFromPod, false},
		{"another generation", stub.ProgramID, 5, 8, bpf.EntryFromPod, false},
		{"another entry", stub.ProgramID, 5, 9, bpf.EntryToPod, false},
		{"no such program", 1 << 30, 5, 9, bpf.EntryFromPod, false},
	} {
		got, err := second.AdoptStub(c.program, c.endpoint, c.generation, c.entry)
		if err != nil || got != c.want {
			t.Errorf("%s: adopted %v (%v), want %v", c.name, got, err, c.want)
		}
	}
	if _, err := second.AdoptStub(stub.ProgramID, 5, 9, 7); err == nil {
		t.Error("an entry that does not exist was accepted")
	}
}
