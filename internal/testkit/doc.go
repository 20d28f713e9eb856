// Package testkit holds what several packages' tests share and no program uses: packets as text, checked byte by byte.
package testkit
