# Sourced by run.sh: the operator has defined its kinds, gives addresses of a pool, says so in the status of Services, gives the same
# again when the store has lost everything, and takes them back.
shows() { [ "$(kubectl -n balanced get service "$1" -o 'jsonpath={.status.loadBalancer.ingress[*].ip}')" = "$2" ]; }
# refilled: the store has all of the manifest but the service that was deleted.
refilled() { [ "$(tendril delete --dry-run -f "$here/manifests/pool.yaml" 2>&1 | grep -c 'not in cluster')" = 1 ]; }

operators() { # COUNT
  kubectl -n kube-system scale deployment tendril-operator --replicas "$1" > /dev/null
  [ "$1" = 1 ] || kubectl -n kube-system wait --for=delete pod -l app.kubernetes.io/name=tendril-operator --timeout=30s > /dev/null
}

# wipe: the store loses everything, while no operator runs.
wipe() {
  operators 0
  inside n1 sh -c 'rm -r /var/lib/tendril-store/*'
  operators 1
}

balanced() {
  await 10 'own kind and policy kinds defined' kubectl wait --for=condition=Established --timeout=1s \
    crd/loadbalancerpools.tendril.io crd/ciliumnetworkpolicies.cilium.io crd/adminnetworkpolicies.policy.networking.k8s.io
  kubectl explain loadbalancerpool.spec.cidrs > "$state/text"
  grep -q 'of either family' "$state/text"
  kubectl create namespace balanced > /dev/null
  await 20 'pool, services and policy taken' kubectl apply -f "$here/manifests/pool.yaml"
  kubectl get lbpool public > "$state/text"
  grep -q 192.0.2.64/29 "$state/text"
  await 20 'address of the first service in its status' shows first 192.0.2.65
  await 10 'address of the second service in its status' shows second 192.0.2.66
  shows foreign ''
  await 10 'policy of a kind that the operator defined in the store' stored "$here/manifests/pool.yaml"

  kubectl -n balanced delete service first > /dev/null
  wipe
  await 60 'a store that lost everything is filled' refilled
  sleep 2 # it would have said another by now
  shows second 192.0.2.66

  kubectl delete lbpool public > /dev/null
  await 10 'status without the address of a pool that is gone' shows second ''
  kubectl delete -f "$here/manifests/pool.yaml" --ignore-not-found > /dev/null
  kubectl delete namespace balanced --wait=false > /dev/null
}
