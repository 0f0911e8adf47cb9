from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.compare.runs import HOSTILE


@pytest.fixture
def dataset(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "data.jsonl"
    row = {"instance_id": "i-1", "text": f"The issue.\n{HOSTILE}", "patch": "the gold patch"}
    path.write_text(json.dumps({**row, "text": row["text"].replace("\ud800", "")}) + "\n")
    return {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": str(path), "text_column": "text", "limit": None}
