#!/bin/bash
# fetch.sh DIR: brings Debian's kernels to DIR/<version>/vmlinux, and some of their modules to DIR/<version>/modules, once: 6.1 (bookworm's own, the oldest that is supported)
# and 6.12 (bookworm-backports). The machine's own package sources and lists stay as they are.
set -euo pipefail
out=$1
mkdir -p "$out"
out=$(readlink -f "$out")

# sources SUITE FOLDER: the machine's first Debian source, of another suite, in either of apt's two notations.
sources() {
	if [ -e /etc/apt/sources.list.d/debian.sources ]; then
		awk -v suite="$1" 'BEGIN { RS = "" } NR == 1 { gsub(/\nSuites:[^\n]*/, "\nSuites: " suite); print }' \
			/etc/apt/sources.list.d/debian.sources > "$2/suite.sources"
	else
		awk -v suite="$1" '$1 == "deb" && $2 ~ /^http/ { print $1, $2, suite, "main"; exit }' \
			/etc/apt/sources.list > "$2/suite.list"
	fi
}

# private_apt SUITE: an apt of its own, below the output folder, that knows only the suite.
private_apt() {
	apt=$out/apt-$1
	mkdir -p "$apt"/{parts,lists/partial,cache/archives/partial}
	sources "$1" "$apt/parts"
	cat > "$apt/apt.conf" <<-END
		Dir::Etc::SourceList "/dev/null";
		Dir::Etc::SourceParts "$apt/parts";
		Dir::State::Lists "$apt/lists";
		Dir::Cache "$apt/cache";
		APT::Sandbox::User "root";
		Acquire::Languages "none";
	END
	APT_CONFIG=$apt/apt.conf apt-get update -qq
}

# unpack DEB DIR: the kernel image as an ELF file, which boots seconds faster than the compressed one under emulation.
unpack() {
	mkdir -p "$2"
	dpkg-deb --fsys-tarfile "$1" | tar -x -O --wildcards './boot/vmlinuz-*' > "$2/vmlinuz"
	python3 - "$2/vmlinuz" "$2/vmlinux.new" <<-'END'
		import lzma, subprocess, sys
		image = open(sys.argv[1], "rb").read()
		def xz(start):
		    return lzma.LZMADecompressor().decompress(image[start:])
		def zstd(start):
		    run = subprocess.run(["zstd", "-dcq"], input=image[start:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
		    return run.stdout
		for magic, unpack in ((b"\x28\xb5\x2f\xfd", zstd), (b"\xfd7zXZ\0", xz)):
		    start = image.find(magic)
		    while start >= 0:
		        try:
		            kernel = unpack(start)
		        except lzma.LZMAError:
		            kernel = b""
		        if kernel[:4] == b"\x7fELF":
		            open(sys.argv[2], "wb").write(kernel)
		            sys.exit(0)
		        start = image.find(magic, start + 1)
		sys.exit("no kernel in " + sys.argv[1] + ": neither zstd nor xz")
	END
	mv "$2/vmlinux.new" "$2/vmlinux"
	rm "$2/vmlinuz"
}

# modules DEB DIR: those that tests need, as the kernel takes them. What a kernel has built in it has no module of.
modules() {
	mkdir -p "$2"
	local names='inet_diag|tcp_diag|udp_diag|sctp|crc32c_generic|libcrc32c|udp_tunnel|ip6_udp_tunnel|veth|vxlan|sch_ingress|cls_bpf|bridge|stp|llc'
	names+='|virtio|virtio_ring|virtio_pci|virtio_pci_legacy_dev|virtio_pci_modern_dev|virtio_net|failover|net_failover'
	dpkg-deb --fsys-tarfile "$1" | tar -t | grep -E "/($names)\.ko(\.xz)?\$" > "$2.list"
	dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --transform 's,.*/,,' -T "$2.list"
	rm "$2.list"
	find "$2" -name '*.xz' -exec xz -d {} +
}

# kernel VERSION SUITE: fetches the suite's newest kernel, unless it is there already.
kernel() {
	[ ! -e "$out/$1/modules/virtio_net.ko" ] || return 0
	echo "kernel $1: fetching from $2"
	private_apt "$2"
	work=$(mktemp -d)
	(
		cd "$work"
		export APT_CONFIG=$apt/apt.conf
		image=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ { print $2; exit }')
		apt-get download -qq "$image"
	)
	unpack "$work"/linux-image-*.deb "$out/$1"
	modules "$work"/linux-image-*.deb "$work/modules"
	rm -rf "$out/$1/modules"
	mv "$work/modules" "$out/$1/modules"
	rm -rf "$work" "$apt"
}

kernel 6.1 bookworm
kernel 6.12 bookworm-backports
