# Sourced by run.sh: nodes of the cluster, sets of namespaces with containerd and kubelet each.
debian=$root/build/kube/root
declare -A first # the first process of each node
scope=tendril-${state##*.} # begins the names of control groups, which are the whole machine's
declare -a groups

# join NODE: the calling shell becomes a member of the node's control groups. Namespaces of control groups begin where their maker is.
join() {
  local group
  for group in "${groups[@]}"; do echo $BASHPID > "$group/$scope-$1/cgroup.procs"; done
}

# inside NODE COMMAND...
inside() {
  local node=$1
  shift
  ( join "$node"; exec nsenter -t "${first[$node]}" -m -n -p -u -i -C -- "$@" )
}

# control_groups lists where the caller is in each hierarchy. A node's limits are in those of version 1; where the machine has all
# controllers in version 2, its nodes would have to share one tree with the caller, whom the kernel allows no children there.
control_groups() {
  local id names path
  if ! grep -q ':memory:' /proc/self/cgroup; then
    echo 'FAIL: this machine has control groups of version 2 only, and these nodes need version 1 beside it: boot with
systemd.unified_cgroup_hierarchy=hybrid, or run this on another machine' >&2
    exit 1
  fi
  while IFS=: read -r id names path; do
    case $names in '') names=unified ;; name=*) names=${names#name=} ;; esac
    groups+=("/sys/fs/cgroup/$names${path%/}")
  done < /proc/self/cgroup
}

# add_node NAME ADDRESS ADDRESS6
add_node() {
  local name=$1 address=$2 own=$state/$1 group
  mkdir -p "$own"
  for group in "${groups[@]}"; do
    mkdir "$group/$scope-$name"
    [ ! -f "$group/cpuset.cpus" ] || for file in cpuset.cpus cpuset.mems; do cat "$group/$file" > "$group/$scope-$name/$file"; done
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
    echo 1 > /proc/sys/net/ipv4/ip_forward; cp '$debian/usr/lib/cni/loopback' /opt/cni/bin/"
  if [ -n "$DUAL" ]; then
    inside "$name" sh -ec "ip addr add $3/64 dev eth0 nodad; ip route add default via fd00:200::1; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
    address+=,$3
  fi
  start "$name-containerd" inside "$name" env PATH="$debian/usr/bin:$debian/usr/sbin:$PATH" containerd -c "$here/node/containerd.toml"
  await 20 "containerd of $name" inside "$name" "$debian/usr/bin/ctr" version
  inside "$name" "$debian/usr/bin/ctr" -n k8s.io images import "$root/build/kube/probe.tar" > /dev/null
  for image in kube/coredns images/agent images/operator; do
    inside "$name" "$debian/usr/bin/ctr" -n k8s.io images import "$root/build/$image.tar" > /dev/null
  done
  sed "s#@PKI@#$state/pki#; s#@NODE@#$name#" "$here/node/kubelet.yaml" > "$own/kubelet.yaml"
  start_kubelet "$name" "$address"
}

# start_kubelet NAME ADDRESS[,ADDRESS6]
start_kubelet() {
  start "$1-kubelet" inside "$1" "$bin/kubelet" --config "$state/$1/kubelet.yaml" --kubeconfig "$state/pki/$1.kubeconfig" \
    --hostname-override "$1" --node-ip "$2"
}

# remove_nodes ends their processes and removes their control groups, which are free only once the last thread has gone.
remove_nodes() {
  local node group
  for node in "${!first[@]}"; do kill -9 "${first[$node]}" || true; done
  for _ in {1..50}; do
    for group in "${groups[@]}"; do find "$group" -depth -type d -path "$group/$scope-*" -exec rmdir {} + || true; done
    [ -n "$(for group in "${groups[@]}"; do find "$group" -maxdepth 1 -name "$scope-*"; done)" ] || return 0
    sleep 0.2
  done 2> /dev/null
}
