#!/usr/bin/env bash
# What is shipped holds no mutant: none of their names is anywhere in the release programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh
build

# As the compiler spells them and as people do: `    AckBeforeFlush = "ack-before-flush",`.
names=$(sed -nE 's/^    ([A-Za-z]+) = "([a-z0-9-]+)",$/\1\n\2/p' raft/src/mutant.rs)
count=$(wc -l <<<"$names")
if [ "$count" -lt 60 ]; then
  echo "raft/src/mutant.rs names $count mutants, twice each: has its form changed?" >&2
  exit 1
fi
for program in logdrive loadgen; do
  # A text of the core, to see that this looks where such texts are.
  grep -qaF 'the configuration contradicts itself' "$bin/$program" ||
    { echo "$program holds no text of the core" >&2; exit 1; }
  if found=$(grep -aoFf - "$bin/$program" <<<"$names" | sort -u); then
    echo "$program holds mutants: ${found//$'\n'/ }" >&2
    exit 1
  fi
  echo "$program holds none of $((count / 2)) mutants"
done
