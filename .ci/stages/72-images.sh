#!/usr/bin/env bash
# 600 000 images times CI_BUDGET that a crash may leave of short histories of the log, those inside recoveries included,
# each recovered and checked, and every block of healthy images damaged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh
build_sim
"$bin/logdrive-sim" images --images "$(budget 600000)"
