package kube

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Mistake is one thing wrong with one manifest. Its text names the file, the document, the object, the field and what
// to do.
type Mistake struct {
	File     string
	Document int    // counted from 1; 0: the source is not a file of documents
	Object   string // kind namespace/name, or kind name; empty if the document says no kind
	Err      error  // a *field.Error where a field is at fault
}

// Error gives "file document 2, Kind namespace/name: field: what is wrong; what to do".
func (m *Mistake) Error() string {
	var places []string
	if m.File != "" {
		place := m.File
		if m.Document > 0 {
			place = fmt.Sprintf("%s document %d", m.File, m.Document)
		}
		places = append(places, place)
	}
	if m.Object != "" {
		places = append(places, m.Object)
	}
	return strings.Join(places, ", ") + ": " + m.Err.Error()
}

// Unwrap gives the error without its place.
func (m *Mistake) Unwrap() error { return m.Err }

// Mistakes is everything wrong with a set of manifests, in the order in which it stands there.
type Mistakes []*Mistake

// Error gives a line for each mistake.
func (ms Mistakes) Error() string {
	lines := make([]string, len(ms))
	for i, m := range ms {
		lines[i] = m.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single mistake.
func (ms Mistakes) Unwrap() []error {
	errs := make([]error, len(ms))
	for i, m := range ms {
		errs[i] = m
	}
	return errs
}

// orNil avoids a non-nil error that holds no mistake.
func (ms Mistakes) orNil() error {
	if len(ms) == 0 {
		return nil
	}
	return ms
}

// place gives errors of fields the place of their object.
func (o *Object) place(errs field.ErrorList) Mistakes {
	ms := make(Mistakes, len(errs))
	for i, err := range errs {
		ms[i] = &Mistake{File: o.File, Document: o.Document, Object: o.String(), Err: err}
	}
	return ms
}
