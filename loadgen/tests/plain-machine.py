#!/usr/bin/env python3
"""The first command where a machine refuses things: io_uring, O_DIRECT, IPv6, large buffers, locked memory.

    loadgen/tests/plain-machine.py [LOADGEN]        default: target/release/loadgen

Needs no root: each run has a seccomp filter that answers the system calls in question as such a machine would.
A run has to work, verify clean, and say what it did without. Exit 0, or 1 with what went wrong.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import tempfile

EPERM, EINVAL, EAFNOSUPPORT = 1, 22, 97
X86 = platform.machine() == "x86_64"
ARCH = 0xC000003E if X86 else 0xC00000B7
OPENAT, SOCKET, SETSOCKOPT, IO_URING_SETUP = (257, 41, 54, 425) if X86 else (56, 198, 208, 425)
O_DIRECT, AF_INET6, SO_SNDBUF, SO_RCVBUF = os.O_DIRECT, 10, 7, 8

LOAD, JUMP_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000


def filter_of(refused):
    """A program of classic BPF; (call, error, tests) each, a test: (argument, JUMP_.., value)."""
    program = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, ARCH), (RETURN, 0, 0, ALLOW)]
    for call, error, tests in refused:
        # A test that does not hold jumps behind this rule.
        left = 2 * len(tests) + 1
        program += [(LOAD, 0, 0, 0), (JUMP_EQUAL, 0, left, call)]
        for argument, test, value in tests:
            left -= 2
            program += [(LOAD, 0, 0, 16 + 8 * argument), (test, 0, left, value)]
        program.append((RETURN, 0, 0, FAIL | error))
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in program), len(program)


def refuse(refused):
    """Installs the filter in the calling process, for itself and all that it starts."""
    code, steps = filter_of(refused)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxQ", steps, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in [(38, 1, 0, 0, 0), (22, 2, header, 0, 0)]:
        # 38: no new privileges, 22: seccomp.
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def case(loadgen, name, refused, target, expected):
    with tempfile.TemporaryDirectory(prefix="plain machine ") as place:
        def prepare():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
            refuse(refused)

        out = os.path.join(place, "out")
        ended = subprocess.run(
            [loadgen, "run", "--target", target, "--rate", "500", "--duration", "1s", "--warmup", "300ms",
             "--verify", "--out", out],
            preexec_fn=prepare, env={**os.environ, "TMPDIR": place}, cwd=place,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )
        # 12: a machine that is busy with other things makes the generator late.
        assert ended.returncode in (0, 12), f"exit {ended.returncode}\n{ended.stdout}"
        with open(os.path.join(out, "run.json")) as file:
            run = json.load(file)
        assert run["result"]["completed_per_s"] > 50, run["result"]
        verify = run["verify"]
        assert verify["acked"] > 0, verify
        assert verify["lost"] == verify["duplicated"] == verify["reordered"] == 0, verify
        backend, word = expected
        assert backend in (None, run["env"]["wal_backend"]), run["env"]
        told = [note for note in run["verdict"]["warnings"] if word and word in note]
        assert told or not word, (word, run["verdict"]["warnings"])
        assert word in ended.stdout, ended.stdout
        left = [name for name in os.listdir(place) if name.startswith("logdrive-loadgen-")]
        assert not left, left
    print(f"{name}, {target}: works, and says: {told[0] if told else 'nothing'}")


def main():
    loadgen = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "target/release/loadgen")
    no_ring = (IO_URING_SETUP, EPERM, [])
    # Opening is refused, and setting the flag later is not what anybody does.
    no_direct = (OPENAT, EINVAL, [(2, JUMP_ANY_BIT, O_DIRECT)])
    no_ipv6 = (SOCKET, EAFNOSUPPORT, [(0, JUMP_EQUAL, AF_INET6)])
    # Sockets stay as small as they are by default: what a small net.core.rmem_max comes to.
    small = [(SETSOCKOPT, EPERM, [(1, JUMP_EQUAL, 1), (2, JUMP_EQUAL, name)]) for name in (SO_SNDBUF, SO_RCVBUF)]
    for target in ("spawn:3", "inproc:1"):
        case(loadgen, "io_uring refused", [no_ring], target, ("pwrite", "io_uring"))
        case(loadgen, "O_DIRECT refused", [no_direct], target, (None, "O_DIRECT"))
        case(loadgen, "no IPv6", [no_ipv6], target, (None, ""))
    for target in ("spawn:3", "inproc:3"):
        case(loadgen, "small socket buffers", small, target, (None, "net.core.rmem_max"))
    case(loadgen, "all of it", [no_ring, no_direct, no_ipv6, *small], "spawn:3", ("pwrite", "buffered"))


main()
