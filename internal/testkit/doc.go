// Package testkit holds what several packages' tests share and no program uses: packets as text, checked byte by byte; the binaries
// that whole nodes run; how fair dice are.
package testkit
