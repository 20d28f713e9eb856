# Sourced by run.sh: STATUS of CNI 1.1. containerd 2 asks it whenever its kubelet asks how it is, every five seconds, and the node is ready or not by the
# answer; containerd 1 does not know it.
was_ready=/run/tendril/was-ready
unready='no tendril-agent has been ready on this node since it booted'

asks_status() { [ "$CONTAINERD" != 1 ]; }

status() {
  if ! asks_status; then
    echo '       STATUS is left out: containerd 1 does not ask it; CONTAINERD=2 does'
    return
  fi
  history_begins
  inside n1 mv $was_ready $was_ready.away
  await 30 'n1 not ready, as STATUS fails' grep -q "^n1 .* False .*$unready" "$state/log/history"
  inside n1 mv $was_ready.away $was_ready
  await 30 'n1 ready, as STATUS succeeds' kubectl wait --for=condition=Ready node/n1 --timeout=1s
  history_ends
  kubectl -n web wait --for=condition=Available deploy/web deploy/client --timeout=60s > /dev/null
  agent_away
}

# agent_away: the agent of n1 is killed and killed again whenever kubelet has started it, for half a minute. It is no reason to call the node not ready.
agent_away() {
  local end kills=0 pid
  load_begins
  history_begins
  end=$((SECONDS + 30))
  while [ $SECONDS -lt $end ]; do
    for pid in $(inside n1 pgrep -x tendril-agent || true); do inside n1 kill -9 "$pid" && kills=$((kills + 1)); done
    sleep 0.2
  done
  [ $kills -gt 1 ]
  not agent_ready n1 # else it was not away, and the test looks at nothing
  history_ends
  not grep -v '^n[12] [^ ]* True ' "$state/log/history" >&2
  echo "$(printf '%4d' $SECONDS) s  nodes ready all the while that the agent of n1 was away, killed $kills times"
  await 90 'agent of n1 ready' agent_ready n1
  load_ends
}

# agent_ready NODE
agent_ready() {
  local ready
  ready=$(kubectl -n kube-system get pods -l app.kubernetes.io/name=tendril-agent --field-selector "spec.nodeName=$1" \
    -o 'jsonpath={.items[*].status.containerStatuses[*].ready}')
  [ "$ready" = true ]
}

# history_begins has each state of the nodes written to a file, from now on until history_ends: name, boot, whether it is ready, when kubelet found so, why.
history_begins() {
  rm -f "$state/log/history"
  local ready='.status.conditions[?(@.type=="Ready")]' # no {range}: kubectl takes it once in a watch
  start history "$bin/kubectl" --kubeconfig "$state/pki/admin.kubeconfig" get nodes --watch -o \
    "jsonpath={.metadata.name} {.status.nodeInfo.bootID} {$ready.status} {$ready.lastHeartbeatTime} {$ready.message} {.metadata.annotations.history}{\"\\n\"}"
  await 10 'history of both nodes' both_in_history
}

# both_in_history [WORD]: a state of each node, with this word at its end.
both_in_history() { grep -q "^n1 .*$1\$" "$state/log/history" && grep -q "^n2 .*$1\$" "$state/log/history"; }

# history_ends: what was to come has come.
history_ends() {
  local end=ends-$SECONDS
  kubectl annotate --overwrite node n1 n2 history=$end > /dev/null
  await 10 'all of the history of both nodes' both_in_history $end
  kill "${started[history]}"
}

# told_unready NODE LINE: the runtime says so to the node's kubelet, by its log behind that line.
told_unready() { tail -n +$(($2 + 1)) "$state/log/$1-kubelet" | grep -q "runtime network not ready.*$unready"; }

# ready_in_boot NODE: by the history, kubelet has called the node ready since it has power again.
ready_in_boot() { grep -q "^$1 $(inside "$1" cat /proc/sys/kernel/random/boot_id) True " "$state/log/history"; }

# ready_since_agent NODE: by the history, it has not done so before an agent was ready, and has said what is waited for.
ready_since_agent() {
  local boot since ready when text before=0
  boot=$(inside "$1" cat /proc/sys/kernel/random/boot_id)
  since=$(inside "$1" stat -c %Y $was_ready)
  while read -r ready when text; do
    [ "$(date -d "$when" +%s)" -lt "$since" ] || continue
    before=$((before + 1))
    [[ "$ready $text" = "False "*"$unready"* ]] || { echo "FAIL: $1, without an agent, is ready: $ready, $text" >&2; return 1; }
  done < <(sed -n "s/^$1 $boot //p" "$state/log/history")
  echo "$(printf '%4d' $SECONDS) s  $1 not ready before its agent was, $before times in the history, and ready then"
}
