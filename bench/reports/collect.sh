#!/usr/bin/env bash
# Runs the loads behind the table of what this project promises, in rounds, and writes raw files and a report:
#
#   bench/reports/collect.sh --name 2026-01-31-first-numbers [--rounds 3] [--duration 10s] [--dir DIR]
#                            [--only CASE,..] [--no-etcd]
#
#   bench/reports/NAME/CASE-ROUND/{run.json,run.hlog,loadgen.log}, environment.txt, memory.txt, etcd/
#   bench/reports/NAME.md
#
# Cases: latency rate128 rate16 failover latency_ethernet rate128_ethernet memory model. The rounds of all cases
# but the last two are interleaved, and loadgen measures the floors of the machine right before each run. About
# 15 minutes, with nothing else on the machine. --dir is where replicas keep their data: a real disk.
# Exit: 0 all runs valid, 2 usage, 12 a run is not valid, 20 a run lost, duplicated or reordered a write.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

name= rounds=3 duration=10s only= etcd=yes dir=${TMPDIR:-/var/tmp}/logdrive-report
fail() {
  echo "collect: $2" >&2
  exit "$1"
}
usage() {
  sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --no-etcd) etcd= && shift && continue ;;
    --name | --rounds | --duration | --only | --dir) [ $# -ge 2 ] || usage ;;
    *) usage ;;
  esac
  case $1 in
    --name) name=$2 ;;
    --rounds) rounds=$2 ;;
    --duration) duration=$2 ;;
    --only) only=,$2, ;;
    --dir) dir=$2 ;;
  esac
  shift 2
done
[[ $name =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}-[a-z0-9-]+$ ]] || fail 2 "--name wants a date and words: 2026-01-31-first-numbers"
[[ $rounds =~ ^[1-9][0-9]*$ ]] || fail 2 "--rounds $rounds is not a count"
[[ $duration =~ ^[0-9]+s$ ]] || fail 2 "write --duration like 10s"
seconds=${duration%s}
out=$root/bench/reports/$name
[ ! -e "$out" ] || fail 2 "$out exists: remove it or choose another name"

target=${CARGO_TARGET_DIR:-$root/target}
# LOADGEN names another build of it, to compare two.
loadgen=${LOADGEN:-$target/release/loadgen} report=$target/release/bench-report
(cd "$root" && cargo build --release --locked -p logdrive-bench --bin bench-report)
[ -n "${LOADGEN:-}" ] || (cd "$root" && cargo build --release --locked -p loadgen)

mkdir -p "$out" "$dir"
trap 'rm -rf "$dir/data"; rmdir "$dir" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
# Every read of /proc and /sys may be refused somewhere; the report then lacks a line.
{
  echo "command:  bench/reports/collect.sh --name $name --rounds $rounds --duration $duration"
  echo "commit:   $(git -C "$root" rev-parse HEAD)$(git -C "$root" diff --quiet HEAD -- || echo ', with changes')"
  echo "built by: $(cd "$root" && rustc --version)"
  echo "machine:  $(nproc) x $(sed -n 's/^model name.*: //p' /proc/cpuinfo | sed -n 1p), $(sed -n 's/^MemTotal: *//p' /proc/meminfo)"
  echo "kernel:   $(uname -sr), $(systemd-detect-virt 2>/dev/null || echo 'virtualisation unknown')"
  device=$(findmnt -n -o SOURCE -T "$dir")
  queue=/sys/block/$(lsblk -no PKNAME "$device" 2>/dev/null | sed -n 1p)/queue
  [ -e "$queue/fua" ] || queue=/sys/block/$(basename "$device")/queue
  echo "disk:     $(findmnt -n -o FSTYPE -T "$dir") on $device, write_cache $(cat "$queue/write_cache" 2>/dev/null || echo '?'), fua $(cat "$queue/fua" 2>/dev/null || echo '?')"
  echo "load:     $(cut -d' ' -f1-3 /proc/loadavg) before the first run"
} | tee "$out/environment.txt"

worst=0
# A run; its exit code is noted and the next one begins.
run() { # case, round, arguments of loadgen
  local case=$1 round=$2 status=0
  shift 2
  local place=$out/$case-$round
  mkdir -p "$place"
  rm -rf "$dir/data"
  echo "$case, round $round: loadgen run $*"
  timeout -k 10 "$((seconds + 150))" "$loadgen" run "$@" --seed "$round" --dir "$dir/data" --out "$place" \
    >"$place/loadgen.log" 2>&1 || status=$?
  rm -rf "$dir/data"
  if [ $status -ne 0 ]; then
    echo "  exit $status, see $place/loadgen.log"
    # Correctness outweighs everything; then whatever came first.
    if [ $status -eq 20 ] || [ $worst -eq 0 ]; then worst=$status; fi
  fi
}
wanted() { [ -z "$only" ] || [[ $only == *",$1,"* ]]; }

steady=(--duration "$duration" --warmup 2s)
closed() { echo --target "$1" --closed --in-flight "$2" --size "$3"; }
for round in $(seq "$rounds"); do
  ! wanted latency || run latency "$round" $(closed spawn:3 1 128) "${steady[@]}"
  ! wanted rate128 || run rate128 "$round" $(closed spawn:3 4096 128) "${steady[@]}" --verify
  ! wanted rate16 || run rate16 "$round" $(closed inproc:3 8192 16) "${steady[@]}"
  ! wanted failover || run failover "$round" --target spawn:3 --rate 20k --size 128 --duration 15s --warmup 2s \
    --fault '5s kill-leader' --verify
  ! wanted latency_ethernet || run latency_ethernet "$round" $(closed spawn:3 1 128) "${steady[@]}" --mtu ethernet
  ! wanted rate128_ethernet || run rate128_ethernet "$round" $(closed spawn:3 4096 128) "${steady[@]}" --mtu ethernet
done

# Sizes and depths for the model of processor time; once each, since it is fitted over all of them.
if wanted model; then
  for size in 16 128 1KiB 16KiB; do
    for depth in 64 1024 8192; do
      # The largest of both would want more memory than the door grants.
      [ "$size-$depth" != 16KiB-8192 ] || continue
      run "model-$size-$depth" 1 $(closed spawn:3 "$depth" "$size") --duration 6s --warmup 2s
    done
  done
fi

# A minute with defaults at full load, the resident memory of each replica once a second.
if wanted memory; then
  : >"$out/memory.txt"
  (
    while sleep 1; do
      for pid in $(pgrep -f "$loadgen replica" || true); do
        sed -n "s/^\(VmHWM\|VmRSS\): *\([0-9]*\) kB/$pid \1 \2/p" "/proc/$pid/status" 2>/dev/null || true
      done
    done
  ) >"$out/memory.raw" &
  sampler=$!
  seconds=60 run memory 1 $(closed spawn:3 4096 128) --keys 10k --duration 60s --warmup 2s
  kill "$sampler" 2>/dev/null || true
  wait "$sampler" 2>/dev/null || true
  {
    echo "replica (pid)   peak KiB   (closed loop, 4096 in flight, 128 B, 10 k keys, 60 s, defaults)"
    sort -n "$out/memory.raw" | awk '$2 == "VmHWM" && $3 > peak[$1] { peak[$1] = $3 }
      END { for (pid in peak) printf "%-15s %s\n", pid, peak[pid] }'
  } | tee "$out/memory.txt"
fi

if [ -n "$etcd" ]; then
  status=0
  LOADGEN=$loadgen "$root/bench/peers/run-etcd.sh" --dir "$dir/etcd" --out "$out/etcd" --rounds "$rounds" \
    --duration "$duration" | tee "$out/etcd.log" || status=$?
  # The setting and the comparison, without the way there.
  sed '/^round\|clients, /d' "$out/etcd.log" >"$out/etcd.txt"
  rm -f "$out/etcd.log" "$out"/etcd/etcd-node-*.log
  if [ $status -ne 0 ] && [ $worst -eq 0 ]; then worst=$status; fi
fi

"$report" "$out" >"$out.md"
echo "wrote $out.md"
exit "$worst"
