package netlink

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// attached fails unless a program is attached in a direction.
func attached(t *testing.T, node *Handle, ifindex uint32, direction Direction, want uint32) {
	t.Helper()
	got, err := node.Attached(ifindex, direction, 1)
	if err != nil || got != want {
		t.Errorf("attached in direction %d is program %d, %v; want %d", direction, got, err, want)
	}
}

func TestClassifierIsAttachedReplacedAndDetached(t *testing.T) {
	node := newNode(t)
	ifindex, err := node.CreatePair(testPair(newNamespace(t), 0))
	if err != nil {
		t.Fatal(err)
	}
	attached(t, node, ifindex, Ingress, 0)
	old, oldID := newProgram(t)
	fresh, freshID := newProgram(t)
	if err := node.AttachClassifiers(ifindex, both(old.FD())...); err != nil {
		t.Fatal(err)
	}
	attached(t, node, ifindex, Ingress, oldID)
	attached(t, node, ifindex, Egress, oldID)
	if err := node.AttachClassifier(ifindex, Ingress, fresh.FD(), "te-fresh", 1); err != nil {
		t.Fatal(err)
	}
	attached(t, node, ifindex, Ingress, freshID)
	attached(t, node, ifindex, Egress, oldID)
	for range 2 { // the second finds nothing
		if err := node.DetachClassifier(ifindex, Ingress, 1); err != nil {
			t.Fatal(err)
		}
	}
	attached(t, node, ifindex, Ingress, 0)
	attached(t, node, ifindex, Egress, oldID)
}

func TestClassifierOfNoDeviceIsRefused(t *testing.T) {
	node := newNode(t)
	program, _ := newProgram(t)
	err := node.AttachClassifier(4711, Ingress, program.FD(), "te-nowhere", 1)
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "device 4711") {
		t.Errorf("error is %v, want ENODEV that names the device", err)
	}
}

func TestClassifierWithoutHandleTakesTheDefaultsPlace(t *testing.T) {
	node := newNode(t)
	ifindex, err := node.CreatePair(testPair(newNamespace(t), 0))
	if err != nil {
		t.Fatal(err)
	}
	first, _ := newProgram(t)
	second, secondID := newProgram(t)
	for _, program := range []int{first.FD(), second.FD()} {
		if err := node.AttachClassifiers(ifindex, Classifier{Direction: Ingress, FD: program, Name: "te-nameless"}); err != nil {
			t.Fatal(err)
		}
	}
	attached(t, node, ifindex, Ingress, secondID)
}

func TestDetachingWithoutClsactDoesNothing(t *testing.T) {
	node := newNode(t)
	if err := node.DetachClassifier(1, Egress, 1); err != nil {
		t.Errorf("detach from lo: %v", err)
	}
}
