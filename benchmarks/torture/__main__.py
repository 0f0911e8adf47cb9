"""Torture: runs that are killed, interrupted, starved and misled, then resumed, and what became of them.

    python -m benchmarks.torture                         # everything, minutes; the table comes last
    python -m benchmarks.torture --only kills --kills 20
    python -m benchmarks.torture fuzz --minutes 5        # inputs that no one should write
    python -m benchmarks.torture interrupts              # Ctrl-C at 40 moments of every kind of command
    python -m benchmarks.torture load                    # 100,000 instances, 1,000 at a time
    python -m benchmarks.torture peers --path PYTHONPATH --inspect PYTHON    # for run_api and Inspect

A full or read-only disk needs a user who may mount a tmpfs (root), jumps of the clock need libfaketime (Debian's
package, or --faketime FILE); what cannot be had is skipped, with the reason. Exit status: 0 if nothing was wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.torture import crashes, shortages
from benchmarks.torture.checks import Findings, table

__all__ = ["main"]

_FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"

Scenario = Callable[[Path], Findings]


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["fuzz"]:
        from benchmarks.torture import fuzz

        return fuzz.main(arguments[1:])
    if arguments[:1] == ["interrupts"]:
        from benchmarks.torture import interrupts

        return interrupts.main(arguments[1:])
    if arguments[:1] == ["load"]:
        from benchmarks.torture import load

        return load.main(arguments[1:])
    if arguments[:1] == ["peers"]:
        from benchmarks.torture import peers

        return peers.main(arguments[1:])
    options = _parser().parse_args(arguments)
    chosen = _scenarios(options)
    if options.only:
        chosen = {name: scenario for name, scenario in chosen.items() if name in options.only}
    findings = []
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="torture-") as scratch:
        for name, scenario in chosen.items():
            begun = time.monotonic()
            place = Path(scratch) / name
            place.mkdir()
            found = scenario(place)
            findings.append(found)
            print(
                f"{name}: {time.monotonic() - begun:.0f} s{'' if found.ok else ' WRONG'}", file=sys.stderr, flush=True
            )
            for line in found.wrong:
                print(f"  {line}", file=sys.stderr, flush=True)
    print(table(findings))
    return 0 if all(found.ok for found in findings) else 1


def _scenarios(options: argparse.Namespace) -> Mapping[str, Scenario]:
    kills, seed = options.kills, options.seed
    local = kills // 10
    return {
        "kills": lambda place: crashes.kills_of_runs(place, kills - local, seed),
        "local-kills": lambda place: crashes.kills_of_local_runs(place, local, seed),
        "sigint": lambda place: crashes.interrupted(place, "SIGINT", seed, tracked=True),
        "sigint-twice": lambda place: crashes.interrupted(place, "SIGINT twice", seed, tracked=True),
        "sigterm": lambda place: crashes.interrupted(place, "SIGTERM", seed),
        "full-disk": lambda place: shortages.full_disk(place, seed),
        "full-disk-tracked": lambda place: shortages.full_disk(place, seed, tracked=True),
        "full-disk-killed": lambda place: shortages.full_disk_then_killed(place, seed),
        "room-comes-back": lambda place: shortages.room_comes_back(place, seed),
        "failing-writes": lambda place: shortages.failing_disk(place, seed, "write"),
        "failing-syncs": lambda place: shortages.failing_disk(place, seed, "sync"),
        "read-only": lambda place: shortages.read_only_directory(place, seed),
        "file-size": lambda place: shortages.file_size_limit(place, seed, tracked=True),
        "file-handles": lambda place: shortages.few_file_handles(place, seed),
        "memory": lambda place: shortages.little_memory(place, seed),
        "clock": lambda place: shortages.clock_jumps(place, seed, options.faketime),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, one in ten on the local engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scenarios; see the names on standard error")
    parser.add_argument("--scratch", type=Path, help="where runs are made; default: the system's temporary directory")
    found = next(iter(sorted(Path("/").glob(_FAKETIME.removeprefix("/")))), None)
    parser.add_argument("--faketime", type=Path, default=found, metavar="FILE", help="libfaketimeMT.so.1")
    return parser


if __name__ == "__main__":
    sys.exit(main())
