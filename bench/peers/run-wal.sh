#!/usr/bin/env bash
# Compares our log with raft-engine, okaywal, a file that is flushed, and the device itself, on one disk: appends of eight
# shapes by 16, 1 and 256 callers, each at its most and ours also at half load; reading while appends go on; opening
# 1 GiB. What is told is the ratio within a round, and the median of the rounds. Nothing else should run.
#
#   bench/peers/run-wal.sh [--dir DIR] [--out DIR] [options of wal-bench, see --help]
#
# --dir holds the files of all and must lie on a real disk; what is made there is removed. It takes up to 24 GiB.
# --out gets results.md, results.json and environment.txt.
# Exit: 0 compared, 1 somebody failed, 2 usage.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

dir=${TMPDIR:-/var/tmp}/logdrive-wal
out=$root/loadgen-out/wal
rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --dir | --out)
      [ $# -ge 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2; }
      [ "$1" = --dir ] && dir=$2 || out=$2
      shift 2
      ;;
    *) rest+=("$1") && shift ;;
  esac
done
peers=$root/bench/peers/wal
cargo build --release --locked --manifest-path "$peers/Cargo.toml" --target-dir "$peers/target"

mkdir -p "$dir" "$out"
filesystem=$(findmnt -n -o FSTYPE -T "$dir")
case $filesystem in
  tmpfs | ramfs) echo "run-wal: $dir is in memory ($filesystem), give --dir on a disk" >&2 && exit 2 ;;
esac
files=$(mktemp -d "$dir/wal-bench.XXXXXX")
trap 'rm -rf "$files"; rmdir "$dir" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

device=$(findmnt -n -o SOURCE -T "$dir")
queue=/sys/class/block/$(basename "$device")/queue
{
  echo "logdrive: $(git -C "$root" rev-parse --short HEAD)$(git -C "$root" diff --quiet HEAD -- || echo ' and changes')"
  echo "kernel: $(uname -r), $(nproc) processors, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | sed -n 1p)"
  echo "disk: $filesystem on $device"
  [ -e "$queue/write_cache" ] && echo "device: $(cat "$queue/write_cache"), fua $(cat "$queue/fua")"
  echo "wal-bench ${rest[*]}"
} | tee "$out/environment.txt"

# What is freed stays with the process, for all of them: else an entry of 1 MiB is given back to the kernel and faulted
# in again at each append, which says nothing about a log.
export MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=268435456
"$peers/target/release/wal-bench" --dir "$files/files" --out "$out" "${rest[@]}"
