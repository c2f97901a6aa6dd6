#!/usr/bin/env bash
# What clients notice of snapshots: three nodes as processes of their own that hold a gibibyte, under half of the
# load that they can take.
#
#   bench/reports/snapshots.sh OUT_DIR [--pairs 5] [--window 60] [--minutes 10] [--keys 2300k] [--dir DIR]
#                              [--only taken,fetched,steady,restart] [--quick]
#
#   taken    windows in which all nodes take snapshots, one after the other, beside windows without
#   fetched  windows in which a follower that was killed is brought up over the snapshot stream, beside windows without
#   steady   minutes of closed load with a snapshot after every 256 MiB of log: the last beside the second; then
#            as many of three writers that only write to the device
#   restart  a node that was killed, from its snapshot and 64 MiB of log to ready, beside reading the same files
#
# It leaves tables in OUT_DIR/*.md with the raw histograms beside them. About an hour and 40 GiB of disk, with nothing
# else on the machine. --quick takes some three minutes with 64 MiB, shows that all of this works, and nothing else.
# Exit: 0 done, 1 something did not work, 2 usage.
set -Eeuo pipefail
trap 'echo "snapshots: line $LINENO: $BASH_COMMAND: exit $?" >&2' ERR
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
command="bench/reports/snapshots.sh $*"

out= pairs=5 window=60 minutes=10 keys=2300k only= quick= dir=${TMPDIR:-/var/tmp}/logdrive-snapshots
fail() {
  echo "snapshots: $2" >&2
  exit "$1"
}
usage() {
  sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes pairs=1 window=6 minutes=1 keys=60k && shift && continue ;;
    --pairs | --window | --minutes | --keys | --only | --dir) [ $# -ge 2 ] || usage ;;
    -*) usage ;;
    *) [ -z "$out" ] || usage; out=$1 && shift && continue ;;
  esac
  case $1 in
    --pairs) pairs=$2 ;;
    --window) window=$2 ;;
    --minutes) minutes=$2 ;;
    --keys) keys=$2 ;;
    --only) only=,$2, ;;
    --dir) dir=$2 ;;
  esac
  shift 2
done
[ -n "$out" ] || usage
for count in "$pairs" "$window" "$minutes"; do
  [[ $count =~ ^[1-9][0-9]*$ ]] || fail 2 "$count is not a count"
done
[ ! -e "$out" ] || fail 2 "$out exists: remove it or choose another name"
wanted() { [ -z "$only" ] || [[ $only == *",$1,"* ]]; }

target=${CARGO_TARGET_DIR:-$root/target}/release
(cd "$root" && cargo build --release --locked -p logdrive-server -p loadgen)
(cd "$root" && cargo build --release --locked -p logdrive-bench --bin bench-windows)
logdrive=$target/logdrive loadgen=$target/loadgen windows=$target/bench-windows

mkdir -p "$out" "$dir"
out=$(cd "$out" && pwd) dir=$(cd "$dir" && pwd)
case $(findmnt -n -o FSTYPE -T "$dir") in
  tmpfs | ramfs) fail 2 "$dir is in memory: nothing there is durable, give --dir on a disk" ;;
esac

declare -A pids=()
load_pid=
stop_all() {
  [ -z "$load_pid" ] || pkill -KILL -P "$load_pid" || kill -KILL "$load_pid" 2>/dev/null || true
  for node in "${!pids[@]}"; do
    kill -KILL "${pids[$node]}" 2>/dev/null || true
  done
  wait 2>/dev/null || true
  pids=() load_pid=
}
trap 'stop_all; rm -rf "$dir/data"; rmdir "$dir" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
{
  echo "command:  $command"
  echo "commit:   $(git -C "$root" rev-parse HEAD)$(git -C "$root" diff --quiet HEAD -- || echo ', with changes')"
  echo "built by: $(cd "$root" && rustc --version)"
  echo "machine:  $(nproc) x $(sed -n 's/^model name.*: //p' /proc/cpuinfo | sed -n 1p), $(sed -n 's/^MemTotal: *//p' /proc/meminfo)"
  echo "kernel:   $(uname -sr), $(systemd-detect-virt 2>/dev/null || echo 'virtualisation unknown')"
  echo "disk:     $(findmnt -n -o FSTYPE,SOURCE -T "$dir")"
  echo "load:     $(cut -d' ' -f1-3 /proc/loadavg) before the first run"
} | tee "$out/environment.txt"

say() { echo "$(date -u +%H:%M:%S) $*"; }
now() { date +%s.%N; }

peer() { echo "127.0.0.1:$((27100 + $1))"; }
client() { echo "127.0.0.1:$((27200 + $1))"; }
http_port() { echo $((27300 + $1)); }

# Half load: two clients that send a thousand times a second. The generator has the same processors as the nodes, and
# as eight clients that send whatever is due it alone took a quarter of two, so that the nodes had none left.
half_load=(--clients 2 --pace 1ms)

# begin [SNAPSHOTS]: a new cluster; what stands in the section about snapshots. The flush mode is forced: a start on an
# idle disk chooses now this one and now the other, and runs would differ by that.
begin() {
  stop_all
  rm -rf "$dir/data"
  mkdir -p "$dir/data/tls"
  "$logdrive" tls init --dir "$dir/data/tls" --cluster bench >/dev/null
  for node in 1 2 3; do
    "$logdrive" tls issue --dir "$dir/data/tls" --role peer --node "$node" >/dev/null
    cat >"$dir/data/$node.toml" <<EOF
[node]
id = $node
dir = "$dir/data/$node"
[cluster]
id = "bench"
members = ["1=$(peer 1)", "2=$(peer 2)", "3=$(peer 3)"]
[listen]
peer = "$(peer "$node")"
client = "$(client "$node")"
http = "127.0.0.1:$(http_port "$node")"
mtu = "loopback"
[tls]
dir = "$dir/data/tls"
[wal]
bytes_max = "48GiB"
flush_mode = "drained_fsync"
[snapshots]
$1
EOF
  done
  "$logdrive" tls issue --dir "$dir/data/tls" --role client >/dev/null
  "$logdrive" tls issue --dir "$dir/data/tls" --role admin >/dev/null
  for node in 1 2 3; do start "$node"; done
  for node in 1 2 3; do until_true 60 is_ready "$node"; done
}

start() {
  "$logdrive" serve --config "$dir/data/$1.toml" >>"$out/node-$1.log" 2>&1 &
  pids[$1]=$!
}
kill_node() {
  kill -KILL "${pids[$1]}"
  wait "${pids[$1]}" 2>/dev/null || true
  unset "pids[$1]"
}
# What a node says of itself over HTTP: the status line, then the page.
page() {
  local connection line
  exec {connection}<>"/dev/tcp/127.0.0.1/$(http_port "$1")" || return 1
  printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&"$connection"
  cat <&"$connection" || true
  exec {connection}>&-
}
is_ready() { page "$1" /readyz 2>/dev/null | sed -n 1p | grep -q ' 200'; }
metric() { page "$1" /metrics 2>/dev/null | sed -n "s/^$2 //p"; }
until_true() { # seconds, command
  local until=$(($(date +%s) + $1))
  shift
  until "$@"; do
    [ "$(date +%s)" -lt "$until" ] || fail 1 "waited in vain for: $*"
    sleep 0.02
  done
}
status_of() { "$logdrive" status --json --tls "$dir/data/tls" "$(client "$1")" 2>/dev/null; }
first_of() { status_of "$1" | grep -o '"first":[0-9]*' | sed -n '1s/.*://p'; }
last_of() { status_of "$1" | grep -o '"last":[0-9]*' | sed -n '1s/.*://p'; }
follower() {
  for node in 3 2 1; do
    if status_of "$node" | grep -q '"role":"follower"'; then
      echo "$node"
      return
    fi
  done
  fail 1 "nobody follows"
}
# Three writers of 64 KiB blocks that the device has to keep before the next, for some seconds: MiB a second in all.
raw_loop() {
  local until=$(($(date +%s) + $1)) begin file
  begin=$(now)
  : >"$dir/data/passes"
  for file in raw-1 raw-2 raw-3; do
    while [ "$(date +%s)" -lt "$until" ]; do
      dd if=/dev/zero of="$dir/data/$file" bs=64k count=1024 conv=notrunc oflag=direct,dsync status=none
      echo 64 >>"$dir/data/passes"
    done &
    pids[$file]=$!
  done
  for file in raw-1 raw-2 raw-3; do wait "${pids[$file]}" && unset "pids[$file]"; done
  awk "BEGIN { printf \"%.1f\\n\", $(wc -l <"$dir/data/passes") * 64 / ($(now) - $begin) }"
}
# Waits until it was taken. If the machine stands still for longer than a connection lives, it is taken all the same.
snapshot_of() {
  "$logdrive" snapshot --tls "$dir/data/tls" "$(client "$1")" >>"$out/snapshots.log" 2>&1 \
    || echo "node $1 did not answer" >>"$out/snapshots.log"
}
# Until its deadline, of each node in turn; how many.
snapshots_until() {
  local taken=0
  while :; do
    for node in 1 2 3; do
      [ "$(date +%s)" -lt "$1" ] || break 2
      snapshot_of "$node"
      taken=$((taken + 1))
    done
  done
  echo "$taken"
}
# Snapshots of all nodes, side by side and not begun at once, so that no log is long.
cut_all() {
  local jobs=()
  for node in 1 2 3; do
    snapshot_of "$node" &
    jobs+=($!)
    sleep 3
  done
  for job in "${jobs[@]}"; do wait "$job"; done
}
load() { # case, seconds, arguments of loadgen; what makes the run invalid stands in invalid.txt
  local case=$1 seconds=$2 status=0
  shift 2
  mkdir -p "$out/$case"
  "$loadgen" run --target cluster "$(client 1),$(client 2),$(client 3)" --tls "$dir/data/tls" --size 512B \
    --keys "$keys" --mtu loopback --warmup 1s --duration "${seconds}s" --out "$out/$case" "$@" \
    >"$out/$case/loadgen.log" 2>&1 || status=$?
  [ "$status" -ne 12 ] || { echo "$case: $(grep '^ invalid' "$out/$case/loadgen.log")" >>"$out/invalid.txt"; return 0; }
  return "$status"
}
# It was allowed more time than the windows took, and must have been under way until now.
end_load() { # case
  local status=0
  pkill -TERM -P "$load_pid" -x loadgen || fail 1 "the load has ended by itself: see $out/$1/loadgen.log"
  wait "$load_pid" || status=$?
  load_pid=
  [ "$status" = 130 ] || fail 1 "the load ended with $status: see $out/$1/loadgen.log"
  awk "BEGIN { exit !($(field "$1" completed_per_s) >= 0.99 * $(field "$1" offered_per_s)) }" \
    || fail 1 "not all that was asked for was done: see $out/$1/loadgen.log"
}
field() { grep -o "\"$2\": *[0-9.]*" "$out/$1/run.json" | sed -n '1s/.*: *//p'; }

if wanted taken || wanted fetched; then
  # Snapshots are taken where a window asks for them, and not between: at most a quarter of the log counts, and no two
  # windows write so much.
  begin $'log_bytes = "12GiB"\nkeep_log_bytes = "256MiB"\nlog_entries = 1000000000'
  say "filling $keys keys of 512 B"
  fill_s=$([ -n "$quick" ] && echo 5 || echo 100)
  load fill "$fill_s" --rate 70k
  cut_all
  load most 10 --closed --in-flight 1024
  rate=$(awk "BEGIN { printf \"%d\", $(field most completed_per_s) / 2 }")
  say "at most $(field most completed_per_s) a second with 1024 in flight: half is $rate"
  echo "half load: $rate operations a second of 512 B" >>"$out/environment.txt"
fi

if wanted taken; then
  say "taken: $pairs pairs of $window s"
  load taken $(((pairs + 2) * (2 * window + 90) + 10)) --rate "$rate" "${half_load[@]}" &
  load_pid=$!
  sleep 5
  # Two pairs do not count: they make the segment files that the others use.
  for pair in $(seq -1 "$pairs"); do
    begin=$(now)
    taken=$(snapshots_until $(($(date +%s) + window)))
    [ "$pair" -lt 1 ] || echo "$pair with $begin $(now)" >>"$out/taken/windows"
    say "pair $pair: $taken snapshots"
    # What was begun in the window has ended; what it left to the disk settles.
    sleep 2
    begin=$(now)
    sleep "$window"
    [ "$pair" -lt 1 ] || echo "$pair without $begin $(now)" >>"$out/taken/windows"
  done
  end_load taken
  "$windows" "$out/taken/run.hlog" "$out/taken/windows" | tee "$out/taken.md"
fi

if wanted fetched; then
  say "fetched: $pairs pairs of $window s"
  : >"$out/fetched.txt"
  load fetched $((pairs * (2 * window + 90) + 10)) --rate "$rate" "${half_load[@]}" &
  load_pid=$!
  sleep 5
  for pair in $(seq "$pairs"); do
    begin=$(now)
    sleep "$window"
    echo "$pair without $begin $(now)" >>"$out/fetched/windows"
    node=$(follower)
    last=$(last_of "$node")
    kill_node "$node"
    others=$(for other in 1 2 3; do [ "$other" = "$node" ] || echo "$other"; done)
    # Until the others have cut what it has.
    is_cut() {
      local first
      for other in $others; do
        first=$(first_of "$other")
        [ "${first:-0}" -gt "$((last + 1))" ] || return 1
      done
    }
    for round in 1 2 3 4; do
      jobs=()
      for other in $others; do
        snapshot_of "$other" &
        jobs+=($!)
      done
      wait "${jobs[@]}"
      sleep 1
      ! is_cut || break
      sleep 5
    done
    is_cut || fail 1 "the logs of $others were not cut behind $last"
    begin=$(now)
    start "$node"
    is_there() { [ "$(metric "$node" logdrive_snapshots_installed_total)" = 1 ]; }
    until_true "$((window + 60))" is_there
    there=$(now)
    until_true 60 is_ready "$node"
    ready=$(now)
    left=$(awk "BEGIN { left = $begin + $window - $ready; print (left > 0 ? left : 0) }")
    sleep "$left"
    echo "$pair with $begin $(now)" >>"$out/fetched/windows"
    sent=0
    for other in $others; do
      sent=$((sent + $(metric "$other" logdrive_snapshot_sent_bytes_total)))
    done
    awk "BEGIN { printf \"pair $pair: installed after %.1f s, ready after %.1f s; sent by the others since they \
started: $sent bytes; resident $(sed -n 's/^VmHWM: *//p' "/proc/${pids[$node]}/status" | tr -s ' ')\\n\", \
$there - $begin, $ready - $begin }" | tee -a "$out/fetched.txt"
    sleep 2
  done
  end_load fetched
  "$windows" "$out/fetched/run.hlog" "$out/fetched/windows" | tee "$out/fetched.md"
fi

if wanted restart; then
  # As a node comes to be by itself: its snapshots and its log are those of the defaults.
  begin ''
  say "restart: filling $keys keys at 45 000 a second"
  load refill "$([ -n "$quick" ] && echo 5 || echo 120)" --rate 45k
  node=$(follower)
  snapshot_of "$node"
  # 64 MiB of log, with what frames add to a value.
  load beyond 5 --rate 23k
  # Read as the device gives it, past the page cache.
  raw_read() { find "$dir/data/$node/$1" -type f -name "$2" -exec dd if={} of=/dev/null bs=1M iflag=direct status=none \;; }
  {
    echo "Snapshot $(du -sm "$dir/data/$node/snapshots" | cut -f1) MiB, log $(du -sm "$dir/data/$node/wal-0" | cut -f1)" \
      "MiB with segment files that are free."
    echo
    echo "| round | ready ms | device reads the snapshot ms | and all of the log ms | beyond the snapshot ms |"
    echo "|--:|--:|--:|--:|--:|"
    for round in 1 2 3; do
      kill_node "$node"
      forget=$(echo 3 >/proc/sys/vm/drop_caches 2>/dev/null && echo cold || echo warm)
      begun=$(now)
      start "$node"
      until_true 60 is_ready "$node"
      ready=$(now)
      raw_read snapshots '*'
      snapshot_read=$(now)
      raw_read wal-0 '*.slot'
      all_read=$(now)
      awk "BEGIN { r = ($ready - $begun) * 1000; s = ($snapshot_read - $ready) * 1000; l = ($all_read - $snapshot_read) * 1000; \
printf \"| $round, $forget | %d | %d | %d | %d |\\n\", r, s, l, r - s }"
    done
  } >"$out/restart.md"
  cat "$out/restart.md"
fi
stop_all
rm -rf "$dir/data"

if wanted steady; then
  say "steady: $minutes minutes"
  mkdir -p "$out/steady"
  sync -f "$dir"
  "$loadgen" run --target spawn:3 --closed --in-flight 1024 --size 1KiB --snapshot-every 256MiB --warmup 1s \
    --duration "$((minutes * 60))s" --dir "$dir/data" --out "$out/steady" >"$out/steady/loadgen.log" 2>&1 &
  load_pid=$!
  while kill -0 "$load_pid" 2>/dev/null; do
    du -sm "$dir/data" 2>/dev/null | cut -f1 >>"$out/steady/disk-mib" || true
    sleep 5
  done
  wait "$load_pid" || fail 1 "see $out/steady/loadgen.log"
  load_pid=
  rm -rf "$dir/data"
  begin=$(sed -n 's/^#\[StartTime: \([0-9.]*\) .*/\1/p' "$out/steady/run.hlog")
  at() { awk "BEGIN { printf \"%.3f\", $begin + $1 }"; }
  second=$((minutes > 1 ? 60 : 10)) part=$((minutes > 1 ? 60 : 20))
  {
    echo "1 without $(at $((second + 1))) $(at $((second + part + 1)))"
    echo "1 with $(at $((minutes * 60 - part + 1))) $(at $((minutes * 60 + 1)))"
  } >"$out/steady/windows"
  {
    "$windows" "$out/steady/run.hlog" "$out/steady/windows"
    echo
    echo "Disk of three replicas, MiB: at most $(sort -n "$out/steady/disk-mib" | tail -1), at the end" \
      "$(tail -1 "$out/steady/disk-mib")."
  } | tee "$out/steady.md"
  say "steady: as long of the device alone"
  mkdir -p "$dir/data"
  for minute in $(seq $((minutes > 1 ? minutes : 3))); do
    raw_loop "$((minutes > 1 ? 60 : 10))" >>"$out/steady/raw-mib-per-s"
  done
  rm -rf "$dir/data"
  raw_second=$(sed -n 2p "$out/steady/raw-mib-per-s") raw_last=$(tail -1 "$out/steady/raw-mib-per-s")
  awk "BEGIN { printf \"Three writers of 64 KiB to the device: %.1f MiB/s in the second minute, %.1f in the last, ratio \
%.3f.\\n\", $raw_second, $raw_last, $raw_last / $raw_second }" | tee -a "$out/steady.md"
fi
say "wrote $out"
