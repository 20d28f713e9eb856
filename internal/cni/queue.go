package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

// Queue is a folder of deletions that were asked for while the agent was away, one file each. The plugin writes it,
// the agent drains it. The order to keep, so that none is left behind:
//
//	plugin: ask the agent; if it is away: Put, ask once more, and if it answers now, Remove
//	agent:  listen, then Drain
type Queue struct{ dir string }

// NewQueue names the folder, which need not exist yet.
func NewQueue(dataDir string) Queue { return Queue{filepath.Join(dataDir, "deletions")} }

const queueSuffix = ".json"

// path is the same for the same attachment, so that repeating a deletion does not grow the queue.
func (q Queue) path(raw *Raw) string {
	sum := sha256.Sum256([]byte(raw.ContainerID + "/" + raw.IfName))
	return filepath.Join(q.dir, hex.EncodeToString(sum[:16])+queueSuffix)
}

// Put keeps a deletion for later. It is on disk, whole, when Put returns.
func (q Queue) Put(raw *Raw) error {
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		return fmt.Errorf("make deletion queue: %w", err)
	}
	encoded, err := json.Marshal(raw)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(q.path(raw), encoded, 0o600, renameio.WithTempDir(q.dir)); err != nil {
		return fmt.Errorf("queue deletion: %w", err)
	}
	return nil
}

// Remove drops a deletion that was done after all.
func (q Queue) Remove(raw *Raw) error {
	if err := os.Remove(q.path(raw)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove deletion from queue: %w", err)
	}
	return nil
}

// Drain hands every queued deletion to do and removes those that it did. Deletions that fail, and files that cannot
// be read, stay; their errors are joined.
func (q Queue) Drain(do func(*Request) error) error {
	entries, err := os.ReadDir(q.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read deletion queue: %w", err)
	}
	var failed []error
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), queueSuffix) {
			continue
		}
		path := filepath.Join(q.dir, entry.Name())
		if err := drainOne(path, do); err != nil {
			failed = append(failed, fmt.Errorf("queued deletion %s: %w", path, err))
		}
	}
	return errors.Join(failed...)
}

// drainOne does one deletion. The file goes last: an agent that dies in between repeats the deletion, which is
// harmless.
func drainOne(path string, do func(*Request) error) error {
	encoded, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var raw Raw
	if err := json.Unmarshal(encoded, &raw); err != nil {
		return err
	}
	request, err := raw.Parse()
	if err != nil {
		return err
	}
	if request.Command != Del {
		return fmt.Errorf("command is %s: only DEL is queued", request.Command)
	}
	if err := do(request); err != nil {
		return err
	}
	return os.Remove(path)
}
