#!/usr/bin/env bash
# A node on a small disk of its own, ext4 and then xfs on a loop device, until it is full: what is refused then,
# what goes on, what a restart finds, and that room helps. And a disk in memory, whose runs are invalid.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=.ci/check.sh
source .ci/check.sh

if [ "$(id -u)" -ne 0 ]; then
  skipped devices "needs root, to make and mount file systems"
  exit 77
fi
build
PATH=$bin:$PATH

place=$(mktemp -d)
unmount() { # The kernel may hold the files of a killed process for a moment.
  for _ in $(seq 50); do ! umount "$1" 2>/dev/null || return 0; sleep 0.1; done
  umount "$1"
}
cleanup() {
  for job in $(jobs -p); do kill -9 "$job" 2>/dev/null || true; done
  wait 2>/dev/null || true
  cd /
  for mounted in "$place"/*.mnt; do ! mountpoint -q "$mounted" || unmount "$mounted"; done
  for image in "$place"/*.img; do [ ! -e "$image" ] || losetup -j "$image" | cut -d: -f1 | xargs -r losetup -d; done
  rm -rf "$place"
}
trap cleanup EXIT

fail() { echo "$*" >&2; cat "$place/last.txt" >&2; tail -n 5 "$place/node.log" >&2; exit 1; }
# expect STATUS TEXT COMMAND..: it exits so, and says so.
expect() {
  local wanted=$1 text=$2 status=0
  shift 2
  "$@" >"$place/last.txt" 2>&1 || status=$?
  [ "$status" -eq "$wanted" ] || fail "exit $status, not $wanted: $*"
  grep -Fq -- "$text" "$place/last.txt" || fail "it does not say '$text': $*"
}
# within SECONDS COMMAND..: it succeeds within that time.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >"$place/last.txt" 2>&1; do
    [ "$SECONDS" -lt "$end" ] || fail "not in time: $*"
    sleep 0.2
  done
}

start() { # also what the next opening of the log goes through
  logdrive serve --config n1.toml >"$place/node.out" 2>>"$place/node.log" &
  within 30 test -s "$place/node.out"
}
field() { sed "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/" "$place/node.out"; } # NAME: from the line it wrote at its start
end() { # SIGNAL
  local pid
  pid=$(field pid)
  kill "-$1" "$pid"
  wait "$pid" 2>/dev/null || [ "$1" = KILL ] || fail "the node ended with an error"
  : >"$place/node.out"
}
kv() { logdrive kv "$@" --addr "$(field client)" --tls client --timeout 5s; }
status() { logdrive status "$(field client)" --tls client "$@"; }
# KEY: of the group, whose own come before those of its snapshot.
of_group() { { status --json || [ $? -eq 10 ]; } | sed "s/.*\"groups\":\[//" | grep -o "\"$1\":[^,}]*" | sed "s/.*://;q"; }
leads() { [ "$(of_group leader)" = 1 ]; }
# Without a shell that prints the whole value if it fails.
put_much() { kv put "$1" "$value" >"$place/last.txt" 2>&1; }

full_disk() { # FS MKFS..
  local fs=$1 image=$place/$1.img mounted=$place/$1.mnt device written=0 term backend
  shift
  truncate -s 384M "$image"
  device=$(losetup -f --show "$image") || { skipped "$fs" "no loop device: losetup failed"; return 0; }
  "$@" "$device"
  mkdir "$mounted"
  mount "$device" "$mounted" || { skipped "$fs" "this kernel does not mount it"; return 0; }
  cd "$mounted"
  # Leave 48 MiB; what is kept here makes room later.
  fallocate -l $(($(df --output=avail -B1 . | tail -n 1) - (48 << 20))) filler

  expect 2 "MiB free: shorten --duration" loadgen run --dir "$mounted/load" --duration 60s --out "$place/out"

  logdrive tls init --dir authority --cluster full
  logdrive tls issue --dir authority --out client --role client
  logdrive tls issue --dir authority --out n1/tls --role peer --node 1
  cat >n1.toml <<END
[node]
id = 1
dir = "n1/data"
[cluster]
id = "full"
[listen]
client = "127.0.0.1:0"
[tls]
dir = "n1/tls"
[wal]
slot_bytes = "4MiB"
END
  start
  within 10 kv put first "of all"
  backend=$(status --json | sed 's/.*"backend":"\([^"]*\)".*/\1/')
  echo "$fs: backend $backend"
  if [ "$backend" != io_uring ]; then
    [ "$uring" = no ] || fail "io_uring is to be had, and not used on $fs"
    skipped "io_uring on $fs" "refused by this kernel"
  fi

  # Write until there is no room. What is refused was not appended, and the text says what to do.
  while put_much "key-$written"; do
    written=$((written + 1))
    [ "$written" -lt 600 ] || fail "60 MB went into 48 MiB"
  done
  expect 10 "storage_full" put_refused
  expect 10 "not appended" put_refused
  expect 10 "ALARM storage_full" status
  expect 10 "ree space on the disk" status
  echo "$fs: full after $written values of 100 kB; $(df --output=avail -BK . | tail -n 1) left"

  # A new directory finds no room at all, and says so before it is anybody.
  expect 2 "free some" env LOGDRIVE_NODE_DIR=n1/other logdrive serve --config n1.toml
  rm -rf n1/other

  # Votes go on: a new life of the node gets a vote, and the term it was given in, onto the full disk; and again.
  for _ in 1 2 3; do
    term=$(of_group term)
    end KILL
    start
    within 10 leads
    [ "$(of_group term)" -gt "$term" ] || fail "it leads without an election"
  done
  expect 10 "storage_full" put_refused
  end TERM
  expect 0 "verdict clean groups 1" logdrive wal verify n1/data
  echo "$fs: $(tail -n 1 "$place/last.txt")"

  # Room is made, and it goes on.
  start
  within 10 leads
  rm filler
  within 10 put_much more
  within 10 status
  [ "$(kv get first)" = "of all" ] || fail "the first value is gone"
  [ "$(kv get "key-$((written - 1))")" = "$value" ] || fail "the last value is gone"
  end KILL
  expect 0 "verdict " logdrive wal verify n1/data
  cd "$place"
  unmount "$mounted"
  losetup -d "$device"
}
put_refused() { kv put more "$value"; }
value=$(head -c 100000 /dev/zero | tr '\0' v)

# Whether this kernel has io_uring, asked of a run elsewhere.
uring=no status=0
loadgen run --target inproc:1 --rate 100 --duration 1s --warmup 0s --wal-backend io_uring --dir "$place/uring" \
  --out "$place/out" >"$place/last.txt" 2>&1 || status=$?
if [ "$status" -eq 0 ] || [ "$status" -eq 12 ]; then uring=yes; else tail -n 3 "$place/last.txt"; fi

full_disk ext4 mkfs.ext4 -q
if ! command -v mkfs.xfs >/dev/null; then
  { apt-get update -q && apt-get install -q -y --no-install-recommends xfsprogs; } >"$place/apt.txt" 2>&1 || true
fi
if command -v mkfs.xfs >/dev/null; then
  full_disk xfs mkfs.xfs -q
else
  skipped xfs "mkfs.xfs cannot be installed: $(tail -n 1 "$place/apt.txt")"
fi

mkdir "$place/tmpfs.mnt"
if mount -t tmpfs -o size=2g none "$place/tmpfs.mnt"; then
  expect 12 "tmpfs" loadgen run --dir "$place/tmpfs.mnt/load" --rate 1k --duration 1s --warmup 0s --out "$place/out"
  echo "tmpfs: a run there is invalid, and says so"
else
  skipped tmpfs "it cannot be mounted"
fi
