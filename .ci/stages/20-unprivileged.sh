#!/usr/bin/env bash
# Real processes as somebody without rights meets them: an ordinary user who may lock 64 KiB of memory, in a
# directory with a space in its name, twice at once. Then the portable backend, through the kill of a leader.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh
build

# A copy: what was built may lie where others cannot read.
place="$(mktemp -d "${TMPDIR:-/tmp}/logdrive ci.XXXXXX")"
trap 'rm -rf "$place"' EXIT
cp "$bin/loadgen" "$place/"
chmod 755 "$place" "$place/loadgen"

user=()
if [ "$(id -u)" -eq 0 ]; then
  chown nobody "$place"
  user=(setpriv "--reuid=$(id -u nobody)" "--regid=$(id -g nobody)" --clear-groups --no-new-privs
    env "HOME=$place")
fi
cd "$place"
# shellcheck disable=SC2016
"${user[@]}" prlimit --memlock=65536:65536 bash -c '
  test "$(id -u)" -ne 0 && test "$(ulimit -l)" = 64 && ! grep -q "^CapEff:.*[1-9a-f]" /proc/self/status' ||
  { echo "this is no ordinary user with 64 KiB of locked memory"; exit 1; }
ordinary() { "${user[@]}" prlimit --memlock=65536:65536 ./loadgen "$@"; }

ordinary run --rate 5k --duration 2s --warmup 500ms --verify --out beside >beside.txt 2>&1 &
beside=$!
status=0
ordinary run --duration 2s --warmup 500ms --verify 2>&1 | tee run.txt || status=$?
check_run "$status" loadgen-out/run.json
status=0
wait "$beside" || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 12 ] || cat beside.txt
check_run "$status" beside/run.json
# It says what it runs on, and why if that is not the best there is.
python3 - run.txt loadgen-out/run.json <<'PY'
import json, sys
text, run = open(sys.argv[1]).read(), json.load(open(sys.argv[2]))
backend, notes = run["env"]["wal_backend"], [n for wal in run["wal"] for n in wal["fallbacks"]]
assert backend in text, f"{backend} is not named"
assert backend == "io_uring" or notes, "pwrite, and nothing says why"
for note in notes:
    assert note in text, f"not said: {note}"
print("backend", backend, "fallbacks", sorted(set(notes)))
PY

status=0
ordinary run --wal-backend pwrite --rate 5k --duration 5s --warmup 500ms --verify --fault '2s kill-leader' \
  --out pwrite || status=$?
check_run "$status" pwrite/run.json
python3 - pwrite/run.json <<'PY'
import json, sys
run = json.load(open(sys.argv[1]))
assert run["env"]["wal_backend"] == "pwrite", run["env"]
assert len(run["faults"]) == 1 and run["faults"][0]["unavailable_ms"] is not None, run["faults"]
assert run["verify"]["acked"] > 0, run["verify"]
PY
