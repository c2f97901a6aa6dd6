# What stages share; to be sourced.
# shellcheck shell=bash

# Builds both programs; $bin is where they are.
build() {
  cargo build --release --locked -p logdrive-server -p loadgen
  bin=${CARGO_TARGET_DIR:-$PWD/target}/release
}

# Builds the simulator; $bin is where it is. A build of its own: it is no part of what is shipped.
build_sim() {
  cargo build --release --locked -p logdrive-sim
  bin=${CARGO_TARGET_DIR:-$PWD/target}/release
}

# budget COUNT: as many as CI_BUDGET says, a factor; at least one.
budget() {
  awk -v count="$1" -v budget="${CI_BUDGET:-1}" 'BEGIN { n = int(count * budget); print n < 1 ? 1 : n }'
}

# skipped WHAT WHY: for the summary of .ci/run. A stage that could do nothing exits with 77 after it.
skipped() {
  echo "SKIPPED: $1: $2" >&2
  [ -z "${CI_NOTES:-}" ] || echo "SKIPPED $1: $2" >>"$CI_NOTES"
}

# check_run STATUS run.json: a run of the load generator that completed work and lost nothing.
#
# A machine that is busy with something else makes the generator late, and such a run calls itself invalid
# (exit 12). That says something about the machine and nothing about the code, so it alone does not fail.
check_run() {
  local status=$1 report=$2
  [ "$status" -eq 0 ] || [ "$status" -eq 12 ] || { echo "exit $status"; return 1; }
  python3 - "$report" <<'PY'
import json, sys
run = json.load(open(sys.argv[1]))
late = ("lagged", "handed")
reasons = [r for r in run["verdict"]["reasons"] if not any(word in r for word in late)]
assert not reasons, reasons
assert run["result"]["completed_per_s"] > 0, "nothing was completed"
assert run["faults"] or not run["result"]["errors"], run["result"]["errors"]
verify = run["verify"]
if verify["acked"] is not None:
    assert verify["lost"] == verify["duplicated"] == verify["reordered"] == 0, verify
    print("verified:", verify)
PY
}
