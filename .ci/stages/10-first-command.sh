#!/usr/bin/env bash
# The README's first command, as a newcomer types it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cargo run --release -p loadgen --locked
