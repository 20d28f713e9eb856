# Sourced by run.sh: how long 30 pods at once take from creation to Ready, on n1 by tendril and on n2 by the standard bridge plugin, in turns. It stands
# alone: n2 joins only now, and gets no agent. The figures are printed, and written to the file RESULTS if there is one to be.
pod_ready() {
  kubectl -n kube-system patch daemonset tendril-agent -p '{"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}}}}' > /dev/null
  kubectl -n kube-system rollout status daemonset/tendril-agent --timeout=90s > /dev/null
  add_node n2 10.200.0.12 fd00:200::12
  inside n2 sh -ec "cp '$debian/usr/lib/cni/bridge' '$debian/usr/lib/cni/host-local' /opt/cni/bin/; cat > /opt/cni/net.d/10-bridge.conflist" << 'END'
{"cniVersion": "1.0.0", "name": "bridge", "plugins": [{"type": "bridge", "bridge": "pods", "isDefaultGateway": true, "ipam": {
  "type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]], "dataDir": "/run/host-local"}}]}
END
  await 60 'nodes ready' kubectl wait --for=condition=Ready node/n1 node/n2 --timeout=1s
  "$bin/ready" "$state/pki/admin.kubeconfig" 30 "${ROUNDS:-5}" n1 n2 > "$state/ready"
  sed 's/"n1"/"kube_pod_ready_ms_p50"/; s/"n2"/"kube_pod_ready_bridge_ms_p50"/' "$state/ready" | tee ${RESULTS:+"$RESULTS"}
}
