"""Run directories for evaluations: real stores with known correct and incorrect answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, Failure, PatchResult, Usage

__all__ = ["GENERATED_NAME", "SAMPLE", "make_run", "sample_rows", "verdict_lines"]

SAMPLE = {"_target_": "swe_infer.data.sample.SampleDataset", "text_column": "text"}
GENERATED_NAME = "some/model-1"


def sample_rows() -> list[dict[str, Any]]:
    """The bundled instances, read without the package's own reader."""
    import swe_infer

    path = Path(swe_infer.__file__).parent / "sample" / "instances.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_run(
    directory: Path,
    patches: Mapping[str, str | None],
    dataset: Mapping[str, Any],
    *,
    more_samples: tuple[Mapping[str, str | None], ...] = (),
    instances: int | None = None,
) -> Path:
    """A run in which every instance of ``patches`` is completed; None means a failed one."""
    with RunStore(directory, GENERATED_NAME) as store:
        for sample, answers in enumerate((patches, *more_samples)):
            for instance_id, patch in answers.items():
                if patch is None:
                    store.append(record_of((instance_id, sample), Failure("TransientError", "no answer"), None))
                    continue
                result = PatchResult(patch, "applies" if patch else "none")
                answer = Completion("an answer", "stop", Usage(10, 0, 0, 5, 0), Decimal("0.5"), 1.0)
                store.append(record_of((instance_id, sample), answer, result))
        count, samples = instances or len(patches), 1 + len(more_samples)
        store.write_summary({**store.totals.summary(instances=count, samples=samples), "remaining": 0})
    (directory / "config.yaml").write_text(yaml.safe_dump({"dataset": dict(dataset)}), encoding="utf-8")
    return directory


def verdict_lines(directory: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """``evaluation.jsonl`` by (instance, sample)."""
    lines = (directory / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    return {(entry["instance_id"], entry["sample"]): entry for entry in map(json.loads, lines)}
