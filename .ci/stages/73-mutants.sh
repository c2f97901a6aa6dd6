#!/usr/bin/env bash
# Known bugs of real systems, planted one at a time: each is caught, by the seeds that are known to catch it or by a
# search. The scenarios of the core answer otherwise with each of its own, too, and a follower that fetches under load is
# not brought up if log is not kept for it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh
build_sim
"$bin/logdrive-sim" mutants --seeds "$(budget 2000)"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/mutants RUSTFLAGS="${RUSTFLAGS:-} --cfg mutants"
cargo test --release --locked --quiet -p logdrive-raft --test scenario
cargo test --release --locked --quiet -p logdrive-sim --test kept_log
