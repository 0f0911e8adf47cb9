"""All checks and figures on a GPU, one after the other, within eight minutes.

    python -m benchmarks.gpu_table [--out FILE] [--seconds 460] [--vllm PYTHON]

``tests/llama/test_gpu.py``, then ``benchmarks.engine_gpu``: varlen and flash-attn, the shapes of 8B and 7B, and the
peers. Each part is a process with a time limit, so a part that hangs or fails costs no other. Output is appended to
FILE line by line. The exit code is the number of parts that failed. Without a GPU the same parts run on the CPU with
the tiny shape: a trial of the command, in which the tests are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def parts(vllm: str) -> list[tuple[str, int, list[str]]]:
    """Heading, most seconds, and command of each part."""
    from benchmarks.engine_gpu import SCALE

    def engine(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.engine_gpu", *arguments]

    if SCALE == 1:
        shape_8b, shape_7b, varlen, flash_attn = "8b", "7b", "varlen", "flash_attn"
    else:
        shape_8b = shape_7b = "tiny"
        varlen = flash_attn = "sdpa"
    tests = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-rs", "tests/llama/test_gpu.py"]
    whole = ["--parts", "prefill,decode,work,drafting"]
    passes = ["--parts", "prefill,decode"]
    peer_limit = ["--peer-limit", "70"]
    return [
        ("tests", 100, tests),
        ("8B, varlen", 90, engine("--shape", shape_8b, "--attention", varlen, *whole)),
        ("8B, flash-attn", 90, engine("--shape", shape_8b, "--attention", flash_attn, *whole)),
        ("7B, varlen", 40, engine("--shape", shape_7b, "--attention", varlen, *passes)),
        ("transformers", 80, engine("--shape", shape_8b, "--parts", "peer", *peer_limit)),
        ("vLLM", 80, engine("--shape", shape_8b, "--parts", "vllm", *peer_limit, "--vllm", vllm)),
    ]


def run(command: Sequence[str], limit: float, write: Callable[[str], None]) -> int:
    """Run a process and what it starts, for ``limit`` seconds at most. Returns its exit code."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, end)
    timer.start()
    try:
        with process:
            for line in process.stdout or ():
                write(line)
        return process.returncode
    finally:
        timer.cancel()
        end()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_table.txt"))
    parser.add_argument("--seconds", type=float, default=460, help="for all parts together")
    parser.add_argument("--vllm", default="", metavar="PYTHON", help="of an environment with vLLM")
    asked = parser.parse_args(arguments)
    try:
        out = asked.out.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        parser.error(f"--out {asked.out}: {error.strerror}")

    def write(line: str) -> None:
        print(line, end="", flush=True)
        out.write(line)

    started, failed = time.monotonic(), 0
    with out:
        for heading, limit, command in parts(asked.vllm):
            begun = time.monotonic()
            most = min(limit, asked.seconds - (begun - started))
            if most <= 0:
                write(f"# {heading}: not run, as {asked.seconds:g} s are over\n")
                failed += 1
                continue
            write(f"# {heading}\n")
            code = run(command, most, write)
            failed += code != 0
            seconds = time.monotonic() - begun
            write(
                f"# {heading}: {'ended by its time limit' if code == -9 else f'exit code {code}'}, {seconds:.0f} s\n"
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
