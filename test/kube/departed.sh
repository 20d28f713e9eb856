# Sourced by run.sh: a node that Kubernetes no longer has and that is silent is forgotten; when it is back it is known again, with the
# pod addresses that it is given then. Between the two the cluster has one node.
known() { inside n1 "$root/bin/tendril" db show nodes | grep -q "^$1 "; }
unknown() { inside n1 "$root/bin/tendril" db show nodes > "$state/nodes" && ! grep -q "^$1 " "$state/nodes"; }

# quit NODE PROGRAM ends a program of a node.
quit() { inside "$1" sh -c 'for process in /proc/[0-9]*; do [ "$(cat $process/comm)" != '"$2"' ] || kill ${process#/proc/}; done'; }

# one_node: the test passes without the other one, and says what it left out. Pods of CoreDNS that were there are forgotten some time later.
one_node() {
  tendril_test > "$state/log/connectivity" && grep -q '^skip .*n1 is the only node' "$state/log/connectivity" &&
    grep -q '^all [1-9][0-9]* checks passed, and what needs two nodes was skipped$' "$state/log/connectivity"
}

departed() {
  known n2
  quit n2 kubelet # else it would start the agent again
  quit n2 tendril-agent
  kubectl delete node n2 > /dev/null
  await 90 'n2 forgotten, once its sign of life has ended' unknown n2
  await 120 'tendril connectivity test, with one node' one_node
  start_kubelet n2 "10.200.0.12${DUAL:+,fd00:200::12}"
  await 60 'n2 known again' known n2
  await 60 'n2 ready again' kubectl wait --for=condition=Ready node/n2 --timeout=1s
}
