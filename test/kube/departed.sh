# Sourced by run.sh, last: a node that Kubernetes no longer has and that is silent is forgotten; when it is back, with what its agent
# keeps on disk, it is known again.
known() { inside n1 "$root/bin/tendril" db show nodes | grep -q "^$1 "; }
unknown() { inside n1 "$root/bin/tendril" db show nodes > "$state/nodes" && ! grep -q "^$1 " "$state/nodes"; }

known n2
inside n2 sh -c 'for process in /proc/[0-9]*; do [ "$(cat $process/comm)" != tendril-agent ] || kill ${process#/proc/}; done'
kubectl delete node n2 > /dev/null
await 90 'n2 forgotten, once its sign of life has ended' unknown n2
start n2-agent inside n2 "$root/bin/tendril-agent" --config "$state/n2/agent.json"
await 30 'n2 known again' known n2
