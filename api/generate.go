// Package api holds nothing but the directive that generates the Go code of the protobuf files below it.
package api

//go:generate sh generate.sh
