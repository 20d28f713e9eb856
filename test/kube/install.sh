# Sourced by run.sh: tendril is installed, updated and taken out as users do.
settings=(--kubeconfig "$state/pki/admin.kubeconfig" --set cgroup=/sys/fs/cgroup/unified --set cni.confDir=/opt/cni/net.d
  --set operator.nodeGrace=5s --set operator.certificateLife=30s --set operator.podPools='["default=10.0.0.0/16:24'"${DUAL:+,fd00:10::/48:64}"'"]'
  --set agent.config.alive_lease_seconds=10 --set "agent.config.mode=$MODE")

# chart: Helm makes the same of the chart.
chart() {
  local values=(apiServer.host=192.0.2.1 operator.node=n1 operator.address=192.0.2.1 agent.config.mode=vxlan cgroup=/sys/fs/cgroup/unified)
  "$root/bin/tendril" install --dry-run "${values[@]/#/--set=}" | "$bin/helm" "$root/deploy/helm/tendril" kube-system "${values[@]}"
}

install() {
  await 60 'node n1 known, for the operator' kubectl get node n1
  "$root/bin/tendril" install "${settings[@]}" --timeout 90s > "$state/log/install"
  echo "$(printf '%4d' $SECONDS) s  tendril installed"
  await 60 'nodes ready' kubectl wait --for=condition=Ready node --all --timeout=1s
  "$root/bin/tendril" status --kubeconfig "$state/pki/admin.kubeconfig" --wait --timeout 60s > "$state/log/status"
  grep -q '^agents  *\([1-9][0-9]*\) of \1 ready' "$state/log/status"
  grep -q '^authority  *until 20' "$state/log/status"
  echo "$(printf '%4d' $SECONDS) s  in force, says tendril status"
}

# sysdump: all of it can be read, and no key is in it.
sysdump() {
  local name
  "$root/bin/tendril" sysdump --kubeconfig "$state/pki/admin.kubeconfig" --file "$state/dump.tar.gz" > "$state/text"
  not grep 'could not be read' "$state/text" >&2
  tar -tzf "$state/dump.tar.gz" > "$state/names"
  for name in status.json objects/DaemonSet.apps.yaml objects/Node.yaml agents/n1/status agents/n2/db_list 'logs/tendril-agent-.*/install' 'logs/tendril-operator-.*/operator'; do
    grep -q "/$name\$" "$state/names" || { echo "FAIL: no $name in the sysdump" >&2; false; }
  done
  tar -xzOf "$state/dump.tar.gz" > "$state/dump"
  not grep -q 'PRIVATE KEY\|^kind: Secret' "$state/dump"
  echo "$(printf '%4d' $SECONDS) s  sysdump of $(wc -l < "$state/names") files"
}

# load_begins has pods on both nodes talk, until load_ends, which fails if a request was lost.
load_begins() {
  [ -p "$state/hold" ] || mkfifo "$state/hold"
  kubectl -n web exec -i deploy/client -- /probe load http://web.web.svc.cluster.local < "$state/hold" > "$state/log/load" 2>&1 &
  load=$!
  exec {hold}> "$state/hold"
  sleep 1
}

load_ends() {
  sleep 1
  exec {hold}>&-
  wait $load
  echo "       $(tail -n 1 "$state/log/load")"
  grep -q 'answered [1-9][0-9]* lost 0$' "$state/log/load"
}

# update: agents and operator are replaced under load, and the store loses all it has.
update() {
  load_begins
  kubectl -n kube-system rollout restart daemonset/tendril-agent > /dev/null
  kubectl -n kube-system rollout status daemonset/tendril-agent --timeout=90s > /dev/null
  echo "$(printf '%4d' $SECONDS) s  agents replaced"
  kubectl -n kube-system rollout restart deployment/tendril-operator > /dev/null
  kubectl -n kube-system rollout status deployment/tendril-operator --timeout=90s > /dev/null
  echo "$(printf '%4d' $SECONDS) s  operator replaced"
  wipe
  await 60 'the store, which lost everything, filled' stored "$here/manifests/allow.yaml"
  sleep 2 # agents compare
  load_ends
}

# held NODE prog|map: ids of what the agent holds, from its open files, and of pods' programs.
held() {
  local pid
  for pid in $(inside "$1" pgrep -x tendril-agent); do
    inside "$1" sh -c "cat /proc/$pid/fdinfo/* 2>/dev/null" | awk -v kind="$2_id:" '$1 == kind { print $2 }'
  done
  [ "$2" = map ] || inside "$1" "$root/bin/tendril" bpf template describe -o json | awk -F '[:,]' '/"program_?[iI]d"/ { print $2 + 0 }'
}

# leftovers NODE prints what is left of tendril on a node. The kernel
# has files of its own in every bpffs.
leftovers() {
  inside "$1" sh -c 'find /sys/fs/bpf /opt/cni/net.d -mindepth 1 ! -name "*.debug"
    ls -d /run/tendril /var/lib/tendril /var/lib/tendril-store /opt/cni/bin/tendril-cni 2>/dev/null
    ip -o link | grep -E "tnd|tendril"; ip route show table all proto 116; ip route show table all proto 117; ip -6 route show table all proto 117
    ip -o addr show dev lo | grep -v " 127.0.0.1/8\| ::1/128"
    tc filter show dev eth0 ingress; tc filter show dev eth0 egress'
}

uninstall() {
  local node kind ids left
  declare -A before
  for node in n1 n2; do
    for kind in prog map; do
      before[$node-$kind]=$(held $node $kind | sort -nu | tr '\n' ' ')
      [ "$(wc -w <<< "${before[$node-$kind]}")" -gt 10 ] # else the test looks at nothing
    done
  done
  [ "$(kubectl get identities -A -o name | wc -l)" -gt 1 ]
  "$root/bin/tendril" uninstall --kubeconfig "$state/pki/admin.kubeconfig" --timeout 90s > "$state/log/uninstall"
  echo "$(printf '%4d' $SECONDS) s  tendril uninstalled"
  for node in n1 n2; do
    left=$(leftovers $node)
    [ -z "$left" ] || { echo "left on $node: $left" >&2; false; }
    for kind in prog map; do
      ids=${before[$node-$kind]}
      await 10 "$(wc -w <<< "$ids") BPF objects ($kind) of $node gone" none_loaded $kind $ids
    done
  done
  left=$(kubectl get -A daemonsets,deployments,pods,configmaps,secrets,serviceaccounts,leases,clusterroles,clusterrolebindings,roles,rolebindings -o name | grep tendril || true)
  left+=$(kubectl get crd identities.tendril.io --ignore-not-found -o name)
  [ -z "$left" ] || { echo "left in the cluster: $left" >&2; false; }
}

none_loaded() {
  local left
  left=$("$bin/probe" loaded "$@") && [ -z "$left" ]
}
