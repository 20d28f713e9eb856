package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Node is the place of a node's host processes.
func (l *Lab) Node(node string) (Place, error) {
	if !slices.Contains(l.NodeNames(), node) {
		return Place{}, fmt.Errorf("node %q: lab %s has %s", node, l.Name, strings.Join(l.NodeNames(), ", "))
	}
	return Place{Name: node, Netns: l.netnsPath(node), Cgroup: l.cgroupPath(node, "host")}, nil
}

// Outside is the place of the host that is no part of the cluster.
func (l *Lab) Outside() Place {
	return Place{Name: outsidePart, Netns: l.netnsPath(outsidePart), Cgroup: l.cgroupPath(outsidePart)}
}

// Control is the place of the store.
func (l *Lab) Control() Place {
	return Place{Name: controlPart, Netns: l.netnsPath(controlPart), Cgroup: l.cgroupPath(controlPart)}
}

// Find turns what a person typed into a place: a node, a pod as namespace/name or name, outside, or control.
func (l *Lab) Find(name string) (Place, error) {
	switch name {
	case outsidePart:
		return l.Outside(), nil
	case controlPart:
		return l.Control(), nil
	}
	if place, err := l.Node(name); err == nil {
		return place, nil
	}
	pod, err := l.Pod(name)
	if err != nil {
		return Place{}, fmt.Errorf("%w; nodes are %s, and there are outside and control",
			err, strings.Join(l.NodeNames(), ", "))
	}
	return pod.Place, nil
}

// NodeExec runs a program to its end on a node, outside any pod.
func (l *Lab) NodeExec(ctx context.Context, node string, argv ...string) (string, error) {
	place, err := l.Node(node)
	if err != nil {
		return "", err
	}
	return place.Exec(ctx, argv...)
}

// OutsideExec runs a program to its end on the outside host.
func (l *Lab) OutsideExec(ctx context.Context, argv ...string) (string, error) {
	return l.Outside().Exec(ctx, argv...)
}

// Start starts a program that goes on in the background until it ends, is stopped, or the lab goes down. Names are
// unique among what runs; an empty one is made up.
func (l *Lab) Start(place Place, name string, argv ...string) (*Process, error) {
	if name == "" {
		name = place.Name + "-" + filepath.Base(argv[0])
	}
	record, free, err := l.freeRecord(fileName(name))
	if err != nil {
		return nil, err
	}
	process, err := place.spawn(free, l.state(logFolder, free+".log"), argv...)
	if err != nil {
		return nil, errors.Join(err, os.Remove(record))
	}
	return process, saveRecord(record, process)
}

// freeRecord claims the name, or the name with the first number behind it that is free, by making its record. A record
// whose process has ended is free.
func (l *Lab) freeRecord(name string) (path, free string, err error) {
	if err := os.MkdirAll(l.state(procRecords), 0o755); err != nil {
		return "", "", err
	}
	for i := 1; ; i++ {
		free = name
		if i > 1 {
			free = name + "-" + strconv.Itoa(i)
		}
		path = l.state(procRecords, free+".json")
		if old, err := loadRecord[Process](path); err == nil && !old.Alive() {
			_ = os.Remove(path)
		}
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err == nil {
			return path, free, file.Close()
		}
		if !errors.Is(err, os.ErrExist) {
			return "", "", fmt.Errorf("record of process %s: %w", name, err)
		}
	}
}

// Processes lists what the lab has started and what still runs of it.
func (l *Lab) Processes() ([]*Process, error) {
	all, err := loadRecords[*Process](l.state(procRecords))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(p *Process) bool { return !p.Alive() }), nil
}

// process finds a running process by its exact name.
func (l *Lab) process(name string) (*Process, error) {
	process, err := loadRecord[*Process](l.state(procRecords, name+".json"))
	if errors.Is(err, os.ErrNotExist) || err == nil && !process.Alive() {
		return nil, fmt.Errorf("process %s of lab %s: does not run", name, l.Name)
	}
	return process, err
}
