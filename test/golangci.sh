#!/bin/bash
# golangci.sh: runs golangci-lint with the project's configuration, in the version that is pinned here. It is built once, outside
# go.mod, so that its many dependencies do not become the project's.
set -euo pipefail
version=v2.6.2
tool=build/golangci-lint-$version
if [ ! -x "$tool" ]; then
	echo "build golangci-lint $version, once"
	mkdir -p build
	GOBIN=$PWD/build GOFLAGS= go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
	mv build/golangci-lint "$tool"
fi
exec "$tool" run ./...
