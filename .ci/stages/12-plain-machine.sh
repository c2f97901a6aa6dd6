#!/usr/bin/env bash
# The first command on machines that refuse things: it works, and says what it does without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cargo build --release -p loadgen --locked
loadgen/tests/plain-machine.py "${CARGO_TARGET_DIR:-target}/release/loadgen"
