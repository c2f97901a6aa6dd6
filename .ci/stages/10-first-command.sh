#!/usr/bin/env bash
# The README's first command, as a newcomer types it; then the same cluster killed and verified.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh

first_command() {
  cargo run --release -p loadgen --locked
}
status=0
first_command || status=$?
bin=${CARGO_TARGET_DIR:-target}/release
check_run "$status" loadgen-out/run.json

for target in spawn:3 inproc:3; do
  status=0
  "$bin/loadgen" run --target "$target" --rate 10k --duration 4s --warmup 1s --verify \
    --out loadgen-out/verify || status=$?
  check_run "$status" loadgen-out/verify/run.json
done

# Faults are part of the promise: the leader is killed, and nothing that was acknowledged is gone.
status=0
"$bin/loadgen" run --target spawn:3 --rate 10k --duration 6s --warmup 1s --verify \
  --fault '2s kill-leader' --out loadgen-out/fault || status=$?
check_run "$status" loadgen-out/fault/run.json
