package bpf

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// A translated SCTP packet's CRC is right whatever its length: send1 checks it.
func TestSCTPsChecksumFollowsItsPorts(t *testing.T) {
	s := natStage(t)
	random := rand.New(rand.NewPCG(5, 6))
	for i := range 60 {
		length, port := random.IntN(1400), 1+random.IntN(65535)
		if _, err := s.do(fmt.Sprintf("service sctp 10.96.0.1:%d 10.1.0.3:%d", 100+i, port)); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 { // room in the quota of half-open flows
			if _, err := s.do("sweep all force"); err != nil {
				t.Fatal(err)
			}
		}
		if p := send1(t, s, fmt.Sprintf("from_pod 1 sctp 10.1.0.2:%d > 10.96.0.1:%d len=%d", 1+random.IntN(65535), 100+i, length)); int(p.Dest.Port()) != port {
			t.Errorf("the backend's port is %d, want %d", p.Dest.Port(), port)
		}
	}
}

// chunk is one of SCTP with a value of some length, padded (RFC 9260, 3.2).
func chunk(kind byte, length int) []byte {
	value := make([]byte, (4+length+3)&^3)
	value[0] = kind
	binary.BigEndian.PutUint16(value[2:], uint16(4+length))
	for i := range length {
		value[4+i] = byte(i)
	}
	return value
}

// The CRC stands in the first fragment and covers the whole, which ends with the chunk that the fragment cuts.
func TestSCTPsChecksumOfTheWholeFollowsItsPortsInTheFirstFragment(t *testing.T) {
	const authentication, data = 15, 0
	for name, c := range map[string]struct {
		chunks [][]byte
		first  int // bytes of the whole in the first fragment
		lost   bool
	}{
		"one chunk":                     {chunks: [][]byte{chunk(data, 3000)}, first: 1480},
		"one with padding":              {chunks: [][]byte{chunk(data, 2999)}, first: 1480},
		"most there is":                 {chunks: [][]byte{chunk(data, 65400)}, first: 1480},
		"behind an authentication":      {chunks: [][]byte{chunk(authentication, 24), chunk(data, 3000)}, first: 1480},
		"cut at its end":                {chunks: [][]byte{chunk(data, 64), chunk(data, 3000)}, first: 12 + 68, lost: true},
		"more chunks than looked at":    {chunks: [][]byte{chunk(data, 4), chunk(data, 4), chunk(data, 4), chunk(data, 4), chunk(data, 3000)}, first: 1480, lost: true},
		"a chunk shorter than a header": {chunks: [][]byte{make([]byte, 3000)}, first: 1480, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := natStage(t)
			if _, err := s.do("service sctp 10.96.0.1:80 10.1.0.3:8080"); err != nil {
				t.Fatal(err)
			}
			whole := slices.Concat(append([][]byte{{0x04, 0xd2, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0}}, c.chunks...)...)
			castagnoli := crc32.MakeTable(crc32.Castagnoli)
			binary.LittleEndian.PutUint32(whole[8:], crc32.Checksum(whole, castagnoli))
			// Ethernet, IPv4 with id 9 and more fragments, the whole's start.
			frame := slices.Concat([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0},
				[]byte{0x45, 0, 0, 0, 0, 9, 0x20, 0, 64, 132, 0, 0, 10, 1, 0, 2, 10, 96, 0, 1}, whole[:c.first])
			binary.BigEndian.PutUint16(frame[16:], uint16(20+c.first))
			options := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)), Context: skBuff{IfIndex: 1, CB: [5]uint32{1, 101}}}
			s.before = s.reasons()
			if _, err := s.programs["from_pod"].Run(options); err != nil {
				t.Fatal(err)
			}
			if want := map[bool]string{true: "rewrite", false: "forwarded"}[c.lost]; s.counted() != want {
				t.Fatalf("%s, want %s", s.counted(), want)
			}
			if c.lost {
				return
			}
			got := append(slices.Clone(options.DataOut[34:34+c.first]), whole[c.first:]...)
			sum := binary.LittleEndian.Uint32(got[8:])
			clear(got[8:12])
			if port := binary.BigEndian.Uint16(got[2:]); port != 8080 || sum != crc32.Checksum(got, castagnoli) {
				t.Errorf("port %d with checksum %08x, want 8080 with %08x", port, sum, crc32.Checksum(got, castagnoli))
			}
		})
	}
}
