# Sourced by run.sh: the API server is away for AWAY seconds. Pods talk on kept and on new connections and nothing is lost; sandboxes of pods that end
# meanwhile are made anew, with other addresses, and policy knows these by the pods' labels on both nodes.
api_server_away() {
  local node id load hold client
  kubectl apply -f "$here/manifests/late.yaml" > /dev/null
  await 30 'two more pods' kubectl -n web wait --for=condition=Ready pod/friend pod/stranger --timeout=1s
  client=$(kubectl -n web get pods -l app=client,late!=yes -o 'jsonpath={.items[0].spec.nodeName} {.items[0].status.containerStatuses[0].containerID}')
  node=${client% *} id=${client#*containerd://}
  mkfifo "$state/away"
  in_container "$node" "$id" load http://web.web.svc.cluster.local < "$state/away" > "$state/log/away" 2>&1 &
  load=$!
  exec {hold}> "$state/away"
  sleep 1
  kill "${started[apiserver]}"
  await 30 'API server away' away
  for pod in friend stranger; do again "$pod"; done
  sleep "${AWAY:-30}"
  for _ in {1..10}; do late friend > /dev/null; done # at the service's backends on both nodes
  not late stranger > "$state/text" 2>&1
  grep -q 'deadline exceeded' "$state/text"
  away
  echo "$(printf '%4d' $SECONDS) s  policy knows the pods that started anew"
  eval "api_server $hold>&-" # else it would keep the load's input open
  # kube-controller-manager now and then calls nodes not ready that it has not heard of for 50 s, for as long as its own watches and kubelets take to
  # come back. Nothing may be lost by that either.
  [ "${AWAY:-30}" -lt 50 ] || sleep 90
  exec {hold}>&-
  wait $load
  echo "       $(tail -n 1 "$state/log/away")"
  grep -q 'answered [1-9][0-9]* lost 0$' "$state/log/away"
  await 120 'nodes ready' kubectl wait --for=condition=Ready node --all --timeout=1s
  kubectl delete -f "$here/manifests/late.yaml" --wait=false > /dev/null
}

# in_container NODE ID COMMAND ARGUMENT: probe in a container, which kubectl cannot reach now.
in_container() { inside "$1" "$debian/usr/bin/ctr" -n k8s.io tasks exec --exec-id "probe-$3" "$2" /probe "${@:3}"; }

# late POD asks the service from a pod on n1.
late() { in_container n1 "$(container "$1" container)" get http://10.96.7.8; }

# container POD sandbox|container prints the one of the pod on n1 that runs.
container() {
  local id
  for id in $(inside n1 "$debian/usr/bin/ctr" -n k8s.io containers ls -q "labels.\"io.kubernetes.pod.name\"==$1,labels.\"io.cri-containerd.kind\"==$2"); do
    if inside n1 "$debian/usr/bin/ctr" -n k8s.io tasks ls | grep -q "^$id .*RUNNING"; then echo "$id"; fi
  done
}

# again POD ends the pod's sandbox and waits until kubelet has made it another.
again() {
  local before
  before=$(container "$1" sandbox)
  inside n1 "$debian/usr/bin/ctr" -n k8s.io tasks kill -s KILL "$before"
  await 30 "another sandbox of $1" another "$1" "$before"
}
another() { local now; now=$(container "$1" sandbox); [ -n "$now" ] && [ "$now" != "$2" ] && [ -n "$(container "$1" container)" ]; }
away() { ! kubectl get --raw /readyz > /dev/null 2>&1; }
