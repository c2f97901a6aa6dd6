#!/usr/bin/env bash
# The hand-written concurrent parts of the shard under loom: every order in which threads may take turns. A build
# of its own, for in it locks and atomics are loom's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/models
mkdir -p "$CARGO_TARGET_DIR"
RUSTFLAGS="${RUSTFLAGS:-} --cfg models" timeout -k 10 600 \
  cargo test --release --locked -p logdrive-shard --lib models:: | tee "$CARGO_TARGET_DIR/models.txt"
if ! grep -Eq '^test result: ok\. ([1-9][0-9]+) passed' "$CARGO_TARGET_DIR/models.txt"; then
  echo "fewer than ten models ran" >&2
  exit 1
fi
