#!/bin/bash
# run.sh: every test of the project, in the order in which failures are cheapest to learn. All steps run even if one fails. At
# the end nothing of the tests may be left on the machine: what is left is named, removed, and fails the run.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.." || exit 1
kernels=$PWD/build/kernels
failed=()

# step NAME COMMAND...: runs it, says how long it took, remembers a failure.
step() {
	local name=$1 start=$SECONDS
	shift
	echo "== $name"
	if "$@"; then
		echo "== $name: ok, $((SECONDS - start)) s"
	else
		echo "== $name: FAILED, $((SECONDS - start)) s"
		failed+=("$name")
	fi
}

# generated: what is generated must be what the sources say.
generated() {
	local files before after
	files=$(git ls-files bpf api docs | grep -E '\.o$|\.pb\.go$|bpf/types\.go|docs/drops\.md')
	before=$(sha256sum $files)
	make -s generate > build/generate.log 2>&1 || { cat build/generate.log; return 1; }
	after=$(sha256sum $files)
	diff <(echo "$before") <(echo "$after") || { echo "make generate changes these files: commit them with their sources"; return 1; }
}

# alone lists the packages whose tests measure time or load the machine: they run one by one, after the others.
alone() { go list ./internal/lab ./test/lab ./test/kernels ./test/apiserver; }

others() { go list ./... | grep -vxF "$(alone)" | grep -v '/test/lint$'; }

leftovers() {
	local left
	left=$(test/sweep.sh list)
	[ -n "$left" ] || return 0
	echo "the tests left these on the machine:"
	echo "$left"
	test/sweep.sh remove
	return 1
}

finish() {
	step leftovers leftovers
	if [ ${#failed[@]} -gt 0 ]; then
		echo "FAIL: ${failed[*]}"
		exit 1
	fi
	echo "PASS: every step"
}

mkdir -p build
if [ -n "${CI:-}" ]; then # nobody's lab can be up there: what is left is of a run that was killed
	test/sweep.sh remove
fi
if [ -n "$(test/sweep.sh list)" ]; then
	echo "something of an earlier run is on this machine; end it (tendril lab down), or make sweep, first:"
	test/sweep.sh list
	exit 1
fi
trap 'failed+=(interrupted); finish' INT TERM

step packages test/install.sh generate lab runtimes kernels
step kernels-fetch test/kernels/fetch.sh "$kernels"
step build make -s build
step vet go vet ./...
step lint go test -count=1 ./test/lint
step generated generated
step tests go test -timeout 10m $(others)
step opinion env TENDRIL_BIN="$PWD/bin" go -C test/opinion test -count=1 -timeout 10m ./...
step kernels env TENDRIL_KERNELS="$kernels" go test -count=1 -timeout 30m ./test/kernels
step apiserver-build test/kube/build.sh apiserver
step apiserver env TENDRIL_KUBE="$PWD/build/kube/bin" TENDRIL_BIN="$PWD/bin" go test -count=1 -timeout 30m ./test/apiserver
step lab env TENDRIL_BIN="$PWD/bin" go test -count=1 -p 1 -timeout 25m ./internal/lab ./test/lab
finish
