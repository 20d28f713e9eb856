package endpoint

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tendril.io/tendril/internal/cni"
	"tendril.io/tendril/internal/ipam"
	"tendril.io/tendril/internal/netlink"
	"tendril.io/tendril/internal/table"
)

// record is an endpoint as the journal knows it.
type record struct {
	Attachment cni.Attachment `json:"attachment"`
	Network    string         `json:"network"` // name of the CNI configuration
	ID         uint32         `json:"id,omitempty"`
	Generation uint32         `json:"generation"`
	Namespace  string         `json:"namespace,omitempty"`
	Pod        string         `json:"pod,omitempty"`
	PodUID     string         `json:"pod_uid,omitempty"`
	Addrs      []netip.Addr   `json:"addrs"`
	NetnsPath  string         `json:"netns_path"`
	// NetnsCookie is the kernel's number of the namespace; an earlier release did not write it.
	NetnsCookie uint64          `json:"netns_cookie,omitempty"`
	Created     time.Time       `json:"created"`
	DeviceMTU   uint32          `json:"device_mtu"`
	RouteMTU    uint32          `json:"route_mtu"`
	Labels      *table.LabelSet `json:"labels,omitempty"`
	Ports       []cni.NamedPort `json:"ports,omitempty"`
	HostPorts   []cni.HostPort  `json:"host_ports,omitempty"`
	Bandwidth   cni.Bandwidth   `json:"bandwidth,omitzero"`
	// Adopted is the device of a chained pod; nil: the device is ours, and its name and addresses follow from the attachment.
	Adopted  *netlink.Adopted `json:"adopted,omitempty"`
	Chained  bool             `json:"chained,omitempty"`  // set before Adopted is known
	Complete bool             `json:"complete,omitempty"` // step 9 was reached
}

// entry is one line of the journal: what changed, all of it or nothing.
type entry struct {
	Generation uint32          `json:"generation,omitempty"` // given out last; of the first line only
	Put        *record         `json:"put,omitempty"`
	Drop       *cni.Attachment `json:"drop,omitempty"`
	Addresses  []ipam.Address  `json:"addresses,omitempty"` // that came into the state released or cooling
}

// contents is what all lines together say.
type contents struct {
	generation uint32
	records    map[cni.Attachment]*record
	addresses  map[netip.Addr]ipam.Address // released and cooling
}

// journal is a file of JSON lines that only grows, until it is rewritten with what still holds. A line counts once its
// newline is written. Nothing is forced to disk: what the lines describe, namespaces and devices, does not outlive the
// kernel either, and a pod must not wait for a disk.
type journal struct {
	path string

	mutex sync.Mutex
	file  *os.File // nil once a line could neither be written nor taken back
	size  int64    // bytes
	lines int      // in the file
	limit int      // number of lines at which it is rewritten
	now   contents
}

// openJournal reads the file, drops a line that a death cut off, and rewrites it.
func openJournal(path string) (*journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of endpoints' journal: %w", err)
	}
	now, err := readJournal(path)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, now: now}
	return j, j.rewrite()
}

// readJournal tells a missing file, which is a node without pods, from one that cannot be read, which must stop the
// agent: taken for empty it would give addresses out twice.
func readJournal(path string) (contents, error) {
	now := contents{records: make(map[cni.Attachment]*record), addresses: make(map[netip.Addr]ipam.Address)}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return now, nil
	}
	if err != nil {
		return now, fmt.Errorf("open endpoints' journal: %w", err)
	}
	defer file.Close()
	if err := now.replay(file); err != nil {
		return now, fmt.Errorf("endpoints' journal %s: %w; "+
			"repair the line, or drain the node, remove the file and restart the agent", path, err)
	}
	return now, nil
}

// replay applies all complete lines.
func (c *contents) replay(from io.Reader) error {
	lines := bufio.NewReader(from)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // line holds what a death cut off
		}
		if err != nil {
			return err
		}
		var e entry
		decoder := json.NewDecoder(bytes.NewReader(line))
		if err := decoder.Decode(&e); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		c.apply(e)
	}
}

// apply makes one change. An address in a record is in use, whatever was said of it before.
func (c *contents) apply(e entry) {
	c.generation = max(c.generation, e.Generation)
	if e.Drop != nil {
		delete(c.records, *e.Drop)
	}
	for _, address := range e.Addresses {
		c.addresses[address.Addr] = address
	}
	if e.Put != nil {
		c.generation = max(c.generation, e.Put.Generation)
		c.records[e.Put.Attachment] = e.Put
		for _, addr := range e.Put.Addrs {
			delete(c.addresses, addr)
		}
	}
}

// append writes one line. After an error the journal is as before; if not even that can be ensured it is closed.
func (j *journal) append(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	j.mutex.Lock()
	defer j.mutex.Unlock()
	if j.file == nil {
		return errors.New("endpoints' journal is closed after an earlier error: restart the agent")
	}
	if _, err := j.file.Write(line); err != nil {
		if failed := j.file.Truncate(j.size); failed != nil {
			j.file.Close()
			j.file = nil
		}
		return fmt.Errorf("write endpoints' journal: %w", err)
	}
	j.size += int64(len(line))
	j.lines++
	j.now.apply(e)
	if j.lines > j.limit && j.rewrite() != nil {
		// The line counts, and so this is no error of the caller's. The file goes on growing; room may be found later.
		j.limit = j.lines + slack
	}
	return nil
}

// slack is how many lines may be out of date before the file is rewritten.
const slack = 1024

// rewrite puts a file in the journal's place that says the same in fewest lines. Addresses that have rested long enough
// are left out.
func (j *journal) rewrite() error {
	maps.DeleteFunc(j.now.addresses, func(_ netip.Addr, a ipam.Address) bool {
		return a.State == ipam.Cooling && time.Since(a.Since) > ipam.Rest
	})
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	failed := []error{encoder.Encode(j.now.head())}
	for _, record := range j.now.records {
		failed = append(failed, encoder.Encode(entry{Put: record}))
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("rewrite endpoints' journal: %w", err)
	}
	file, err := replaceFile(j.path, text.Bytes())
	if err != nil {
		return fmt.Errorf("rewrite endpoints' journal: %w", err)
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size, j.lines = file, int64(text.Len()), 1+len(j.now.records)
	j.limit = slack + 4*len(j.now.records)
	return nil
}

// head is the line for everything that is not a record.
func (c *contents) head() entry {
	byAddr := func(a, b ipam.Address) int { return a.Addr.Compare(b.Addr) }
	return entry{Generation: c.generation, Addresses: slices.SortedFunc(maps.Values(c.addresses), byAddr)}
}

// replaceFile writes a whole file beside path, puts it in its place and leaves it open for appending.
func replaceFile(path string, text []byte) (*os.File, error) {
	file, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(text)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// close ends the writing; later appends fail, so nothing is promised that is not written.
func (j *journal) close() error {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

// snapshot copies what the journal says now.
func (j *journal) snapshot() contents {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	return contents{j.now.generation, maps.Clone(j.now.records), maps.Clone(j.now.addresses)}
}
