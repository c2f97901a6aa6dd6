#!/usr/bin/env bash
# 200 seeds in two processes, in another order: whatever happens in one happens in the other, in the same order.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh
build_sim

last_of() {
  "$bin/logdrive-sim" run --seeds 200 "$@" | tail -n 1
}
hash_of() {
  sed -n 's/.* hash //p' <<<"$1"
}
one=$(last_of)
other=$(last_of --jobs 1)
echo "$one"
if [ -z "$(hash_of "$one")" ] || [ "$(hash_of "$one")" != "$(hash_of "$other")" ]; then
  echo "$other"
  echo "the same seeds did not run to the same ends; which of them:" >&2
  "$bin/logdrive-sim" run --seeds 200 --twice >&2
  exit 1
fi
