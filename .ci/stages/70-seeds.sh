#!/usr/bin/env bash
# Whole clusters under simulation: 2 000 seeds times CI_BUDGET within the limit, a quarter as many beyond it. They
# begin where the content of the tree says, so that every change is tried on other seeds, and the same content on the
# same ones wherever it is checked. One seed must fail, or this could not tell.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh
build_sim

canary=$("$bin/logdrive-sim" replay --seed 1 --canary) && status=0 || status=$?
if [ "$status" -ne 20 ]; then
  echo "$canary" | cut -c 1-300
  echo "the canary is a run that breaks a promise, and nobody saw it: exit $status" >&2
  exit 1
fi

seeds=$(budget 2000)
first=$((0x$(git rev-parse --short=8 'HEAD^{tree}' 2>/dev/null || echo 1) % 1000000 * 10000 + 1))
"$bin/logdrive-sim" run --seeds "$seeds" --seed "$first"
"$bin/logdrive-sim" run --seeds $((seeds / 4)) --seed "$first" --beyond-limit
