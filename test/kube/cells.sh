#!/bin/bash
# cells.sh: run.sh in each way of {native, vxlan} x {IPv4, dual-stack}, one after the other, whatever becomes of the others: a line for each,
# and what it printed in build/kube/cells. Debian's containerd 1.6 runs the native ones and containerd 2 the others: both are asked, in both families.
here=$(dirname "$(readlink -f "$0")")
logs=$(readlink -f "$here/../..")/build/kube/cells
mkdir -p "$logs"
failed=0
for mode in native vxlan; do
  if [ $mode = native ]; then containerd=1; else containerd=2; fi
  for dual in '' 1; do
    cell=$mode-${dual:+dual-stack}
    [ -n "$dual" ] || cell+=IPv4
    SECONDS=0
    if MODE=$mode DUAL=$dual CONTAINERD=$containerd "$here/run.sh" > "$logs/$cell" 2>&1; then verdict=PASS; else verdict=FAIL failed=1; fi
    echo "$(printf '%-18s containerd %d  %s after %3d s' "$cell" $containerd $verdict $SECONDS)  $(grep -a 'answered' "$logs/$cell" | tail -n 1 | sed 's/^ *//')"
  done
done
exit $failed
