#!/bin/bash
# install.sh GROUP...: installs the Debian packages of the groups that are not there yet.
#   generate  compilers of the BPF programs and protobufs
#   lab       what pods of the lab run, and what tests look at the network with
#   runtimes  a container engine that takes CNI plugins, other than kubelet's
#   bench     what kube-proxy makes its rules with, for the comparison with it
#   kernels   what boots other kernels
set -euo pipefail

packages() {
	case $1 in
	generate) echo clang-19 llvm-19 libbpf-dev linux-libc-dev protobuf-compiler ;;
	lab) echo iproute2 procps nginx-light curl iperf3 bind9-dnsutils iputils-ping ;;
	runtimes) echo podman ;;
	bench) echo nftables iptables ;;
	kernels) echo qemu-system-x86 seabios zstd xz-utils python3-minimal dpkg ;;
	*) echo "install.sh: no such group: $1" >&2; exit 2 ;;
	esac
}

missing=()
for group in "$@"; do
	for package in $(packages "$group"); do
		dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
	done
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "install.sh: these Debian packages are missing and only root can install them: ${missing[*]}" >&2
	exit 1
fi

echo "install ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# No service may start by being installed: the lab runs its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' > $policy
	chmod +x $policy
	trap 'rm -f $policy' EXIT
fi
log=$(mktemp)
install() { apt-get install -y -q --no-install-recommends "${missing[@]}" > "$log" 2>&1; }
if ! install; then # the lists may be missing or old
	apt-get update -q > "$log" 2>&1 && install || { tail -20 "$log" >&2; rm -f "$log"; exit 1; }
fi
rm -f "$log"
