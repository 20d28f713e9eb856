#!/bin/bash
# init.sh NAME FOLDER PROBE: the first process of a node, in namespaces of its own: its views of /proc, /sys, /run, /opt and /var; then it waits.
set -e
name=$1 own=$2 probe=$3
hostname "$name"
mount -t proc proc /proc
cp /proc/sys/kernel/random/uuid "$own/boot" # by which kubelet knows that there was another boot
mount --bind "$own/boot" /proc/sys/kernel/random/boot_id
# kubelet writes these of the whole machine; here it writes files of the node.
mkdir -p "$own/sysctl"
for sysctl in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  cat "/proc/sys/$sysctl" > "$own/sysctl/${sysctl//\//_}"
  mount --bind "$own/sysctl/${sysctl//\//_}" "/proc/sys/$sysctl"
done
umount -R -l /sys # not just covered: runc finds control groups by the list of mounts
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /sys/fs/cgroup
for controller in cpu cpuacct cpuset memory devices freezer blkio pids; do
  mkdir "/sys/fs/cgroup/$controller"
  mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
done
mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs /run
for folder in opt var/lib var/log; do # on the caller's disk, where layers of images can lie; they outlive the node's power
  mkdir -p "$own/disk/$folder"
  mount --bind "$own/disk/$folder" /$folder
done
mkdir -p /run/netns /run/tendril /opt/cni/bin /opt/cni/net.d /var/log/pods /var/log/containers
mount --make-rshared /
touch "$own/ready"
exec "$probe"
