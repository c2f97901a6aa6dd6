#!/usr/bin/env bash
# Every fuzz target for its share of three minutes times CI_BUDGET, as many at a time as there are cores. The
# build is not counted. Fails on whatever is found, and says how to see it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}/fuzz")
export CARGO_TARGET_DIR
place=$CARGO_TARGET_DIR/runs
export place fuzz=$CARGO_TARGET_DIR/release/fuzz
(cd fuzz && cargo fmt --check && cargo build --release --locked)

# What was found stays for whoever replays it, until the next run.
rm -rf "$place"
mkdir -p "$place/found"
FUZZ_TARGET=list "$fuzz" 2>/dev/null >"$place/targets"
cores=$(nproc)
# Seconds for a weight of 1, after what each takes to begin and end.
unit=$(awk -v budget="${CI_BUDGET:-1}" -v cores="$cores" \
  '{ sum += $2 } END { unit = int((180 * budget * cores - 2 * NR) / sum); print unit < 1 ? 1 : unit }' "$place/targets")
echo "$(wc -l <"$place/targets") targets, $unit s each times its weight, $cores at a time"

run() {
  local target=$1 seconds=$2 status=0 log=$place/$1.log executed
  mkdir "$place/$target"
  FUZZ_TARGET=$target FUZZ_SEEDS=$place/$target timeout -k 10 $((seconds + 60)) "$fuzz" \
    -max_total_time="$seconds" -max_len=4096 -entropic=0 -timeout=20 -rss_limit_mb=1024 \
    -artifact_prefix="$place/found/$target-" -print_final_stats=1 "$place/$target" >"$log" 2>&1 || status=$?
  executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  printf '%-14s %9d executions\n' "$target" "${executed:-0}"
  if [ "$status" -ne 0 ]; then
    # The panic and where; else libFuzzer's own words.
    grep -A 2 'panicked at' "$log" || grep 'ERROR: libFuzzer' "$log" || tail -n 5 "$log"
    for found in "$place/found/$target"-*; do
      [ -e "$found" ] || continue
      echo "again: FUZZ_TARGET=$target $fuzz $found"
      echo "bytes: $(base64 -w 0 "$found")"
    done
    return 1
  fi
  if [ "${executed:-0}" -eq 0 ]; then
    echo "$target executed nothing: $log"
    return 1
  fi
}
export -f run
status=0
awk -v unit="$unit" '{ print $1, $2 * unit }' "$place/targets" |
  xargs -P "$cores" -L 1 bash -c 'run "$0" "$1" >"$place/$0.said" 2>&1 || touch "$place/failed"' || status=$?
while read -r target _; do cat "$place/$target.said"; done <"$place/targets"
[ "$status" -eq 0 ] && [ ! -e "$place/failed" ]
