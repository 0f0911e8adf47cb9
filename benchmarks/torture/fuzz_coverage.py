"""The inputs of :mod:`benchmarks.torture.fuzz`, led by the branches that they reach (atheris, libFuzzer).

    python -m venv ATHERIS && ATHERIS/bin/pip install atheris hypothesis -e .
    ATHERIS/bin/python -m benchmarks.torture.fuzz_coverage answers --minutes 5 --corpus DIR

Each kind of input is tried by hypothesis' strategies from bytes that libFuzzer chooses, with every module of
``swe_infer`` instrumented. ``--corpus`` keeps what led somewhere for the next time. libFuzzer says on standard error
how many inputs it tried and how many branches they reached; it ends with 77, and the trace, at the first that goes
wrong, and leaves its bytes in the working directory.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

_KINDS = ("overrides", "datasets", "tables", "records", "checkpoints", "answers")
_MEMORY_MB = 8192
_SLOW_S = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=_KINDS)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--corpus", type=Path, help="a directory")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        import atheris  # type: ignore[import-untyped]
    except ImportError:
        parser.error("atheris is not installed in this environment")
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    with atheris.instrument_imports(include=["swe_infer"]):
        from benchmarks.torture import fuzz

        fuzz.fuzz(options.kind, 1, 0, scratch)  # what is imported when first used is instrumented too
    logging.getLogger().setLevel(logging.CRITICAL)
    one_input = fuzz.attempt(options.kind, scratch).hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    settings = [
        f"-max_total_time={60 * options.minutes:.0f}", f"-seed={options.seed}", f"-rss_limit_mb={_MEMORY_MB}",
        f"-timeout={_SLOW_S}", "-max_len=8192", "-len_control=0", "-print_final_stats=1",
    ]  # fmt: skip
    if options.corpus is not None:
        options.corpus.mkdir(parents=True, exist_ok=True)
        settings.append(str(options.corpus))
    atheris.Setup([sys.argv[0], *settings], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
