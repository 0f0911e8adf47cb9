"""Incremental copies of growing files, with the right content and digest."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from swe_infer.tracking.worker import StagedFile, Staging


def followed(staging: Staging, source: Path) -> StagedFile:
    """Follows the file, and checks that the copy is equal."""
    staged = staging.follow(source)
    assert staged is not None
    content = source.read_bytes()
    assert staged.copy.read_bytes() == content
    assert staged.digest == base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    assert staged.size == len(content)
    return staged


def test_a_copy_grows_with_its_file_and_outlives_it(tmp_path: Path) -> None:
    staging, source = Staging(tmp_path / "staged"), tmp_path / "records.jsonl"
    assert staging.follow(source) is None
    source.write_bytes(b"")
    first = followed(staging, source)
    with source.open("ab") as file:
        for piece in (b"a line\n", b"half a li", b"ne\n" * 1_000_000):
            file.write(piece)
            file.flush()
            assert followed(staging, source).copy == first.copy
    whole = source.read_bytes()
    source.unlink()
    assert staging.follow(source) is None
    assert first.copy.read_bytes() == whole


def test_a_file_that_was_replaced_or_cut_is_copied_anew(tmp_path: Path) -> None:
    staging, source = Staging(tmp_path / "staged"), tmp_path / "predictions.jsonl"
    source.write_bytes(b"the first one, which is long\n")
    followed(staging, source)
    (tmp_path / "new").write_bytes(b"the second one, which is even longer\n")
    (tmp_path / "new").replace(source)
    followed(staging, source)
    source.write_bytes(b"short\n")
    followed(staging, source)
    assert len(list((tmp_path / "staged").iterdir())) == 1, "what nobody needs is gone"


def test_two_sessions_of_a_run_keep_a_copy_each(tmp_path: Path) -> None:
    source = tmp_path / "records.jsonl"
    source.write_bytes(b"1\n")
    first = followed(Staging(tmp_path / "staged"), source)
    source.write_bytes(b"1\n2\n")
    second = followed(Staging(tmp_path / "staged"), source)
    assert (first.copy.read_bytes(), second.copy.read_bytes()) == (b"1\n", b"1\n2\n")


def test_records_are_copied_without_answers_unless_these_are_logged(tmp_path: Path) -> None:
    source = tmp_path / "records.jsonl"
    record = {
        "instance_id": "a", "sample": 0, "status": "completed", "model_patch": "a patch", "cost_usd": 0.000123,
        "full_output": "the answer", "reasoning": "a thought", "turns": ["a turn"], "a_later_key": "some text",
        "details": {
            "request_id": "r-1", "drafted_tokens": 3, "message": "long " * 40, "nested": {"list": ["text"]},
            "reasoning": "hm", "tool_calls": "edit()", "refusal": "No.",
        },
    }  # fmt: skip
    line = json.dumps(record).encode() + b"\n"
    source.write_bytes(line + b"damaged\n" + line[:20] + line + line[:20])
    staging = Staging(tmp_path / "staged", answers=False)
    staged = staging.follow(source)
    assert staged is not None
    with source.open("ab") as file:
        file.write(line[20:])
    assert staging.follow(source) is staged
    content = staged.copy.read_bytes()
    kept = {key: record[key] for key in ("instance_id", "sample", "status", "model_patch", "cost_usd")}
    details = {"request_id": "r-1", "drafted_tokens": 3, "nested": {}}
    assert [json.loads(one) for one in content.splitlines()] == [{**kept, "details": details}] * 3
    assert staged.size == len(content)
    assert staged.digest == base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
