#!/bin/bash
# build.sh [apiserver | conformance]: what a cluster is made of, or its API server alone, or what the conformance suite wants as well, into
# build/kube: Kubernetes and etcd from the modules of this folder's go.mod, CoreDNS and Helm from those of dns/go.mod and helm/go.mod, containerd 1.6 and
# runc from Debian, unpacked but not installed, containerd 2 from containerd/go.mod beside them, and the images of the pods. Ten minutes and 4 GB of build cache the first time, four of them for the
# API server; what is there is not built again.
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

build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
[ "$1" != apiserver ] || exit 0
build etcd go.etcd.io/etcd/server/v3
for program in kube-controller-manager kube-scheduler kube-proxy kubectl kubelet; do
  build $program k8s.io/kubernetes/cmd/$program
done

go build -trimpath -ldflags '-s -w' -o "$out/bin/probe" ./node/probe
go build -trimpath -ldflags '-s -w' -o "$out/bin/ready" ./ready
(cd dns && go build -trimpath -ldflags '-s -w' -o "$out/bin/coredns" .)
(cd helm && go build -trimpath -ldflags '-s -w' -o "$out/bin/helm" .)
(cd containerd && mkdir -p "$out/containerd2" && go build -trimpath -ldflags '-s -w' -o "$out/containerd2/" tool)
for program in probe coredns; do (cd ../.. && go run ./deploy/image tendril.test/$program:1 "$out/bin/$program" > "$out/$program.tar"); done

if [ ! -x "$out/root/usr/bin/containerd" ] || [ ! -x "$out/root/usr/lib/cni/loopback" ]; then
  echo 'fetch containerd, runc and the loopback plugin, which containerd calls for every pod'
  mkdir -p "$out/debs"
  cd "$out/debs"
  apt-get update -q > /dev/null
  apt-get download -q containerd runc containernetworking-plugins > /dev/null
  for package in *.deb; do dpkg -x "$package" "$out/root"; done
fi

[ "$1" = conformance ] || exit 0
# The Kubernetes e2e suite and the image that its specs run: agnhost with what lies beside it, and the tools they call in it by a shell, from Debian.
cd "$here"
build agnhost k8s.io/kubernetes/test/images/agnhost
build regression-issue-74839 k8s.io/kubernetes/test/images/regression-issue-74839
go build -trimpath -ldflags '-s -w' -o "$out/bin/verdicts" ./verdicts
build ginkgo github.com/onsi/ginkgo/v2/ginkgo
if [ ! -x "$out/bin/e2e.test" ] || [ go.sum -nt "$out/bin/e2e.test" ]; then
  echo 'build e2e.test'
  go test -c -trimpath -ldflags "$flags" -o "$out/bin/e2e.test" k8s.io/kubernetes/test/e2e
fi
if [ ! "$out/agnhost.tar" -nt "$here/build.sh" ] || [ ! "$out/agnhost.tar" -nt "$out/bin/agnhost" ]; then
  echo 'make the image of agnhost'
  kubernetes=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)
  rm -rf "$out/tools"
  mkdir -p "$out/tools/debs" "$out/tools/root"
  cd "$out/tools/debs"
  apt-get download -q $(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    bash coreutils debianutils libc-bin grep sed mawk hostname curl wget netcat-openbsd iproute2 bind9-dnsutils iperf | grep '^[a-z]' | sort -u) > /dev/null
  for package in *.deb; do dpkg -x "$package" "$out/tools/root"; done
  cd "$out/tools/root"
  rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/perl* usr/lib/*/perl*
  for folder in bin sbin lib lib64; do # Debian's package base-files would do it
    [ -L $folder ] || { mkdir -p usr/$folder; cp -a $folder/. usr/$folder/ 2> /dev/null || true; rm -rf $folder; ln -s usr/$folder $folder; }
  done
  ln -sf bash bin/sh
  ln -sf nc.openbsd bin/nc
  ln -sf mawk usr/bin/awk
  ln -sf agnhost agnhost-2
  install -m 644 "$kubernetes"/test/images/agnhost/porter/localhost.* .
  cp "$out/bin/coredns" .
  mkdir -p uploads tmp etc
  chmod 1777 tmp
  echo 'root:x:0:0::/:/bin/sh' > etc/passwd
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$out/tools/root.tar" .
  cd "$here/../.." && go run ./deploy/image -cmd pause tendril.test/agnhost:1 "$out/bin/agnhost" "$out/tools/root.tar" > "$out/agnhost.tar"
  go run ./deploy/image registry.k8s.io/e2e-test-images/regression-issue-74839:1.4 "$out/bin/regression-issue-74839" > "$out/regression-issue-74839.tar"
fi
