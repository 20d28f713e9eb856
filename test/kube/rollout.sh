# Sourced by run.sh: a policy's status says once all nodes enforce it, and kubectl prints that.
rollout() {
  kubectl apply -f "$here/manifests/guard.yaml" > /dev/null
  await 40 'a policy in force on all nodes, by its status' kubectl -n web wait --for=condition=tendril.io/Enforced ciliumnetworkpolicy/guard --timeout=1s
  kubectl -n web get ciliumnetworkpolicy guard > "$state/text"
  grep -q '^guard *True ' "$state/text"
  kubectl -n web delete ciliumnetworkpolicy guard > /dev/null
}
