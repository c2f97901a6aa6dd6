#!/usr/bin/env bash
# 200 seeds run twice: whatever happens in one happens in the other, in the same order.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh
build_sim
"$bin/logdrive-sim" run --seeds 200 --twice
