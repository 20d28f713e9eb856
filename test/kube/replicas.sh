# Sourced by run.sh: two operators. First each has a store of its own, and its node; then both stand before an etcd outside, by TLS. The cluster goes from
# one operator to two, and from stores inside to the one outside, under load; each time the leader is killed, and at last both are replaced in order.
replicas='[{"node": "n1", "address": "10.200.0.11"}, {"node": "n2", "address": "10.200.0.12"}]'
several=(--set operator.replicas="$replicas")
outside=("${several[@]}" --set 'store.external.endpoints=["10.200.0.1:22379"]' --set store.external.secret=store-etcd)

# chart_outside: Helm makes the same of the chart then, too.
chart_outside() {
  "$root/bin/tendril" install --dry-run --set apiServer.host=192.0.2.1 "${outside[@]}" | "$bin/helm" "$root/deploy/helm/tendril" kube-system apiServer.host=192.0.2.1 \
    operator.replicas[0].node=n1 operator.replicas[0].address=10.200.0.11 operator.replicas[1].node=n2 operator.replicas[1].address=10.200.0.12 \
    store.external.endpoints[0]=10.200.0.1:22379 store.external.secret=store-etcd
}

leader() { kubectl -n kube-system get lease tendril-operator -o 'jsonpath={.spec.holderIdentity}'; }
led_by_another() { local now; now=$(leader); [ -n "$now" ] && [ "$now" != "$1" ]; }
# alive: the store has signs of life of both nodes, as n1 hears it.
alive() { inside n1 "$root/bin/tendril" db show alive > "$state/alive" && grep -q '^n1 ' "$state/alive" && grep -q '^n2 ' "$state/alive"; }

# kill_leader kills the operator that leads, and waits until another does.
kill_leader() {
  local led node began
  led=$(leader)
  node=$(kubectl -n kube-system get pod "$led" -o 'jsonpath={.spec.nodeName}')
  inside "$node" sh -c 'kill -9 $(pgrep -x tendril-operato)' # a name has 15 bytes; it cannot say farewell to its lease
  kubectl -n kube-system delete pod "$led" --force --grace-period 0 > /dev/null 2>&1 # else it would start again under its name
  began=$SECONDS
  while ! led_by_another "$led"; do
    alive
    [ $((SECONDS - began)) -lt 25 ] # a lease of 15 s, and what a replica waits between looks
    sleep 0.5
  done
  echo "$(printf '%4d' $SECONDS) s  another operator leads, $((SECONDS - began)) s after the first was killed on $node"
}

# replace_leader replaces both operators in order.
replace_leader() {
  local led
  led=$(leader)
  kubectl -n kube-system rollout restart deployment/tendril-operator > /dev/null
  kubectl -n kube-system rollout status deployment/tendril-operator --timeout=90s > /dev/null
  await 10 'both operators replaced, and another leads without waiting for a lease to end' led_by_another "$led"
}

# follow: agents of both nodes go to the addresses of both operators.
follow() {
  local node
  for node in n1 n2; do inside $node "$root/bin/tendril" db show configuration > "$state/text" && grep -q '^store  *live  *\["10.200.0.11:2379","10.200.0.12:2379"\]' "$state/text" || return 1; done
}

own_stores() {
  local before
  before=$(agents)
  load_begins
  reconfigure "${several[@]}"
  settings+=("${several[@]}")
  await 120 'agents know both operators, each with a store of its own' follow
  await 30 'agents are at the leader'"'"'s store' say '^store  *connected'
  rollout
  kill_leader
  await 30 'agents are at the next leader'"'"'s store' say '^store  *connected'
  rollout
  replace_leader
  rollout
  alive
  [ "$(agents)" = "$before" ] # none was restarted for any of it
  load_ends
}

replicas() {
  local url=https://10.200.0.1:22379 peer=http://127.0.0.1:22380 pki=$state/pki
  start store "$bin/etcd" --name store --data-dir "$state/store" --unsafe-no-fsync --log-level warn --listen-client-urls $url --advertise-client-urls $url \
    --listen-peer-urls $peer --initial-advertise-peer-urls $peer --initial-cluster store=$peer \
    --cert-file "$pki/store.crt" --key-file "$pki/store.key" --trusted-ca-file "$pki/ca.crt" --client-cert-auth
  kubectl -n kube-system create secret generic store-etcd --from-file=ca.crt="$pki/ca.crt" --from-file=tls.crt="$pki/store.crt" --from-file=tls.key="$pki/store.key" > /dev/null
  load_begins
  settings+=("${outside[@]}")
  "$root/bin/tendril" install "${settings[@]}" --timeout 90s > "$state/log/install"
  kubectl -n kube-system rollout restart daemonset/tendril-agent > /dev/null
  kubectl -n kube-system rollout status daemonset/tendril-agent --timeout=90s > /dev/null
  echo "$(printf '%4d' $SECONDS) s  two operators before an etcd outside, and agents that read through them"
  certificates # of both nodes, and the same is forbidden
  rollout

  kill_leader
  rollout
  replace_leader
  alive
  load_ends
}
