# Sourced by run.sh: two nodes of the cluster, sets of namespaces with containerd, kubelet and tendril's agent each.
debian=$root/build/kube/root
declare -A first # the first process of each node
declare -a groups

# join NODE: the calling shell becomes a member of the node's control groups. Namespaces of control groups begin where their maker is.
join() {
  local group
  for group in "${groups[@]}"; do echo $BASHPID > "$group/$1/cgroup.procs"; done
}

# inside NODE COMMAND...
inside() {
  local node=$1
  shift
  ( join "$node"; exec nsenter -t "${first[$node]}" -m -n -p -u -i -C -- "$@" )
}

# control_groups lists where the caller is in each hierarchy.
control_groups() {
  local id names path
  while IFS=: read -r id names path; do
    case $names in '') names=unified ;; name=*) names=${names#name=} ;; esac
    groups+=("/sys/fs/cgroup/$names${path%/}")
  done < /proc/self/cgroup
}

# add_node NAME ADDRESS
add_node() {
  local name=$1 address=$2 own=$state/$1 group
  mkdir -p "$own"
  for group in "${groups[@]}"; do
    mkdir "$group/$name"
    [ ! -f "$group/cpuset.cpus" ] || for file in cpuset.cpus cpuset.mems; do cat "$group/$file" > "$group/$name/$file"; done
  done
  ( join "$name"; exec unshare -C -m -n -p -u -i -f --kill-child --propagation private "$here/node/init.sh" "$name" "$own" "$bin/probe" ) \
    > "$state/log/$name-init" 2>&1 < /dev/null &
  local outer=$!
  await 10 "node $name" test -f "$own/ready"
  first[$name]=$(cat /proc/$outer/task/$outer/children)
  first[$name]=${first[$name]// /}
  ip link add "to-$name" type veth peer name eth0 netns "${first[$name]}"
  ip link set "to-$name" master fabric up
  inside "$name" sh -ec "ip link set lo up; ip addr add $address/24 dev eth0; ip link set eth0 up; ip route add default via 10.200.0.1
    echo 1 > /proc/sys/net/ipv4/ip_forward; cp '$root/bin/tendril-cni' '$debian/usr/lib/cni/loopback' /opt/cni/bin/"
  start "$name-containerd" inside "$name" env PATH="$debian/usr/bin:$debian/usr/sbin:$PATH" containerd -c "$here/node/containerd.toml"
  await 20 "containerd of $name" inside "$name" "$debian/usr/bin/ctr" version
  inside "$name" "$debian/usr/bin/ctr" -n k8s.io images import "$root/build/kube/probe.tar" > /dev/null
  sed "s#@PKI@#$state/pki#; s#@NODE@#$name#" "$here/node/kubelet.yaml" > "$own/kubelet.yaml"
  start "$name-kubelet" inside "$name" "$bin/kubelet" --config "$own/kubelet.yaml" --kubeconfig "$state/pki/$name.kubeconfig" \
    --hostname-override "$name" --node-ip "$address"
}

# add_agent NAME: the agent, with the pod addresses that the operator gave the node; then the configuration that leads kubelet to it.
add_agent() {
  local name=$1 own=$state/$1 cidr
  await 30 "pod addresses of $name" sh -c "'$bin/kubectl' --kubeconfig '$state/pki/admin.kubeconfig' get node $name -o jsonpath={.spec.podCIDR} | grep ."
  cidr=$(kubectl get node "$name" -o 'jsonpath={.spec.podCIDR}')
  cat > "$own/agent.json" <<A
{"node": "$name", "store": ["10.200.0.1:2379"], "publish": "10.200.0.1:2380", "pod_cidrs": ["$cidr"],
 "cgroup": "/sys/fs/cgroup/unified", "masquerade": true}
A
  echo '{"cniVersion": "1.0.0", "name": "tendril", "plugins": [{"type": "tendril-cni"}]}' > "$own/tendril.conflist"
  start "$name-agent" inside "$name" "$root/bin/tendril-agent" --config "$own/agent.json"
  inside "$name" cp "$own/tendril.conflist" /opt/cni/net.d/
}

# remove_nodes ends their processes and removes their control groups.
remove_nodes() {
  local node group
  for node in "${!first[@]}"; do kill -9 "${first[$node]}" || true; done
  sleep 1
  for node in "${!first[@]}"; do
    for group in "${groups[@]}"; do find "$group/$node" -depth -type d -exec rmdir {} + || true; done
  done 2> /dev/null
}

hosts() { kubectl -n web get pods -l app=web -o 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | grep -c .; }
spread() { [ "$(hosts)" = 2 ]; }
from_pod() { kubectl -n web exec deploy/client -- /probe get "http://$1"; }
# denied: the client runs and waits in vain.
denied() { from_pod "$1" 2>&1 | grep -q 'probe: .*deadline exceeded'; }

two_nodes() {
  control_groups
  add_node n1 10.200.0.11
  add_node n2 10.200.0.12
  add_agent n1
  add_agent n2
  await 60 'nodes ready' kubectl wait --for=condition=Ready node/n1 node/n2 --timeout=1s
  kubectl apply -f "$here/manifests/web.yaml" > /dev/null
  await 60 'deployments available' kubectl -n web wait --for=condition=Available deploy/web deploy/client --timeout=1s
  await 5 'pods on both nodes' spread
  for address in $(kubectl -n web get pods -l app=web -o 'jsonpath={.items[*].status.podIP}'); do
    await 10 "pod $address from a pod" from_pod "$address:8080"
  done
  await 10 'service from a pod' from_pod 10.96.7.8
  for node in n1 n2; do await 10 "service from node $node" inside $node "$bin/probe" get http://10.96.7.8; done
  kubectl apply -f "$here/manifests/deny.yaml" > /dev/null
  await 20 'denied by the policy' denied 10.96.7.8
  kubectl apply -f "$here/manifests/allow.yaml" > /dev/null
  await 20 'allowed by the policy' from_pod 10.96.7.8
}
