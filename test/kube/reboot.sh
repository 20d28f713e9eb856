# Sourced by run.sh: both nodes lose power at once, and the API server with them, which comes back last. Nothing may wait in a circle then, and nothing
# of before may be left.
reboot() {
  local before node
  local -A told
  kubectl -n web wait --for=condition=Available deploy/web deploy/client --timeout=60s > /dev/null
  await 60 'addresses of all pods, and no others, in the store and on the nodes' all_published # some may just be ending
  before=$(addresses_of_pods)
  [ "$(wc -w <<< "$before")" -gt 6 ] # of web, client and CoreDNS; else the test looks at nothing
  kill "${started[apiserver]}"
  power_off n1 n2
  await 30 'API server and nodes gone' away
  power_on n1 10.200.0.11 fd00:200::11
  power_on n2 10.200.0.12 fd00:200::12
  for node in n1 n2; do told[$node]=$(wc -l < "$state/log/$node-kubelet"); done
  start_kubelet n1 "10.200.0.11${DUAL:+,fd00:200::11}"
  start_kubelet n2 "10.200.0.12${DUAL:+,fd00:200::12}"
  if asks_status; then
    for node in n1 n2; do await 30 "kubelet of $node told that no agent has been ready" told_unready $node "${told[$node]}"; done
  fi
  api_server
  if asks_status; then history_begins; fi
  # Until kubelets have been heard the API server says what was: that pods run and answer.
  await 180 'service by its name from a pod, after power was lost everywhere' from_pod web.web.svc.cluster.local
  await 120 'deployments available' kubectl -n web wait --for=condition=Available deploy/web deploy/client --timeout=1s
  await 120 'CoreDNS available' kubectl -n kube-system wait --for=condition=Available deploy/coredns --timeout=1s
  await 120 'nodes ready' kubectl wait --for=condition=Ready node --all --timeout=1s
  if asks_status; then
    for node in n1 n2; do await 60 "$node ready since it has power" ready_in_boot $node; done
    history_ends
    for node in n1 n2; do ready_since_agent $node; done
  fi
  "$root/bin/tendril" status --kubeconfig "$state/pki/admin.kubeconfig" --wait --timeout 120s > "$state/log/status"
  await 60 'addresses of the pods that run, and no others, in the store and on the nodes' only_new "$before"
  kubectl delete -f "$here/manifests/allow.yaml" > /dev/null # it lets no other node's processes in
  for node in n1 n2; do await 30 "service from node $node" inside $node "$bin/probe" get http://10.96.7.8; done
  kubectl apply -f "$here/manifests/deny.yaml" > /dev/null
  await 20 'denied by the policy' denied 10.96.7.8
  kubectl apply -f "$here/manifests/allow.yaml" > /dev/null
  await 20 'allowed by the policy' from_pod 10.96.7.8
}

# addresses_of_pods, as the API server has them, without those of nodes.
addresses_of_pods() {
  kubectl get pods -A -o 'jsonpath={range .items[*]}{.spec.hostNetwork} {.status.podIPs[*].ip}{"\n"}{end}' | awk '$1 != "true"' | tr -s ' ' '\n' | grep . | sort
}

# published ADDRESSES: the store has these of pods and no others, and so have the nodes.
published() {
  diff <(echo "$1") <(inside n1 "$root/bin/tendril" db show ips | awk 'NR > 1 { print $2 }' | sort) &&
    diff <(echo "$1") <(for node in n1 n2; do inside $node "$root/bin/tendril" db show endpoints; done | awk '$1 != "ID" { print $4 }' | tr , '\n' | sort)
}

all_published() { published "$(addresses_of_pods)"; }

only_new() {
  local now
  now=$(addresses_of_pods)
  [ "$now" != "$1" ] && published "$now"
}
