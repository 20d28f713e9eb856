# Sourced by run.sh: what the operator makes of objects, with the rights that the chart gives it and no others.
tendril() { inside n1 "$root/bin/tendril" "$@" --store unix:///var/lib/tendril-store/store.sock; }

# stored FILE: the store has every object of the manifest. A dry run changes nothing, and fails for what is not there.
stored() { tendril delete --dry-run -f "$1"; }
# gone FILE: it has none of them.
gone() { [ "$(tendril delete --dry-run -f "$1" 2>&1 | grep -c 'not in cluster')" = "$(grep -c '^kind:' "$1")" ]; }

operator() {
  kubectl apply -f "$here/manifests/shop.yaml" > /dev/null
  await 60 'default account of shop' kubectl -n shop get serviceaccount default
  kubectl apply -f "$here/manifests/pod.yaml" > /dev/null
  await 30 'namespace, service and policy in the store' stored "$here/manifests/shop.yaml"
  await 30 'pod in the store' stored "$here/manifests/pod.yaml"
  kubectl -n shop delete pod web --force --grace-period 0 > /dev/null 2>&1
  await 30 'pod gone from the store' gone "$here/manifests/pod.yaml"
  kubectl delete -f "$here/manifests/shop.yaml" --wait=false > /dev/null
  await 60 'namespace, service and policy gone from the store' gone "$here/manifests/shop.yaml"
}
