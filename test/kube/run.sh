#!/bin/bash
# run.sh: a Kubernetes control plane and tendril's operator beside it, in namespaces of their own that end with the script; a verdict.
# Needs root, openssl, iproute2, the result of build.sh and the product's binaries in bin/.
set -e
here=$(dirname "$(readlink -f "$0")")
if [ -z "$INSIDE" ]; then
  export INSIDE=1
  exec unshare --mount --net --pid --ipc --fork --kill-child --mount-proc --propagation private "$0" "$@"
fi
root=$(readlink -f "$here/../..")
bin=$root/build/kube/bin
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
trap 'echo "FAIL at line $LINENO" >&2; for log in apiserver operator; do tail -n 15 "$state/log/$log" >&2 || true; done' ERR
mkdir -p "$state/pki" "$state/log"
. "$here/control.sh"
"$here/pki.sh" "$state/pki"
control_plane
. "$here/operator.sh"
echo 'PASS'
