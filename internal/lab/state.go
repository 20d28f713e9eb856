package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

// record folders below the state folder: one file for each thing, so that several programs can work on one lab without
// a lock.
const (
	configFile  = "lab.json"
	podRecords  = "pods"
	procRecords = "processes"
	logFolder   = "logs"
)

// saveRecord writes a record whole or not at all.
func saveRecord(path string, record any) error {
	raw, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return fmt.Errorf("record %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("record %s: %w", path, err)
	}
	return renameio.WriteFile(path, append(raw, '\n'), 0o644, renameio.WithTempDir(filepath.Dir(path)))
}

// loadRecord reads one record.
func loadRecord[T any](path string) (T, error) {
	var record T
	raw, err := os.ReadFile(path)
	if err != nil {
		return record, err
	}
	if err := json.Unmarshal(raw, &record); err != nil {
		return record, fmt.Errorf("record %s: %w", path, err)
	}
	return record, nil
}

// loadRecords reads all records of a folder, in the order of their names. One that another program removes meanwhile
// is passed over.
func loadRecords[T any](folder string) ([]T, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return nil, err
	}
	var records []T
	for _, path := range paths {
		record, err := loadRecord[T](path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
}

// fileName turns a name into a file name: shop/web becomes shop.web.
func fileName(name string) string { return strings.ReplaceAll(name, "/", ".") }
