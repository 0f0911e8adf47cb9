"""Rows to build datasets from: small synthetic ones, and real ones if the shared data is beside the checkout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "oracle_dev.jsonl"

Row = dict[str, Any]


@pytest.fixture
def rows() -> list[Row]:
    return [
        {
            "instance_id": "a__a-1",
            "text": "You fix bugs.\n<issue>\nÜber 😀\n</issue>\n",
            "repo": "a/a",
            "patch": "p1",
        },
        {"instance_id": "b__b-2", "text": "one line only", "repo": "b/b", "patch": "p2"},
        {"instance_id": "c__c-3", "text": "system\n" + "x" * 500, "repo": "c/c", "patch": "p3"},
    ]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[Sequence[Row]], Path]:
    def write(rows: Sequence[Row]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def real_path() -> Path:
    if not REAL.exists():
        pytest.skip("the shared SWE-bench instances are not beside this checkout")
    return REAL
