#!/bin/bash
# run.sh: a Kubernetes control plane, tendril's operator and two nodes, in namespaces of their own that end with the script; a verdict.
# Needs root, openssl, iproute2, control groups of version 1 beside version 2 (nodes mount both), the result of
# build.sh and the product's binaries in bin/.
set -eE # the trap of ERR is for functions as well
here=$(dirname "$(readlink -f "$0")")
if [ -z "$INSIDE" ]; then
  export INSIDE=1
  exec unshare --mount --net --pid --ipc --fork --kill-child --mount-proc --propagation private "$0" "$@"
fi
root=$(readlink -f "$here/../..")
bin=$root/build/kube/bin
state=$(mktemp -d)
finish() {
  remove_nodes
  rm -rf "$state"
}
trap finish EXIT
trap 'echo "FAIL at line $LINENO" >&2; kubectl get events,pods -A -o wide >&2 || true; for log in apiserver operator n1-init n1-containerd n1-kubelet n1-agent n2-agent; do
  echo "--- $log"; tail -n 15 "$state/log/$log" || true; done >&2' ERR
mkdir -p "$state/pki" "$state/log"
. "$here/control.sh"
. "$here/nodes.sh"
"$here/pki.sh" "$state/pki"
control_plane
. "$here/operator.sh"
. "$here/balanced.sh"
two_nodes
. "$here/departed.sh"
echo 'PASS'
