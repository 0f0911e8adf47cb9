"""A whole run against a server with hostile bodies: each costs at most its own instance."""

from __future__ import annotations

import itertools
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.run_directory.records import read_records
from tests.support import commands
from tests.support.api_hostile import chat, hostile_server
from tests.support.api_http import HttpRequest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_each_body_costs_its_own_instance_at_most(tmp_path: Path) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    bodies = [
        chat(usage={"prompt_tokens": 10**18, "completion_tokens": 10**18}),
        chat(usage={"prompt_tokens": -5, "completion_tokens": -5}),
        chat(usage={"prompt_tokens": "5", "completion_tokens": float("nan")}),
        chat(usage={"prompt_tokens": 0, "completion_tokens": 0}),
        chat(usage="DEEP").replace(b'"DEEP"', deep),
        chat(usage=None, model=["a"], choices=[{"message": {"content": "a\ud800\x00b"}, "finish_reason": {}}]),
        b'{"choices": [' + b" " * (40 << 20) + b"]}",
        chat(),
    ]
    numbers = itertools.count()

    def body(_: HttpRequest) -> tuple[int, bytes]:
        return 200, bodies[next(numbers)]

    with hostile_server() as server:
        server.bodies["run"] = body
        arguments = (
            "model=gpt-4o", "tracker=none", f"dataset.limit={len(bodies)}", "dataset.run_tests=false",
            "budget.max_usd=5", "output_dir=run", "runner.response_cache=cache",
        )  # fmt: skip
        finished = commands.run(
            "swe_infer", *arguments, f"provider.base_url={server.url}/run/v1", cwd=tmp_path,
            env={**os.environ, "OPENAI_API_KEY": "sk-planted-secret", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert finished.returncode == 1, finished.stderr
        assert "Traceback" not in finished.stderr
        assert server.asked == {"run": len(bodies)}
    records: list[Any] = list(read_records(tmp_path / "run" / "records.jsonl"))
    failed = [record for record in records if record["status"] == "failed"]
    assert [record["error"]["type"] for record in failed] == ["AnswerTooLarge"]
    assert "32 MiB" in failed[0]["error"]["message"]
    completed = [record for record in records if record["status"] == "completed"]
    assert sum("usage_estimated" in record["details"] for record in completed) == len(bodies) - 2
    assert all(0 < Decimal(str(record["cost_usd"])) < 1 for record in completed)
    assert sorted(record["full_output"] for record in completed) == [
        "a\ud800\x00b",
        *["the answer"] * (len(bodies) - 2),
    ]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert Decimal(str(summary["cost_usd"])) == sum(Decimal(str(record["cost_usd"])) for record in completed)
