# Sourced by run.sh: the control plane, in the network of its caller, at 10.200.0.1. Needs $bin, $state.
declare -A started # process of each
start() { # NAME PROGRAM ARGUMENT...
  local name=$1 failed
  shift
  failed=$(trap -p ERR)
  trap - ERR # that it ends is no failure of the script
  "$@" >> "$state/log/$name" 2>&1 < /dev/null &
  started[$name]=$!
  eval "$failed"
}

# not COMMAND...: it does not succeed, or the script ends. A "!" before a command says the same and ends nothing.
not() { ! "$@"; }

await() { # SECONDS WHAT COMMAND...
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { echo "FAIL: no $what in time" >&2; return 1; }
    sleep 0.2
  done
  echo "$(printf '%4d' $SECONDS) s  $what"
}

kubectl() { "$bin/kubectl" --kubeconfig "$state/pki/admin.kubeconfig" "$@"; }

services=10.96.0.0/12${DUAL:+,fd00:96::/108}
etcd=http://127.0.0.1:12379 # the product's own store has the usual port

control_plane() {
  ip link set lo up
  ip link add fabric type bridge
  ip addr add 10.200.0.1/24 dev fabric
  [ -z "$DUAL" ] || ip addr add fd00:200::1/64 dev fabric nodad
  ip link set fabric up
  start etcd "$bin/etcd" --data-dir "$state/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls $etcd --advertise-client-urls $etcd --listen-peer-urls http://127.0.0.1:12380
  api_server
  # Not before: their back-off would delay the first service account by seconds.
  start controllers "$bin/kube-controller-manager" --kubeconfig "$state/pki/controllers.kubeconfig" \
    --use-service-account-credentials --service-account-private-key-file "$state/pki/accounts.key" \
    --root-ca-file "$state/pki/ca.crt" --leader-elect=false \
    --service-cluster-ip-range $services
  start scheduler "$bin/kube-scheduler" --kubeconfig "$state/pki/scheduler.kubeconfig" --leader-elect=false
  await 60 'default service account' kubectl get serviceaccount default
}

api_server() {
  audit_policy
  start apiserver "$bin/kube-apiserver" --etcd-servers $etcd --advertise-address 10.200.0.1 --service-cluster-ip-range $services \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$state/pki/accounts.pub" \
    --service-account-signing-key-file "$state/pki/accounts.key" --client-ca-file "$state/pki/ca.crt" \
    --tls-cert-file "$state/pki/apiserver.crt" --tls-private-key-file "$state/pki/apiserver.key" \
    --kubelet-client-certificate "$state/pki/to-kubelets.crt" --kubelet-client-key "$state/pki/to-kubelets.key" \
    --kubelet-certificate-authority "$state/pki/ca.crt" --kubelet-preferred-address-types InternalIP \
    --authorization-mode Node,RBAC --allow-privileged --audit-policy-file "$state/audit.yaml" --audit-log-path "$state/log/audit"
  await 90 'API server ready' kubectl get --raw /readyz
}
