#!/usr/bin/env bash
# Compares logdrive with etcd on this machine: three nodes each, puts of 128 bytes over 100 000 keys, closed
# loop, in rounds that are interleaved. Both run alone, one after the other, on a fresh directory of the same
# disk. What is told is the ratio within a round, and the median of the rounds.
#
#   bench/peers/run-etcd.sh [--dir DIR] [--out DIR] [--rounds 3] [--duration 8s] [--warmup 2s]
#                           [--etcd 512,1024] [--ours 512,4096] [--etcd-only]
#
# --dir holds the data of both and must lie on a real disk; everything below it that is made here is removed.
# --out gets one JSON file a run, the logs, environment.txt and compare.json.
# Exit: 0 compared, 2 usage, 12 a run is not valid, 30 etcd or loadgen did not come up.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

dir=${TMPDIR:-/var/tmp}/logdrive-etcd
out=$root/loadgen-out/etcd
rounds=3 duration=8s warmup=2s etcd_in_flight=512,1024 ours_in_flight=512,4096
usage() {
  sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
}
fail() {
  echo "run-etcd: $2" >&2
  exit "$1"
}
while [ $# -gt 0 ]; do
  case $1 in
    --etcd-only) ours_in_flight= && shift && continue ;;
    --dir | --out | --rounds | --duration | --warmup | --etcd | --ours) [ $# -ge 2 ] || usage ;;
    *) usage ;;
  esac
  case $1 in
    --dir) dir=$2 ;;
    --out) out=$2 ;;
    --rounds) rounds=$2 ;;
    --duration) duration=$2 ;;
    --warmup) warmup=$2 ;;
    --etcd) etcd_in_flight=$2 ;;
    --ours) ours_in_flight=$2 ;;
  esac
  shift 2
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || fail 2 "--rounds $rounds is not a count"
[[ $duration$warmup =~ ^[0-9]+s[0-9]+s$ ]] || fail 2 "write --duration and --warmup like 8s"
# A run that takes this long hangs.
run_seconds_max=$((${duration%s} + ${warmup%s} + 60))

mkdir -p "$dir" "$out"
dir=$(cd "$dir" && pwd) out=$(cd "$out" && pwd)
filesystem=$(findmnt -n -o FSTYPE -T "$dir")
case $filesystem in
  tmpfs | ramfs) fail 2 "$dir is in memory ($filesystem): nothing there is durable, give --dir on a disk" ;;
esac
rm -f "$out"/{etcd,ours}-*-*.json "$out/compare.json"

packages=()
command -v etcd >/dev/null || packages+=(etcd-server)
command -v protoc >/dev/null || packages+=(protobuf-compiler)
# What the compiler imports lies in the package that it recommends.
[ -e /usr/include/google/protobuf/descriptor.proto ] || packages+=(libprotobuf-dev)
if [ ${#packages[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail 2 "needs the Debian packages ${packages[*]}"
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq >&2
  # At this run level the package does not start a service of its own.
  "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
fi

peers=$root/bench/peers/etcd
cargo build --release --locked --manifest-path "$peers/Cargo.toml" --target-dir "$peers/target"
load=$peers/target/release/etcd-load compare=$peers/target/release/etcd-compare
# LOADGEN names another build of it, to compare two.
loadgen=${LOADGEN:-${CARGO_TARGET_DIR:-$root/target}/release/loadgen}
if [ -n "$ours_in_flight" ] && [ -z "${LOADGEN:-}" ]; then
  (cd "$root" && cargo build --release --locked -p loadgen)
fi

etcd_pids=()
stop_etcd() {
  [ ${#etcd_pids[@]} -gt 0 ] || return 0
  kill -KILL "${etcd_pids[@]}" 2>/dev/null || true
  wait "${etcd_pids[@]}" 2>/dev/null || true
  etcd_pids=()
  rm -rf "$dir"/etcd-{1,2,3}
}
trap 'stop_etcd; rm -rf "$dir/ours"; rmdir "$dir" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# Six ports in a row that nobody listens on.
free_ports() {
  local base port
  for _ in {1..50}; do
    base=$((20000 + RANDOM % 10000))
    for port in $(seq "$base" $((base + 5))); do in_use "$port" && continue 2; done
    echo "$base"
    return
  done
  fail 30 "no free ports on 127.0.0.1"
}

# Three nodes with etcd's defaults; sets `endpoints`.
start_etcd() {
  local base cluster= i
  base=$(free_ports)
  endpoints=
  for i in 1 2 3; do
    cluster+=${cluster:+,}n$i=http://127.0.0.1:$((base + 2 + i))
    endpoints+=${endpoints:+,}http://127.0.0.1:$((base + i - 1))
  done
  for i in 1 2 3; do
    rm -rf "$dir/etcd-$i"
    # `--logger zap` is what later versions do by default, and silences a notice.
    etcd --name "n$i" --data-dir "$dir/etcd-$i" --logger zap \
      --listen-client-urls "http://127.0.0.1:$((base + i - 1))" \
      --advertise-client-urls "http://127.0.0.1:$((base + i - 1))" \
      --listen-peer-urls "http://127.0.0.1:$((base + 2 + i))" \
      --initial-advertise-peer-urls "http://127.0.0.1:$((base + 2 + i))" \
      --initial-cluster "$cluster" --initial-cluster-state new \
      --initial-cluster-token "logdrive-bench-$base" >"$out/etcd-node-$i.log" 2>&1 &
    etcd_pids+=($!)
  done
}

run_etcd() { # in_flight, round
  start_etcd
  timeout -k 5 "$run_seconds_max" "$load" --endpoints "$endpoints" --to leader --in-flight "$1" \
    --size 128 --keys 100000 --duration "$duration" --warmup "$warmup" --seed "$2" \
    --pids "$(IFS=, && echo "${etcd_pids[*]}")" --json "$out/etcd-$1-$2.json" ||
    fail 30 "etcd did not take the load: see $out/etcd-node-*.log"
  stop_etcd
}

run_ours() { # in_flight, round
  local status=0
  rm -rf "$dir/ours"
  timeout -k 5 "$run_seconds_max" "$loadgen" run --target spawn:3 --closed --in-flight "$1" \
    --size 128 --keys 100k --duration "$duration" --warmup "$warmup" --seed "$2" \
    --dir "$dir/ours" --out "$out/ours-$1-$2" --json "$out/ours-$1-$2.json" \
    >"$out/ours-$1-$2.log" 2>&1 || status=$?
  rm -rf "$dir/ours"
  # An invalid run has written its report, and the comparison names it.
  [ $status -eq 0 ] || [ $status -eq 12 ] ||
    fail 30 "loadgen ended with $status: see $out/ours-$1-$2.log"
}

{
  echo "etcd: $(etcd --version | sed -n 1p), Debian $(dpkg-query -W -f '${Version}' etcd-server 2>/dev/null)"
  echo "logdrive: $(git -C "$root" rev-parse --short HEAD)$(git -C "$root" diff --quiet HEAD -- || echo ' and changes')"
  echo "kernel: $(uname -r), $(nproc) processors, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | sed -n 1p)"
  echo "disk: $filesystem on $(findmnt -n -o SOURCE -T "$dir")"
  echo "load: 128 B, 100 000 keys, closed loop, $duration after $warmup, $rounds rounds"
  echo "etcd speaks plain HTTP/2 here; logdrive TLS 1.3 with client certificates"
} | tee "$out/environment.txt"

for round in $(seq "$rounds"); do
  # Pairs stand next to each other, smallest first; whatever slows the machine down slows both.
  etcd_list=(${etcd_in_flight//,/ }) ours_list=(${ours_in_flight//,/ })
  for i in $(seq 0 $((${#etcd_list[@]} > ${#ours_list[@]} ? ${#etcd_list[@]} - 1 : ${#ours_list[@]} - 1))); do
    if [ -n "${etcd_list[i]:-}" ]; then
      echo "round $round: etcd, ${etcd_list[i]} in flight"
      run_etcd "${etcd_list[i]}" "$round"
    fi
    if [ -n "${ours_list[i]:-}" ]; then
      echo "round $round: logdrive, ${ours_list[i]} in flight"
      run_ours "${ours_list[i]}" "$round"
    fi
  done
done

echo
"$compare" "$out"
