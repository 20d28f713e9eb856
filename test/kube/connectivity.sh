# Sourced by run.sh: `tendril connectivity test` finds nothing where nothing is wrong, finds it where something is, and leaves nothing.
connectivity() {
  tendril_test > "$state/log/connectivity"
  grep -q '^all [1-9][0-9]* checks passed' "$state/log/connectivity"
  echo "$(printf '%4d' $SECONDS) s  tendril connectivity test: $(tail -n 1 "$state/log/connectivity")"
  kubectl apply -f "$here/manifests/wrong.yaml" > /dev/null
  not tendril_test --within 1s > "$state/log/connectivity-wrong" 2>&1
  grep -q '^FAILED pod to pod between nodes: client-1 asks' "$state/log/connectivity-wrong"
  grep -q 'AdminNetworkPolicy/wrong everything' "$state/log/connectivity-wrong" # the rule that dropped it
  kubectl delete -f "$here/manifests/wrong.yaml" > /dev/null
  not kubectl get namespace tendril-connectivity-test > "$state/text" 2>&1
  grep -q NotFound "$state/text"
  echo "$(printf '%4d' $SECONDS) s  tendril connectivity test finds a policy that should not be"
}

tendril_test() { "$root/bin/tendril" connectivity test --kubeconfig "$state/pki/admin.kubeconfig" "$@"; }
