"""The response cache: what the key holds, what is kept, and many processes in one directory."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from swe_infer.api.cache import ResponseCache, cache_key, former_key
from swe_infer.errors import StoreError
from swe_infer.providers.base import Answer
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.types import ApiModel, Decoding, Prompt, Request, Usage
from tests.api.scripted import request
from tests.support import commands

MODEL = ApiModel(name="gpt-4o")
GOOD = Answer("a patch", "stop", Usage(10, 0, 0, 5), model="gpt-4o-2024-08-06", request_id="req_1", details={"a": 1})


def key(wanted: Request, model: ApiModel = MODEL, provider: str = "openai", variant: str = "") -> str:
    return cache_key(wanted, model, provider, variant=variant)


def test_everything_that_decides_the_answer_is_in_the_key() -> None:
    base = request(decoding=Decoding(temperature=0.5, max_new_tokens=100, seed=1))
    decodings = [
        replace(base.decoding, temperature=0.6),
        replace(base.decoding, temperature=None),
        replace(base.decoding, top_p=0.9),
        replace(base.decoding, max_new_tokens=101),
        replace(base.decoding, seed=2),
        replace(base.decoding, seed=None),
        replace(base.decoding, stop=("END",)),
    ]
    keys = [key(base)]
    keys += [key(replace(base, decoding=decoding)) for decoding in decodings]
    keys += [key(replace(base, sample=1)), key(replace(base, prompt=Prompt("s", "fix it")))]
    keys += [key(replace(base, prompt=Prompt(None, "fix it!")))]
    keys += [key(base, ApiModel(name="gpt-4o-mini")), key(base, replace(MODEL, api_version="2026-10-21"))]
    keys += [key(base, replace(MODEL, extra_body={"reasoning_effort": "low"}))]
    keys += [key(base, provider="azure_openai"), key(base, variant="raw.bfloat16")]
    assert len(set(keys)) == len(keys)


def test_what_does_not_decide_the_answer_is_not_in_the_key() -> None:
    base = request(decoding=Decoding(max_new_tokens=100))
    assert key(base) == key(replace(base, instance_id="another instance with the same prompt"))
    assert key(base) == key(replace(base, decoding=replace(base.decoding, n=5)))
    assert key(base, replace(MODEL, price_as="gpt-4o", context_window=1000)) == key(base)
    one = replace(MODEL, extra_body={"a": 1, "b": [1, {"c": 2}]})
    assert key(base, one) == key(base, replace(MODEL, extra_body={"b": (1, {"c": 2}), "a": 1}))
    here, there = (OpenAIChat(base_url=url) for url in ("https://one.example/v1", "https://two.example/v1"))
    assert former_key(base, MODEL, here) != former_key(base, MODEL, there) != key(base), "as earlier versions kept it"


def test_samples_with_derived_seeds_are_not_shared_between_instances() -> None:
    seeded = request(decoding=Decoding(temperature=1.0, seed=7))
    assert key(seeded) != key(replace(seeded, instance_id="b"))


def test_a_cached_answer_is_returned_unchanged(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path / "new" / "cache")
    assert cache.get("k") is None
    assert cache.put("k", GOOD, model="gpt-4o", provider="openai")
    assert cache.write()
    assert ResponseCache(tmp_path / "new" / "cache").get("k") == GOOD


def test_only_the_cache_of_an_earlier_version_may_have_its_keys(tmp_path: Path) -> None:
    for _ in range(2):  # created, then opened again
        with closing(ResponseCache(tmp_path)) as cache:
            assert not cache.has_former_keys
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as kept:
        kept.execute("PRAGMA user_version=0")  # as earlier versions leave it
    with closing(ResponseCache(tmp_path)) as cache:
        assert cache.has_former_keys


@pytest.mark.parametrize("reason", ["length", "refusal", "content_filter", "other", "repetition"])
def test_incomplete_answers_are_not_cached(tmp_path: Path, reason: str) -> None:
    cache = ResponseCache(tmp_path)
    assert not cache.put("k", replace(GOOD, finish_reason=reason), model="m", provider="p")  # type: ignore[arg-type]
    assert not cache.put("k", replace(GOOD, text=" \n"), model="m", provider="p")
    assert cache.get("k") is None


def test_it_can_be_listed_measured_and_cleared(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path)
    for number in range(10):
        cache.put(f"k{number}", GOOD, model="m1" if number % 2 else "m2", provider="openai")
    assert cache.write()
    assert cache.size().answers == 10
    assert cache.size().bytes_on_disk > 0
    assert [entry.key for entry in cache.entries()] == [f"k{n}" for n in range(10)]
    assert {entry.model for entry in cache.entries()} == {"m1", "m2"}
    assert cache.clear(older_than_s=3600) == 0
    assert cache.clear(model="m1") == 5
    assert cache.clear() == 5
    assert cache.size().answers == 0


def test_answers_that_are_kept_for_later_are_found_at_once_and_written_together(tmp_path: Path) -> None:
    cache, other = ResponseCache(tmp_path), ResponseCache(tmp_path)
    for key in ("a", "b"):
        assert cache.put(key, GOOD, model="m", provider="p")
    assert not cache.put("c", replace(GOOD, text=""), model="m", provider="p")
    assert cache.put("a", replace(GOOD, text="a later one"), model="m", provider="p")
    found = cache.get("a")
    assert found is not None
    assert found.text == GOOD.text
    assert other.size().answers == 0
    assert cache.write()
    assert [entry.key for entry in other.entries()] == ["a", "b"]
    assert cache.put("d", GOOD, model="m", provider="p")
    cache.close()
    assert other.holds("d")


def test_the_command_lists_measures_and_clears(tmp_path: Path) -> None:
    def command(*arguments: str) -> tuple[int, str]:
        done = commands.run("swe_infer.cli.cache", str(tmp_path), *arguments, cwd=Path.cwd(), env=os.environ)
        return done.returncode, done.stdout + done.stderr

    assert command()[0] == 2
    cache = ResponseCache(tmp_path)
    for number in range(3):
        cache.put(f"k{number}", GOOD, model=f"m{number}", provider="openai")
    cache.close()
    assert command()[1].startswith("3 answers, ")
    assert [line.split("\t")[3] for line in command("list")[1].splitlines()] == ["m0", "m1", "m2"]
    assert command("clear", "--model", "m1") == (0, "1 answers removed\n")
    assert command("clear", "--older-than", "1") == (0, "0 answers removed\n")
    assert command("clear") == (0, "2 answers removed\n")


def test_many_processes_may_write_and_read_one_directory(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from swe_infer.api.cache import ResponseCache
from swe_infer.providers.base import Answer
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.types import Usage
cache = ResponseCache(Path(sys.argv[1]))
for n in range(200):
    assert cache.put(f"k{n}", Answer(f"text {n}", "stop", Usage()), model="m", provider="p")
    assert cache.write()
    assert cache.get(f"k{n}").text == f"text {n}"
"""
    writers = [commands.start("-c", code, str(tmp_path), cwd=Path.cwd(), env=os.environ) for _ in range(4)]
    assert [(writer.communicate(60)[1], writer.wait()) for writer in writers] == [("", 0)] * 4
    assert ResponseCache(tmp_path).size().answers == 200


def test_a_directory_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        ResponseCache(tmp_path / "file")
    (tmp_path / "answers.sqlite").write_text("no database at all" * 100)
    with pytest.raises(StoreError, match="response cache"):
        ResponseCache(tmp_path)
