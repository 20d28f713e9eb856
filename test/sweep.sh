#!/bin/bash
# sweep.sh list    prints what labs and tests have on this machine, a line each
# sweep.sh remove  removes it
# Only names with the project's prefixes are looked at: tendril, td.
set -uo pipefail

cgroups=$(awk '$0 ~ / - cgroup2 / { print $5; exit }' /proc/self/mountinfo)

# processes NAME: those whose executable has it as its file name; a program deleted from under its process counts, too.
processes() {
	for exe in /proc/[0-9]*/exe; do
		path=$(readlink "$exe" 2>/dev/null) || continue
		name=$(basename "${path% (deleted)}")
		case $name in tendril-agent | tendril-cni | tendril-load | tendril-operator) ;; tendril) ;; *) continue ;; esac
		pid=${exe#/proc/}
		echo "${pid%/exe}"
	done
}

list() {
	for pid in $(processes); do echo "process $pid"; done
	for path in /run/netns/tendril* /run/netns/td*; do [ ! -e "$path" ] || echo "netns $(basename "$path")"; done
	for path in /sys/class/net/tendril* /sys/class/net/td*; do [ ! -e "$path" ] || echo "link $(basename "$path")"; done
	for path in /sys/fs/bpf/tendril* /sys/fs/bpf/td*; do [ ! -e "$path" ] || echo "pins $path"; done
	for path in "$cgroups"/tendril* "$cgroups"/td*; do [ ! -d "$path" ] || echo "cgroup $path"; done
	for path in /run/tendril-lab/*; do [ ! -e "$path" ] || echo "state $path"; done
}

remove() {
	list | while read -r kind name; do
		case $kind in
		process) kill -9 "$name" 2>/dev/null ;;
		cgroup) remove_cgroup "$name" ;;
		netns) ip netns delete "$name" 2>/dev/null || { umount "/run/netns/$name" 2>/dev/null; rm -f "/run/netns/$name"; } ;;
		link) ip link delete "$name" 2>/dev/null ;;
		pins | state) rm -rf "$name" ;;
		esac
	done
}

# remove_cgroup PATH: ends its processes, then removes it from the inside out.
remove_cgroup() {
	echo 1 > "$1/cgroup.kill" 2>/dev/null
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
		[ -d "$1" ] || return 0
		sleep 0.2
	done
}

case ${1:-} in
list) list ;;
remove) remove ;;
*) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
esac
