#!/bin/bash
# pki.sh DIR: one authority, the API server's certificate, and a kubeconfig for each component, into DIR.
set -e
cd "$1"
server=https://10.200.0.1:6443

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>/dev/null; }

certificate() { # NAME SUBJECT [ALTERNATIVE NAMES]
  key "$1"
  { echo 'keyUsage=critical,digitalSignature'; echo 'extendedKeyUsage=serverAuth,clientAuth'; } > "$1.ext"
  [ -z "$3" ] || echo "subjectAltName=$3" >> "$1.ext"
  openssl req -new -key "$1.key" -subj "$2" |
    openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile "$1.ext" 2>/dev/null
  cat > "$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "$server", certificate-authority: $PWD/ca.crt}}]
users: [{name: u, user: {client-certificate: $PWD/$1.crt, client-key: $PWD/$1.key}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
K
}

key ca
openssl req -x509 -new -key ca.key -subj /CN=test-ca -days 30 -out ca.crt -addext 'keyUsage=critical,keyCertSign,digitalSignature'
certificate apiserver /CN=kube-apiserver 'IP:10.200.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local'
certificate store /CN=store IP:10.200.0.1 # an etcd, and its clients
certificate to-kubelets /O=system:masters/CN=to-kubelets
certificate admin /O=system:masters/CN=admin
certificate controllers /CN=system:kube-controller-manager
certificate scheduler /CN=system:kube-scheduler
certificate proxy /CN=system:kube-proxy
for node in 1 2 3 4 5 6; do certificate n$node "/O=system:nodes/CN=system:node:n$node" "IP:10.200.0.1$node"; done
openssl genrsa -out accounts.key 2048 2>/dev/null
openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
