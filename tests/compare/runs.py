"""Run directories for tests, written by the store that real runs use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import yaml

from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, Failure, FinishReason, Outcome, PatchResult, PatchStatus, Skip, Usage

__all__ = ["HOSTILE", "Entry", "answer", "failure", "hostile_run", "skip", "write_run"]

HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror="document.title=1"><!--\u2028\ud800 & é'

USAGE = Usage(input_tokens=100, cached_input_tokens=40, output_tokens=10, reasoning_tokens=4)

Entry = tuple[str, int, Outcome, PatchResult | None]


def answer(
    instance_id: str,
    patch_status: PatchStatus = "applies",
    *,
    sample: int = 0,
    cost: str | None = "0.5",
    text: str = "an answer",
    patch: str = "--- a/x\n+++ b/x\n",
    finish: FinishReason = "stop",
    usage: Usage = USAGE,
    latency_s: float = 2.0,
) -> Entry:
    paid = None if cost is None else Decimal(cost)
    completion = Completion(text, finish, usage, paid, latency_s)
    return instance_id, sample, completion, PatchResult("" if patch_status == "none" else patch, patch_status)


def failure(instance_id: str, *, sample: int = 0, cost: str = "0", error: str = "Overloaded") -> Entry:
    return instance_id, sample, Failure(error, "no answer after 5 tries", 5, cost_usd=Decimal(cost)), None


def skip(instance_id: str, *, sample: int = 0) -> Entry:
    return instance_id, sample, Skip("ContextOverflow", "the prompt is too long"), None


def write_run(
    directory: Path,
    entries: Iterable[Entry],
    config: Mapping[str, Any] | None = None,
    *,
    resolved: Iterable[str] | None = None,
    **summary: Any,
) -> Path:
    """A run directory; ``resolved``: the instances whose tests pass, None without an evaluation."""
    seen = []
    with RunStore(directory, "model") as store:
        for instance_id, sample, outcome, patch in entries:
            store.append(record_of((instance_id, sample), outcome, patch))
            seen.append((instance_id, sample))
        store.write_summary(cast(Summary, {"wall_s": 60.0, "remaining": 0, **summary}))
    (directory / "config.yaml").write_text(yaml.safe_dump(dict(config or {"model": {"name": directory.name}})))
    if resolved is not None:
        good = set(resolved)
        lines = [{"instance_id": i, "sample": s, "resolved": i in good} for i, s in dict.fromkeys(seen)]
        (directory / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def hostile_run(directory: Path, dataset: dict[str, Any]) -> Path:
    name = HOSTILE.replace("\ud800", "")
    config = {"dataset": dataset, "model": {"name": name + directory.name}}
    return write_run(directory, [answer("i-1", text=HOSTILE, patch=HOSTILE), answer(HOSTILE)], config)
