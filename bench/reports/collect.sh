#!/usr/bin/env bash
# Runs the loads behind the table of what this project promises, in rounds, and writes raw files and one report:
#
#   bench/reports/collect.sh OUT_DIR [--rounds 3] [--duration 10s] [--dir DIR] [--only CASE,..] [--no-etcd]
#                            [--quick]
#
#   OUT_DIR/CASE-ROUND/{run.json,run.hlog,loadgen.log}, OUT_DIR/environment.txt, OUT_DIR/etcd/
#   OUT_DIR.md          the report; for one to keep, OUT_DIR is bench/reports/2026-01-31-what-it-shows
#
# Cases: latency rate128 rate16 failover latency_ethernet rate128_ethernet model memory. Rounds of the first six
# are interleaved, and loadgen measures the floors of the machine right before each run. About 20 minutes, with
# nothing else on the machine. --dir is where replicas keep their data: a real disk. --quick takes two
# minutes, shows that all of this works, and nothing else: its report says so.
# Exit: 0 all runs valid, 2 usage, 12 a run is not valid, 20 a run lost, duplicated or reordered a write.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
command="bench/reports/collect.sh $*"

out= rounds=3 duration=10s only= etcd=yes quick= dir=${TMPDIR:-/var/tmp}/logdrive-report
fail() {
  echo "collect: $2" >&2
  exit "$1"
}
usage() {
  sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --no-etcd) etcd= && shift && continue ;;
    --quick) quick=yes rounds=1 duration=1s && shift && continue ;;
    --rounds | --duration | --only | --dir) [ $# -ge 2 ] || usage ;;
    -*) usage ;;
    *) [ -z "$out" ] || usage; out=$1 && shift && continue ;;
  esac
  case $1 in
    --rounds) rounds=$2 ;;
    --duration) duration=$2 ;;
    --only) only=,$2, ;;
    --dir) dir=$2 ;;
  esac
  shift 2
done
[ -n "$out" ] || usage
[[ $rounds =~ ^[1-9][0-9]*$ ]] || fail 2 "--rounds $rounds is not a count"
[[ $duration =~ ^[1-9][0-9]*s$ ]] || fail 2 "write --duration like 10s"
[ ! -e "$out" ] && [ ! -e "$out.md" ] || fail 2 "$out or $out.md exists: remove it or choose another name"
cases=,latency,rate128,rate16,failover,latency_ethernet,rate128_ethernet,model,memory,
for case in ${only//,/ }; do
  [[ $cases == *",$case,"* ]] || fail 2 "there is no case $case: ${cases//,/ }"
done
wanted() { [ -z "$only" ] || [[ $only == *",$1,"* ]]; }

target=${CARGO_TARGET_DIR:-$root/target}
# LOADGEN names another build of it, to compare two.
loadgen=${LOADGEN:-$target/release/loadgen} report=$target/release/bench-report
(cd "$root" && cargo build --release --locked -p logdrive-bench --bin bench-report)
[ -n "${LOADGEN:-}" ] || (cd "$root" && cargo build --release --locked -p loadgen)

mkdir -p "$out" "$dir"
out=$(cd "$out" && pwd) dir=$(cd "$dir" && pwd)
case $(findmnt -n -o FSTYPE -T "$dir") in
  tmpfs | ramfs) fail 2 "$dir is in memory: nothing there is durable, give --dir on a disk" ;;
esac
trap 'rm -rf "$dir/data"; rmdir "$dir" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
# Every read of /proc and /sys may be refused somewhere; the report then lacks a line.
{
  echo "command:  $command"
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
# Correctness outweighs everything; then whatever came first.
note() {
  if [ "$1" -eq 20 ] || [ $worst -eq 0 ]; then worst=$1; fi
}
# A run; its exit code is noted and the next one begins. Nothing takes longer than two minutes and a half.
run() { # case, round, arguments of loadgen
  local case=$1 round=$2 status=0
  shift 2
  local place=$out/$case-$round
  mkdir -p "$place"
  rm -rf "$dir/data"
  # What the run before left to the file system is no part of this one, nor of its floors.
  sync -f "$dir"
  echo "$(date -u +%H:%M:%S) $case, round $round: loadgen run $*"
  timeout -k 10 150 "$loadgen" run "$@" --seed "$round" --dir "$dir/data" --out "$place" \
    >"$place/loadgen.log" 2>&1 || status=$?
  rm -rf "$dir/data"
  if [ $status -ne 0 ]; then
    echo "  exit $status, see $place/loadgen.log"
    note $status
  fi
}

warmup=2s beside=8s fault='5s kill-leader' failover=15s minute=60s model=(5s 2s)
sizes=(16 128 1KiB 16KiB) depths=(64 1024 8192)
if [ -n "$quick" ]; then
  warmup=300ms beside=1s fault='500ms kill-leader' failover=4s minute=3s model=(1s 300ms)
  sizes=(16 1KiB) depths=(64 1024)
fi
steady=(--duration "$duration" --warmup "$warmup")
closed() { echo --target "$1" --closed --in-flight "$2" --size "$3"; }
for round in $(seq "$rounds"); do
  ! wanted latency || run latency "$round" $(closed spawn:3 1 128) "${steady[@]}"
  ! wanted latency_ethernet || run latency_ethernet "$round" $(closed spawn:3 1 128) "${steady[@]}" --mtu ethernet
  ! wanted rate128 || run rate128 "$round" $(closed spawn:3 4096 128) "${steady[@]}" --verify
  ! wanted rate128_ethernet || run rate128_ethernet "$round" $(closed spawn:3 4096 128) "${steady[@]}" --mtu ethernet
  ! wanted rate16 || run rate16 "$round" $(closed inproc:3 8192 16) "${steady[@]}"
  ! wanted failover || run failover "$round" --target spawn:3 --rate 20k --size 128 --duration "$failover" \
    --warmup "$warmup" --fault "$fault" --verify
done

# Sizes and depths for the model of processor time; once each, since it is fitted over all of them. The two
# packet sizes stand beside each other, so that what slows the machine down slows both. The warm-up fills the
# map of 1 000 keys; the growing one shows what it adds that a map of more keeps growing.
if wanted model; then
  for size in "${sizes[@]}"; do
    for depth in "${depths[@]}"; do
      # The largest of both would want more memory than the door grants.
      [ "$size-$depth" != 16KiB-8192 ] || continue
      for mtu in loopback ethernet; do
        run "model-$mtu-$size-$depth" 1 $(closed spawn:3 "$depth" "$size") --mtu "$mtu" --keys 1k \
          --duration "${model[0]}" --warmup "${model[1]}"
      done
      run "growing-loopback-$size-$depth" 1 $(closed spawn:3 "$depth" "$size") --keys 100k \
        --duration "${model[0]}" --warmup "$warmup"
    done
  done
fi

# A minute with defaults; run.json has the most that each replica held.
! wanted memory || run memory 1 --target spawn:3 --duration "$minute"

if [ -n "$etcd" ]; then
  status=0
  LOADGEN=$loadgen "$root/bench/peers/run-etcd.sh" --dir "$dir/etcd" --out "$out/etcd" --rounds "$rounds" \
    --duration "$beside" | tee "$out/etcd.log" || status=$?
  # The setting and the comparison, without the way there.
  sed '/^round\|clients, /d' "$out/etcd.log" >"$out/etcd.txt"
  rm -f "$out/etcd.log" "$out"/etcd/etcd-node-*.log
  [ $status -eq 0 ] || note $status
fi

# Where the checkout lies says nothing about the runs, and the files are kept.
prefix=$(printf '%s/' "$root" | sed 's/[].[^$*\\#]/\\&/g')
find "$out" -type f -exec sed -i "s#$prefix##g" {} +
"$report" "$out" >"$out.md"
echo "wrote $out.md"
exit "$worst"
