# Sourced by run.sh: pods, a service, its name and policies, as users have them.
hosts() { kubectl -n web get pods -l app=web -o 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | grep -c .; }
spread() { [ "$(hosts)" = 2 ]; }
from_pod() { kubectl -n web exec deploy/client -- /probe get "http://$1"; }
# denied: the client runs and waits in vain.
denied() { from_pod "$1" 2>&1 | grep -q 'probe: .*deadline exceeded'; }

workload() {
  kubectl apply -f "$here/manifests/dns.yaml" -f "$here/manifests/web.yaml" > /dev/null
  [ -z "$DUAL" ] || kubectl -n web patch service web -p '{"spec": {"ipFamilyPolicy": "RequireDualStack", "clusterIPs": ["10.96.7.8", "fd00:96::7:8"]}}' > /dev/null
  await 60 'deployments available' kubectl -n web wait --for=condition=Available deploy/web deploy/client --timeout=1s
  await 60 'CoreDNS available' kubectl -n kube-system wait --for=condition=Available deploy/coredns --timeout=1s
  await 5 'pods on both nodes' spread
  for address in $(kubectl -n web get pods -l app=web -o 'jsonpath={.items[*].status.podIPs[*].ip}'); do
    case $address in *:*) address="[$address]" ;; esac
    await 10 "pod $address from a pod" from_pod "$address:8080"
  done
  [ -z "$DUAL" ] || await 10 'service of IPv6 from a pod' from_pod '[fd00:96::7:8]'
  await 10 'service from a pod' from_pod 10.96.7.8
  await 10 'service by its name' from_pod web.web.svc.cluster.local
  for node in n1 n2; do await 10 "service from node $node" inside $node "$bin/probe" get http://10.96.7.8; done
  kubectl apply -f "$here/manifests/deny.yaml" > /dev/null
  await 20 'denied by the policy' denied 10.96.7.8
  kubectl apply -f "$here/manifests/allow.yaml" > /dev/null
  await 20 'allowed by the policy' from_pod 10.96.7.8
  await 10 'identities, by the numbers that agents say' identities_agree
}

# identities_agree: each identity that agents say a pod has is an object; one that no pod has any more may be there, too.
identities_agree() {
  local agents objects
  agents=$(for node in n1 n2; do inside $node "$root/bin/tendril" endpoint list -o json; done | grep -o '"identity": *"[0-9a-f]*"' | cut -d '"' -f 4 | sort -u)
  objects=$(kubectl get identities -A -o 'jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}' | sort -u)
  [ -n "$agents" ] && [ -z "$(comm -23 <(echo "$agents") <(echo "$objects"))" ]
}
