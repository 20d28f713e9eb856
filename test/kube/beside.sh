# Sourced by run.sh: kube-proxy runs on both nodes as well, in its mode nftables and then in its mode iptables. Services and policies are as without it,
# and tendril says that it is there.
beside_kube_proxy() {
  local mode node
  kubectl create clusterrolebinding kube-proxy --clusterrole system:node-proxier --user system:kube-proxy > /dev/null
  for mode in nftables iptables; do
    for node in n1 n2; do start_kube_proxy $node $mode; done
    for node in n1 n2; do
      await 90 "kube-proxy of $node, with $mode, has written its rules" proxied $node $mode
      inside $node "$root/bin/tendril" status > "$state/text"
      grep -q "^services .*kube-proxy ($mode) runs here" "$state/text"
    done
    load_begins
    tendril_test > "$state/log/connectivity"
    load_ends
    echo "$(printf '%4d' $SECONDS) s  beside kube-proxy ($mode): $(tail -n 1 "$state/log/connectivity")"
    for node in n1 n2; do
      quit $node kube-proxy
      await 30 "kube-proxy of $node ended" ended $node
    done
    # Its rules stay in the nodes, as if a DaemonSet had been deleted.
    await 10 'service by its name from a pod' from_pod web.web.svc.cluster.local
  done
}

start_kube_proxy() { # NODE MODE
  cat > "$state/$1/kube-proxy.yaml" << END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $state/pki/proxy.kubeconfig}
mode: $2
hostnameOverride: $1
clusterCIDR: 10.0.0.0/16${DUAL:+,fd00:10::/48}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
  start "$1-kube-proxy" inside "$1" "$bin/kube-proxy" --config "$state/$1/kube-proxy.yaml"
}

# proxied NODE MODE: the rules have the service of the workload.
proxied() {
  case $2 in
  nftables) inside "$1" nft list table ip kube-proxy ;;
  iptables) inside "$1" iptables-save -t nat ;;
  esac | grep -q '10\.96\.7\.8'
}

ended() { ! inside "$1" pgrep -x kube-proxy > /dev/null; }
