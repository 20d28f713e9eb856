#!/bin/bash
# build.sh: what a cluster is made of, into build/kube: Kubernetes and etcd from the modules of this folder's go.mod, CoreDNS and Helm from those
# of dns/go.mod and helm/go.mod, containerd and runc from Debian, unpacked but not installed, and the images of the pods. Ten minutes and 4 GB of build cache the first time; what is
# there is not built again.
set -e
here=$(dirname "$(readlink -f "$0")")
out=$(readlink -f "$here/../..")/build/kube
version=1.35.4
mkdir -p "$out/bin"
cd "$here"
export CGO_ENABLED=0 GOFLAGS='-buildvcs=false -mod=readonly'

# Kubernetes' programs compare versions with each other, and a build without one says v0.0.0.
flags='-s -w'
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=35"
  flags+=" -X $package.gitTreeState=clean -X $package.buildDate=2026-01-01T00:00:00Z"
done

build() { # NAME PACKAGE
  [ -x "$out/bin/$1" ] && [ "$out/bin/$1" -nt go.sum ] && return
  echo "build $1"
  go build -trimpath -ldflags "$flags" -o "$out/bin/$1" "$2"
}

build etcd go.etcd.io/etcd/server/v3
for program in kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet; do
  build $program k8s.io/kubernetes/cmd/$program
done

go build -trimpath -ldflags '-s -w' -o "$out/bin/probe" ./node/probe
(cd dns && go build -trimpath -ldflags '-s -w' -o "$out/bin/coredns" .)
(cd helm && go build -trimpath -ldflags '-s -w' -o "$out/bin/helm" .)
for program in probe coredns; do (cd ../.. && go run ./deploy/image tendril.test/$program:1 "$out/bin/$program" > "$out/$program.tar"); done

if [ ! -x "$out/root/usr/bin/containerd" ] || [ ! -x "$out/root/usr/lib/cni/loopback" ]; then
  echo 'fetch containerd, runc and the loopback plugin, which containerd calls for every pod'
  mkdir -p "$out/debs"
  cd "$out/debs"
  apt-get update -q > /dev/null
  apt-get download -q containerd runc containernetworking-plugins > /dev/null
  for package in *.deb; do dpkg -x "$package" "$out/root"; done
fi
