# Sourced by run.sh: nodes of the cluster, sets of namespaces with containerd and kubelet each.
debian=$root/build/kube/root
programs=$debian/usr/bin:$debian/usr/sbin # of the runtime: containerd, its shim, runc
[ "$CONTAINERD" = 1 ] || programs=$root/build/kube/containerd2:$programs
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
  local name=$1 image
  mkdir -p "$state/$name"
  sed "s#@PKI@#$state/pki#; s#@NODE@#$name#" "$here/node/kubelet.yaml" > "$state/$name/kubelet.yaml"
  power_on "$@"
  for image in kube/probe kube/coredns images/agent images/operator; do
    inside "$name" "$debian/usr/bin/ctr" -n k8s.io images import "$root/build/$image.tar" > /dev/null
  done
  start_kubelet "$name" "$2${DUAL:+,$3}"
}

# power_on NAME ADDRESS ADDRESS6: a node with containerd, and without kubelet.
power_on() {
  local name=$1 address=$2 own=$state/$1 group
  first[$name]= # its control groups are removed even if it never comes up
  for group in "${groups[@]}"; do
    mkdir "$group/$scope-$name"
    [ ! -f "$group/cpuset.cpus" ] || for file in cpuset.cpus cpuset.mems; do cat "$group/$file" > "$group/$scope-$name/$file"; done
  done
  rm -f "$own/ready"
  ( join "$name"; exec unshare -C -m -n -p -u -i -f --kill-child --propagation private "$here/node/init.sh" "$name" "$own" "$bin/probe" ) \
    >> "$state/log/$name-init" 2>&1 < /dev/null &
  local outer=$!
  await 10 "node $name" test -f "$own/ready"
  first[$name]=$(cat /proc/$outer/task/$outer/children)
  first[$name]=${first[$name]// /}
  ip link add "to-$name" type veth peer name eth0 netns "${first[$name]}"
  ip link set "to-$name" master fabric up
  inside "$name" sh -ec "ip link set lo up; ip addr add $address/24 dev eth0; ip link set eth0 up; ip route add default via 10.200.0.1
    echo 1 > /proc/sys/net/ipv4/ip_forward; cp '$debian/usr/lib/cni/loopback' /opt/cni/bin/"
  [ -z "$DUAL" ] ||
    inside "$name" sh -ec "ip addr add $3/64 dev eth0 nodad; ip route add default via fd00:200::1; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
  local log=$state/log/$name-containerd before
  before=$(grep -c . "$log" 2> /dev/null || true)
  start "$name-containerd" inside "$name" env PATH="$programs:$PATH" containerd -c "$here/node/containerd.toml"
  await 60 "containerd of $name" served "$log" "${before:-0}" # a kubelet that is sooner ends
  inside "$name" "$debian/usr/bin/ctr" version 2> /dev/null | sed -n '/^Server/,$p' | grep -q "Version: *v\?$CONTAINERD\."
}

# served LOG LINE: by its log behind that line containerd serves kubelets.
served() { tail -n +$(($2 + 1)) "$1" | grep -q 'Start streaming server'; }

# start_kubelet NAME ADDRESS[,ADDRESS6]
start_kubelet() {
  start "$1-kubelet" inside "$1" "$bin/kubelet" --config "$state/$1/kubelet.yaml" --kubeconfig "$state/pki/$1.kubeconfig" \
    --hostname-override "$1" --node-ip "$2"
}

# power_off NAME... ends nodes' processes and removes their control groups, which are free only once the last thread has gone. What their namespaces
# held goes with the last process: devices, mounts, and what is pinned in bpffs. Their disks stay.
power_off() {
  local node group left
  for node in "$@"; do kill -9 "${first[$node]}" || true; done
  for _ in {1..50}; do
    left=
    for node in "$@"; do
      for group in "${groups[@]}"; do
        find "$group" -depth -type d -path "$group/$scope-$node*" -exec rmdir {} + || true
        [ ! -d "$group/$scope-$node" ] || left=1
      done
    done
    [ -n "$left" ] || return 0
    sleep 0.2
  done 2> /dev/null
}
