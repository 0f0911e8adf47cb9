"""Published benchmarks: from a row in each shape to its prompt, and what costs one row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from swe_infer.conf_files import node_of, options_of
from swe_infer.context.oracle import OracleContext
from swe_infer.data.benchmark import BenchmarkDataset
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.prompts.rows import RenderedRows
from swe_infer.repositories import Repositories
from tests.data.benchmark_rows import GOLD, SECRET, TESTS, Clones, Row, Shape

PRESETS = [name for name in options_of("dataset") if "benchmark" in node_of("dataset", name) and name != "benchmark"]


class _Characters:
    name, exact = "characters", True

    def __call__(self, prompt: Any) -> int:
        return len(prompt.text)


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Clones:
    return Clones(tmp_path_factory.mktemp("clones"))


def dataset_of(preset: str, path: Path, **options: Any) -> BenchmarkDataset:
    node = {key: value for key, value in node_of("dataset", preset).items() if key in ("benchmark", "name", "split")}
    return BenchmarkDataset(**node, path=str(path), text_column=None, **options)


def rendered(dataset: BenchmarkDataset, repositories: Repositories) -> RenderedRows:
    renderer = PromptRenderer(style="style3")
    return RenderedRows(dataset.open(), OracleContext(), renderer, repositories, _Characters(), "text")


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row, default=lambda value: value.isoformat()) + "\n" for row in rows))
    return path


def faults(preset: str, shape: Shape, row: Mapping[str, Any], prompt: str) -> list[str]:
    """What is wrong with a normalised row and its prompt."""
    expected: Row = {
        "instance_id": shape.instance_id, "FAIL_TO_PASS": TESTS, "PASS_TO_PASS": [], "patch": GOLD,
        "benchmark": node_of("dataset", preset)["benchmark"], **shape.expected,
    }  # fmt: skip
    if "created_at" in shape.row:
        expected["created_at"] = "2024-05-06T07:08:09Z"
    found = [f"{key}: {row.get(key)!r}, not {value!r}" for key, value in expected.items() if row.get(key) != value]
    found += [f"{key} is null" for key, value in row.items() if value is None]
    if not row["problem_statement"].endswith(shape.ends_with):
        found.append(f"problem_statement: {row['problem_statement']!r}")
    if "return 2 * r" not in prompt or shape.ends_with not in prompt:
        found.append(f"the prompt shows not the issue, or not the file with the bug: {prompt}")
    leaks = [text for text in (SECRET, "return 3 * r", "It is 3.") if text in prompt]
    return [*found, *(f"the prompt shows {text!r}" for text in leaks)]


def test_a_row_of_each_benchmark_becomes_a_prompt(clones: Clones, tmp_path: Path) -> None:
    shapes = clones.shapes()
    assert sorted(shapes) == PRESETS
    offenders: dict[str, list[str]] = {}
    options = OracleContext(repositories=str(clones.root), offline=True).repository_options
    with Repositories(options) as repositories:
        for preset, shape in shapes.items():
            rows = rendered(dataset_of(preset, write(tmp_path / f"{preset}.jsonl", [shape.row])), repositories)
            fault = rows.fault(0)
            if list(rows.ids) != [shape.instance_id] or fault is not None:
                offenders[preset] = [f"{rows.ids}: {fault}"]
            elif wrong := faults(preset, shape, rows.row(0), rows[0].prompt.text):
                offenders[preset] = wrong
    assert offenders == {}
