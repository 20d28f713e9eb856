package datapath

import (
	"testing"

	"tendril.io/tendril/bpf"
	"tendril.io/tendril/internal/policy"
)

// The node's own record is in use while a program judges the node, and empty otherwise.
func TestTheNodesRecordIsInUseWhileSomethingJudgesIt(t *testing.T) {
	host := uint32(bpf.EndpointHost)
	config := testConfig(rootFolder(t))
	config.Sizes["endpoints"] = uint32(bpf.CapEndpoints)
	d := bare(t, config)
	for _, c := range []struct {
		row  policy.SubjectRow
		want bpf.Endpoint
	}{
		{policy.SubjectRow{Endpoint: host, Peer: 1}, bpf.Endpoint{}},
		{policy.SubjectRow{Endpoint: host, Peer: 1, Ingress: 3}, bpf.Endpoint{Peer: 1, Ingress: 3, IfIndex: loopback}},
		{policy.SubjectRow{Endpoint: host, Peer: 1, StagedEgress: 4}, bpf.Endpoint{Peer: 1, StagedEgress: 4, IfIndex: loopback}},
		{policy.SubjectRow{Endpoint: host, Peer: 1}, bpf.Endpoint{}},
	} {
		publish(t, d, &policy.Delta{Subjects: []policy.SubjectRow{c.row}})
		if got, err := d.Endpoint(host); err != nil || got != c.want {
			t.Errorf("%+v: got %+v, %v, want %+v", c.row, got, err, c.want)
		}
	}
}

func TestNoPodGetsTheNodesNumber(t *testing.T) {
	n, err := newNumbers(64, map[string]uint32{"endpoints": uint32(bpf.CapEndpoints)}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for number := uint32(1); ; number++ {
		got, ok := n.spaces[policy.KindEndpoint].take(1)
		if !ok {
			return
		}
		if got == uint32(bpf.EndpointHost) {
			t.Fatalf("number %d is the node's own", got)
		}
	}
}
