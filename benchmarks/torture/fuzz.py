"""Inputs that nobody should write, made by hypothesis: one clear error or a recorded skip, never a trace or a hang.

python -m benchmarks.torture fuzz --minutes 5
python -m benchmarks.torture fuzz --only datasets --examples 2000 --seed 7
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.torture import fuzz_inputs as inputs

__all__ = ["TARGETS", "attempt", "fuzz", "main"]

_SLOW_S = 20.0
_ROUND = 50
_MEMORY = 6 << 30
"""So much address space an input may take on top of what the process has."""

Target = Callable[[Path, inputs.Input], None]

TARGETS: Mapping[str, tuple[st.SearchStrategy[inputs.Input], Target]] = {
    "overrides": (inputs.overrides(), inputs.try_overrides),
    "datasets": (inputs.json_lines(), inputs.try_json_lines),
    "tables": (inputs.tables(), inputs.try_table),
    "records": (inputs.run_directories(), inputs.try_run_directory),
    "checkpoints": (inputs.checkpoints(), inputs.try_checkpoint),
    "answers": (inputs.answers(), inputs.try_answer),
}


def attempt(name: str, scratch: Path, *, examples: int = _ROUND, number: int = 0) -> Callable[[], None]:
    """The test of one target, as hypothesis runs it: raises what the first wrong input raised."""
    strategy, target = TARGETS[name]

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def test(value: inputs.Input) -> None:
        begun = time.process_time()  # a busy machine makes anything take long
        with tempfile.TemporaryDirectory(dir=scratch) as place, _memory_limited():
            target(Path(place), value)
        took = time.process_time() - begun
        assert took < _SLOW_S, f"took {took:.0f} s of processor time"

    return test


def fuzz(name: str, examples: int, number: int, scratch: Path) -> tuple[int, str | None]:
    """Try ``examples`` inputs of one target; how many were tried, and the trace of the first that went wrong."""
    tried = 0
    test = attempt(name, scratch, examples=examples, number=number)
    inner = test.hypothesis.inner_test  # type: ignore[attr-defined]

    def counted(value: inputs.Input) -> None:
        nonlocal tried
        tried += 1
        inner(value)

    test.hypothesis.inner_test = counted  # type: ignore[attr-defined]
    try:
        test()
    except Exception:  # noqa: BLE001 - whatever an input raises is what is looked for
        return tried, traceback.format_exc()
    return tried, None


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    logging.getLogger().setLevel(logging.CRITICAL)
    names = options.only or list(TARGETS)
    tried, wrong = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=options.scratch) as scratch:
        for number in range(options.seed, sys.maxsize):
            for name in names:
                count, trace = fuzz(name, options.examples or _ROUND, number, Path(scratch))
                tried[name] += count
                if trace is not None:
                    wrong[name] += 1
                    print(f"{name}, seed {number}:\n{trace}", file=sys.stderr, flush=True)
            if options.examples or time.monotonic() > deadline:
                break
    print(f"{'inputs':14} {'tried':>8} {'wrong':>6}")
    for name in names:
        print(f"{name:14} {tried[name]:>8} {wrong[name]:>6}")
    print(f"{'all':14} {sum(tried.values()):>8} {sum(wrong.values()):>6}")
    return int(any(wrong.values()))


@contextmanager
def _memory_limited() -> Iterator[None]:
    """An input that makes the program take all memory becomes a MemoryError instead."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--examples", type=int, help="one round of so many inputs of each kind, instead of minutes")
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), metavar="KIND", help=f"{', '.join(TARGETS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path)
    return parser
