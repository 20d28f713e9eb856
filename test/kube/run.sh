#!/bin/bash
# run.sh: a Kubernetes control plane and two nodes, in namespaces of their own that end with the script; tendril is installed there from its
# images and its chart, updated and taken out; a verdict. Needs root, openssl, iproute2, control groups of version 1 beside version 2
# (nodes mount both), the result of build.sh and the product's images. MODE=vxlan has pods' packets in tunnels instead of routed; DUAL=1 gives
# nodes, pods and services addresses of IPv6, too; CONTAINERD=2 has nodes run containerd 2, which asks STATUS of CNI 1.1, in place of Debian's
# containerd 1.6, which does not. Arguments name parts to run in place of all, as in `run.sh workload api_server_away`.
set -eE # the trap of ERR is for functions as well
here=$(dirname "$(readlink -f "$0")")
if [ -z "$INSIDE" ]; then
  export INSIDE=1
  exec unshare --mount --net --pid --ipc --fork --kill-child --mount-proc --propagation private "$0" "$@"
fi
root=$(readlink -f "$here/../..")
bin=$root/build/kube/bin
MODE=${MODE:-native} CONTAINERD=${CONTAINERD:-1}
case $CONTAINERD in 1 | 2) ;; *) echo "FAIL: CONTAINERD=$CONTAINERD, and there are 1 and 2" >&2; exit 1 ;; esac
state=$(mktemp -d)
finish() {
  power_off "${!first[@]}"
  rm -rf "$state"
}
trap finish EXIT
trap 'echo "FAIL at line $LINENO" >&2; kubectl get nodes,pods -A -o wide >&2 || true
  kubectl -n kube-system logs -l app.kubernetes.io/part-of=tendril --prefix --tail=20 >&2 || true; for log in apiserver n1-init n1-containerd n1-kubelet install uninstall load history store connectivity connectivity-wrong; do
  echo "--- $log"; tail -n 15 "$state/log/$log" || true; done >&2' ERR
# all: each part leaves the cluster as the next wants it.
all() {
  operator
  certificates
  balanced
  workload
  connectivity
  sysdump
  beside_kube_proxy
  rollout
  configuration
  update
  requests
  api_server_away
  status
  reboot
  departed
  own_stores
  replicas
  uninstall
}
mkdir -p "$state/pki" "$state/log"
for part in control nodes install connectivity beside operator certificates balanced workload configuration rollout requests away status reboot departed replicas ready conformance; do . "$here/$part.sh"; done
"$here/pki.sh" "$state/pki"
control_groups
chart
chart_outside
control_plane
add_node n1 10.200.0.11 fd00:200::11
[ "$1" = pod_ready ] || add_node n2 10.200.0.12 fd00:200::12
[ "$1" != conformance ] || for i in 3 4 5 6; do add_node n$i 10.200.0.1$i fd00:200::1$i; done
install
for part in "${@:-all}"; do $part; done
echo 'PASS'
