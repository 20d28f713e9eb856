// Package identity says who a workload is: a hash of what policies can know of it.
//
// An identity is the hash of a cluster, a namespace, a service account and a set of pod labels. Nobody allocates it, so
// there is no limit on their number, no race, and every node computes the same one without a message. Labels of the
// namespace are not part of it: they are joined locally, so that relabelling a namespace renames nobody.
//
// What has no labels (the node itself, the world outside) has a reserved identity: a small fixed number.
//
// The encoding that is hashed is frozen; a new one gets a new version byte. Integers are unsigned LEB128 varints, a
// string is its length in bytes and then its bytes, which makes the encoding injective:
//
//	"tendril-identity" version=1
//	string cluster, string namespace, string service account
//	count of labels, then for each label in rising order of its key (by bytes): string key, string value
package identity

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"tendril.io/tendril/internal/label"
)

// version of the encoding; it is part of what is hashed.
const version = 1

const magic = "tendril-identity"

// ID is an identity: the first 128 bits of the SHA-256 of the canonical encoding. The zero ID is nobody's.
type ID [16]byte

// Of returns the identity of a workload.
func Of(cluster, namespace, serviceAccount string, labels label.Set) ID {
	var buffer [512]byte // most encodings fit, so that no memory is asked for
	sum := sha256.Sum256(AppendEncoding(buffer[:0], cluster, namespace, serviceAccount, labels))
	return ID(sum[:16])
}

// AppendEncoding appends the canonical encoding, which the package comment documents, to buffer.
func AppendEncoding(buffer []byte, cluster, namespace, serviceAccount string, labels label.Set) []byte {
	buffer = append(buffer, magic...)
	buffer = append(buffer, version)
	buffer = appendString(buffer, cluster)
	buffer = appendString(buffer, namespace)
	buffer = appendString(buffer, serviceAccount)
	buffer = binary.AppendUvarint(buffer, uint64(labels.Len()))
	for key, value := range labels.All() {
		buffer = appendString(buffer, key)
		buffer = appendString(buffer, value)
	}
	return buffer
}

func appendString(buffer []byte, s string) []byte {
	return append(binary.AppendUvarint(buffer, uint64(len(s))), s...)
}

// Parse reads the hexadecimal form that String prints.
func Parse(text string) (ID, error) {
	var id ID
	if len(text) != hex.EncodedLen(len(id)) {
		return ID{}, fmt.Errorf("identity %q: want %d hexadecimal digits", text, hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(text)); err != nil {
		return ID{}, fmt.Errorf("identity %q: %w", text, err)
	}
	return id, nil
}

// String is the identity in hexadecimal, 32 digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero says whether it is nobody's identity.
func (id ID) IsZero() bool { return id == ID{} }

// Short is a 32-bit form for display only: two identities may share one. It never collides with a reserved number.
func (id ID) Short() uint32 {
	return binary.BigEndian.Uint32(id[:4]) | 1<<31
}
