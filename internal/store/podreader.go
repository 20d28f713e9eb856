package store

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"tendril.io/tendril/internal/table"
)

// podReader makes rows of pods' records without a message in between, which would cost an allocation for each field: pods come and
// go all day, and a cluster has a hundred thousand. It agrees with podRow, which has the message (podreader_test.go). It is for one goroutine.
type podReader struct {
	// Lists of named ports by their encoding. Pods of one workload have the same, and their rows share it.
	lists map[string][]table.NamedPort
	// The encoding of the list at hand.
	encoded []byte
}

// podLists is how many lists are known at a time; who has more distinct ones shares fewer.
const podLists = 4096

func newPodReader() *podReader { return &podReader{lists: map[string][]table.NamedPort{}} }

// Fields of storev1.Pod and storev1.NamedPort.
const (
	podUID, podLabels, podNamedPorts, podHostNetwork = 1, 2, 3, 4
	portName, portNumber, portProtocol               = 1, 2, 3
)

// row reads a record. Of a field that comes twice the last one counts, and fields that are not known are passed over.
func (r *podReader) row(key Key, e event) (*table.Pod, error) {
	text := e.text
	if text == "" {
		text = string(e.value)
	}
	row := &table.Pod{Node: key.First, Namespace: key.Second, Name: key.Third}
	var labels []byte
	r.encoded = r.encoded[:0]
	err := eachField(e.value, func(f field) error {
		switch {
		case f.is(podUID, protowire.BytesType):
			row.UID = text[f.at : f.at+len(f.value)]
			return f.checkText("uid")
		case f.is(podLabels, protowire.BytesType):
			labels = f.value
		case f.is(podNamedPorts, protowire.BytesType):
			r.encoded = protowire.AppendBytes(r.encoded, f.value)
		case f.is(podHostNetwork, protowire.VarintType):
			row.HostNetwork = f.number() != 0
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if row.Labels, err = labelsHash(labels); err != nil {
		return nil, err
	}
	row.NamedPorts, err = r.namedPorts()
	return row, err
}

// namedPorts is the list at hand.
func (r *podReader) namedPorts() ([]table.NamedPort, error) {
	if len(r.encoded) == 0 {
		return nil, nil
	}
	if list, known := r.lists[string(r.encoded)]; known {
		return list, nil
	}
	var list []table.NamedPort
	for rest := r.encoded; len(rest) > 0; {
		one, n := protowire.ConsumeBytes(rest)
		port, err := readNamedPort(one)
		if err != nil {
			return nil, err
		}
		list, rest = append(list, port), rest[n:]
	}
	if len(r.lists) >= podLists {
		clear(r.lists)
	}
	r.lists[string(r.encoded)] = list
	return list, nil
}

func readNamedPort(message []byte) (table.NamedPort, error) {
	var name string
	var number, protocol uint32
	err := eachField(message, func(f field) error {
		switch {
		case f.is(portName, protowire.BytesType):
			name = string(f.value)
			return f.checkText("named_ports.name")
		case f.is(portNumber, protowire.VarintType):
			number = uint32(f.number())
		case f.is(portProtocol, protowire.VarintType):
			protocol = uint32(f.number())
		}
		return nil
	})
	if err != nil {
		return table.NamedPort{}, err
	}
	return namedPort("named_ports", name, number, protocol)
}

// field is one of an encoded message.
type field struct {
	id    protowire.Number
	kind  protowire.Type
	value []byte // what it holds, without its length
	at    int    // where that begins in the message
}

// is tells whether it is a field that the message has; one of another kind than it should be is not.
func (f field) is(id protowire.Number, kind protowire.Type) bool { return f.id == id && f.kind == kind }

// number is the value of a varint.
func (f field) number() uint64 {
	number, _ := protowire.ConsumeVarint(f.value)
	return number
}

func (f field) checkText(name string) error {
	if !utf8.Valid(f.value) {
		return fmt.Errorf("%s: %q is not UTF-8", name, bytes.ToValidUTF8(f.value, []byte("?")))
	}
	return nil
}

// errField is of a number that no field can have.
var errField = errors.New("not a record: a field's number is out of range")

// eachField reads an encoded message. An error of do ends it.
func eachField(message []byte, do func(field) error) error {
	for at := 0; at < len(message); {
		id, kind, n := protowire.ConsumeTag(message[at:])
		if n < 0 {
			return fmt.Errorf("not a record: %w", protowire.ParseError(n))
		}
		if id > protowire.MaxValidNumber {
			return errField
		}
		at += n
		size := protowire.ConsumeFieldValue(id, kind, message[at:])
		if size < 0 {
			return fmt.Errorf("not a record: %w", protowire.ParseError(size))
		}
		f := field{id: id, kind: kind, value: message[at : at+size], at: at}
		at += size
		if kind == protowire.BytesType {
			f.value, _ = protowire.ConsumeBytes(f.value)
			f.at = at - len(f.value)
		}
		if err := do(f); err != nil {
			return err
		}
	}
	return nil
}
