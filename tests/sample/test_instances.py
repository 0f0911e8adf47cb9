"""The bundled instances: what the generator makes, and tests that tell broken from fixed."""

from __future__ import annotations

import json
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sample_tasks.dataset import rows
from swe_infer.prompt_format import files_in_prompt
from swe_infer.sample.testing import run_test

BUNDLED: list[dict[str, Any]] = [
    json.loads(line) for line in (files("swe_infer.sample") / "instances.jsonl").read_text().splitlines()
]


def test_the_bundled_instances_are_the_generators_test_split() -> None:
    assert list(rows("test", len(BUNDLED))) == BUNDLED
    assert 24 <= len(BUNDLED) <= 50


def test_a_split_of_few_functions_gives_as_many_instances_as_are_asked_for() -> None:
    assert len(list(rows("validation", 60))) == 60


def test_the_bundled_instances_are_varied() -> None:
    assert len({row["instance_id"] for row in BUNDLED}) == len(BUNDLED)
    assert len({row["kind"] for row in BUNDLED}) >= 12
    assert len({row["function"] for row in BUNDLED}) >= 10


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.full] * (number % 5 > 0)) for number, row in enumerate(BUNDLED)],
    ids=lambda row: str(row["instance_id"]),
)
def test_a_bundled_test_fails_before_the_gold_patch_and_passes_after_it(row: dict[str, Any], tmp_path: Path) -> None:
    assert files_in_prompt(row["text"]) == row["files"]
    assert not run_test(row["files"], row["test"]).resolved
    for path, content in row["files"].items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(content)
    subprocess.run(["git", "apply", "-"], input=row["patch"], text=True, cwd=tmp_path, check=True)
    fixed = {path: (tmp_path / path).read_text() for path in row["files"]}
    assert run_test(fixed, row["test"]).resolved
