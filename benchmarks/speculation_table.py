"""All figures of speculation, one command after the other: about ten minutes on two idle cores.

    python -m benchmarks.speculation_table CHECKPOINT ORACLE.jsonl [--vllm PYTHON]

``CHECKPOINT`` is a model of about 100 M parameters, ``ORACLE.jsonl`` real instances; the bundled model runs on its
own instances. Outputs of the larger model are limited to 128 tokens. ``benchmarks.drafting`` and
``benchmarks.speculation`` explain the lines.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SAMPLE = Path(__file__).resolve().parent.parent / "swe_infer" / "sample"


def commands(checkpoint: Path, oracle: Path, vllm: Path | None) -> dict[str, list[str]]:
    """Modules with their arguments, by heading."""
    bundled = ["benchmarks.speculation", str(SAMPLE / "tiny_llama"), str(SAMPLE / "instances.jsonl")]
    small = ["--kv-cache-gb", "0.3", "--count", "8"]
    default = ["--dtype", "float32"]  # as conf/model/tiny.yaml has it
    many = ["--kv-cache-gb", "0.3", "--count", "40", "--batch", "8"]
    larger = ["benchmarks.speculation", str(checkpoint), str(oracle), "--kv-cache-gb", "2", "--count", "8"]
    beside = [] if vllm is None else ["--vllm", str(vllm)]
    return {
        "tokens a step on gold patches, and the cost of a step at 60,000 prompt tokens": [
            "benchmarks.drafting", str(oracle), "--tokenizer", str(checkpoint),
        ],
        "bundled model, steered to gold patches": [*bundled, *small, *default, "--transformers"],
        "bundled model, steered to all 40 gold patches": [*bundled, *many, *default],
        "the same in bfloat16": [*bundled, *many],
        "bundled model, without steering": [*bundled, *small, *default, "--own", "--new", "200", *beside],
        "bundled model, steered to random tokens": [*bundled, *many, *default, "--nonsense"],
        "larger model, steered to gold patches": [
            *larger, "--new", "128", "--repeat", "1", "--batch", "8", "1", "--transformers",
        ],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("oracle", type=Path)
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    asked = parser.parse_args(arguments)
    for path in (asked.checkpoint / "config.json", asked.oracle):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    failed = 0
    for heading, command in commands(asked.checkpoint, asked.oracle, asked.vllm).items():
        started = time.perf_counter()
        print(f"# {heading}", flush=True)
        failed += subprocess.run([sys.executable, "-m", *command], check=False).returncode != 0
        print(f"# {time.perf_counter() - started:.0f} s\n", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
