# Sourced by run.sh: the network specs of the Kubernetes e2e suite, as Kubernetes has them. FOCUS chooses among them by a regular expression. The
# report goes to build/kube/conformance/$SLICE, so that the suite can be asked in parts; the table is made of all reports that lie there.
reports=$root/build/kube/conformance
results=$reports/${SLICE:-all}

not_here=$(sed '/^#/d; s/\t.*//' "$here/not_here" | paste -sd '|')
[ -n "$DUAL" ] || not_here+='|Feature:IPv6DualStack'

# e2e FOCUS SKIP
e2e() {
  "$bin/ginkgo" --procs="${PROCS:-6}" --no-color --succinct --keep-going --timeout="${LIMIT:-1h}" --output-dir="$results" --json-report=specs.json \
    --focus="$1" --skip="$2" "$bin/e2e.test" -- --provider=skeleton --kubeconfig="$state/pki/admin.kubeconfig" \
    --kubectl-path="$bin/kubectl" --num-nodes=6 --dump-logs-on-failure=false --disable-log-dump > "$results/log" 2>&1
}

# routes: the API server, which is on no node, reaches pods, as it must for its proxy.
routes() {
  local name prefixes prefix
  while read -r name prefixes; do
    for prefix in $prefixes; do
      case $prefix in *:*) ip route add "$prefix" via "fd00:200::1${name#n}" ;; *) ip route add "$prefix" via "10.200.0.1${name#n}" ;; esac
    done
  done < <(kubectl get nodes -o 'jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDRs[*]}{"\n"}{end}')
}

# outside: who asks for a load balancer's address has one of no node's network. The suite takes any other for a node's that stands for the client.
outside() {
  ip addr add 198.18.0.1/32 dev lo
  ip route add 10.200.0.128/26 dev fabric src 198.18.0.1
}

conformance() {
  local node name failed=
  for node in n{1..6}; do # in three zones
    kubectl label node "$node" "topology.kubernetes.io/zone=zone-$((${node#n} % 3))" > /dev/null
    for name in agnhost regression-issue-74839; do
      inside "$node" "$debian/usr/bin/ctr" -n k8s.io images import "$root/build/kube/$name.tar" > /dev/null
    done
    for name in agnhost:2.59 agnhost:2.55 busybox:1.37.0-1 jessie-dnsutils:1.7; do
      inside "$node" "$debian/usr/bin/ctr" -n k8s.io images tag tendril.test/agnhost:1 "registry.k8s.io/e2e-test-images/$name" > /dev/null
    done
    inside "$node" "$debian/usr/bin/ctr" -n k8s.io images tag tendril.test/probe:1 registry.k8s.io/pause:3.10.1 > /dev/null
  done
  kubectl apply -f "$here/manifests/dns.yaml" > /dev/null
  await 60 'CoreDNS available' kubectl -n kube-system wait --for=condition=Available deploy/coredns --timeout=1s
  kubectl apply -f "$here/manifests/edge.yaml" > /dev/null # what a cloud's load balancer would give
  routes
  outside
  rm -rf "$results"
  mkdir -p "$results"
  e2e "${FOCUS:-\[sig-network\]}" "$not_here" || failed=1
  echo "$(printf '%4d' $SECONDS) s  specs asked"
  "$bin/verdicts" "$here/not_here" "$reports"/*/specs.json > "$reports/table.md"
  [ -z "$failed" ] || { echo "FAIL: see $results/log" >&2; false; }
}
