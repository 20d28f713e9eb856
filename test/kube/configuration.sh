# Sourced by run.sh: the ConfigMap changes under load, and agents follow it where they are.
agents() { kubectl -n kube-system get pods -l app.kubernetes.io/name=tendril-agent -o 'jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].restartCount}{"\n"}{end}' | sort; }
# say PATTERN: the agents of both nodes do, in their status.
say() {
  local node
  for node in n1 n2; do inside $node "$root/bin/tendril" status > "$state/text" && grep -q "$1" "$state/text" || return 1; done
}
version() { inside "$1" "$root/bin/tendril" status | awk '$1 == "datapath" { print $3 + 0 }'; }
reloaded() { [ "$(version n1) $(version n2)" = "$1" ]; }

# look: kubelet looks at a ConfigMap when it looks at a pod, each minute and a half at the latest, and when the pod's object has changed.
look() { kubectl -n kube-system annotate pods -l app.kubernetes.io/name=tendril-agent "test=$SECONDS-$RANDOM" --overwrite > /dev/null; }
reconfigure() { # ARGUMENT... of tendril install
  "$root/bin/tendril" install "${settings[@]}" "$@" --timeout 90s > "$state/log/install"
  look
}

configuration() {
  local before next
  before=$(agents)
  next="$(($(version n1) + 1)) $(($(version n2) + 1))"
  load_begins
  reconfigure --set agent.config.lb_mode=dsr
  await 120 'a live key of the ConfigMap in force on both nodes' say '^services .*lb_mode dsr'
  reconfigure --set agent.config.lb_mode=dsr --set agent.config.flow_records=true
  await 120 'a key that programs are loaded with in force on both nodes' reloaded "$next"
  reconfigure --set agent.config.lb_mode=dsr --set agent.config.flow_records=true --set agent.config.vni=7
  await 120 'a key that waits for a restart said on both nodes' say '^configuration .*; waiting for a restart: vni$'
  kubectl -n kube-system get configmap tendril -o yaml | sed 's/"lb_mode": "dsr"/"lb_mode": "direct"/' | kubectl replace -f - > /dev/null
  look
  await 120 'a mistake in the ConfigMap said on both nodes' say 'problem: configuration /etc/tendril/agent.json: lb_mode: "direct" is neither snat nor dsr'
  say '^services .*lb_mode dsr'
  "$root/bin/tendril" status --kubeconfig "$state/pki/admin.kubeconfig" > "$state/text"
  grep -q 'lb_mode: "direct" is neither' "$state/text"
  reconfigure
  await 120 'the first ConfigMap in force again' say '^services .*lb_mode snat'
  not say 'problem: configuration'
  [ "$(agents)" = "$before" ] # nobody replaced or restarted one
  load_ends
}
