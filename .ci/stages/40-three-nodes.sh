#!/usr/bin/env bash
# docs/three-nodes.md does what it says: its code blocks run as they stand, in order, in one shell.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# The page works in a directory that `mktemp -d` makes: within this one, which goes with this script.
export TMPDIR
TMPDIR=$(mktemp -d)
trap 'rm -rf "$TMPDIR"' EXIT
script=$TMPDIR/page.sh
# Whatever happens, the nodes that the page starts end with it.
# shellcheck disable=SC2016
{
  echo 'set -euo pipefail'
  echo 'trap '\''for job in $(jobs -p); do kill -9 "$job" 2>/dev/null || true; done'\'' EXIT'
  echo 'trap '\''echo "docs/three-nodes.md failed: $BASH_COMMAND" >&2; tail -n 20 n*.log >&2'\'' ERR'
  awk '/^```/ { on = ($0 == "```sh"); next } on' docs/three-nodes.md
} >"$script"
if [ "$(grep -c . "$script")" -lt 40 ]; then
  echo "docs/three-nodes.md has lost its code blocks" >&2
  exit 1
fi

# Somebody who builds elsewhere finds the programs there.
[ -z "${CARGO_TARGET_DIR:-}" ] || export PATH="$CARGO_TARGET_DIR/release:$PATH"
timeout -k 10 600 bash "$script"
