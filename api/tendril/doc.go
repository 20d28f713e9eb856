// Package tendril holds the shape of the project's own kinds, tendril.io/v1alpha1, as manifests spell them. It says
// nothing about meaning: internal/kube checks and translates them. Identity alone is in no manifest: the operator writes it.
package tendril
