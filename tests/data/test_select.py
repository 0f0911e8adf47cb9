"""Selection: ids, limit, shards and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.data.base import DatasetOptions, Rows
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.select import Selection, assign_shards, select
from swe_infer.errors import ConfigError, DataError
from swe_infer.types import DataShard, EditFormat, Instance, Prompt, Skip, TokenCounter


class Texts:
    """Rows in memory that record the reads."""

    has_known_lengths = True
    file_choices = None
    revision = None
    columns = ("instance_id", "text")

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.ids = [f"repo__repo-{number}" for number in range(len(texts))]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.texts)

    def characters(self, index: int) -> int:
        return len(self.texts[index])

    def fault(self, index: int) -> Skip | None:
        return None if self.texts[index] else Skip("BlankPrompt", "the prompt is empty")

    def content_sha256(self) -> str | None:
        return None

    def row(self, index: int) -> Mapping[str, Any]:
        self.read.append(index)
        return {"instance_id": self.ids[index], "text": self.texts[index]}

    def __getitem__(self, index: int) -> Instance:
        row = self.row(index)
        return Instance(row["instance_id"], Prompt(None, row["text"]))

    def inputs_of_check(self, index: int) -> tuple[Mapping[str, str], EditFormat | None]:
        instance = self[index]
        return instance.files, instance.edit_format


@dataclass(frozen=True, kw_only=True)
class Options(DatasetOptions):
    name: str = "texts"

    def open(self) -> Rows:
        raise NotImplementedError


@dataclass
class Words:
    """Counts words, and its own calls."""

    exact: bool = True
    name: str = "words"
    asked: list[str] = field(default_factory=list)

    def __call__(self, prompt: Prompt) -> int:
        self.asked.append(prompt.text)
        return len(prompt.text.split())


def choose(
    rows: Texts,
    options: Options | None = None,
    *,
    counter: TokenCounter | None = None,
    room: int = 0,
    window: int | None = None,
    shard: DataShard | None = None,
    longest_first: bool = False,
) -> Selection:
    return select(
        rows,
        options or Options(),
        count_tokens=counter,
        reserved_output_tokens=room,
        context_window=window,
        shard=shard or DataShard(),
        order="longest_first" if longest_first else "dataset",
    )


def words(count: int) -> str:
    return "word " * count


def test_ids_come_before_the_limit_and_keep_the_datasets_order() -> None:
    rows = Texts(["a"] * 6)
    wanted = ("repo__repo-5", "repo__repo-1", "repo__repo-3", "repo__repo-1")
    assert choose(rows, Options(instance_ids=wanted)).kept == [1, 3, 5]
    assert choose(rows, Options(instance_ids=wanted, limit=2)).kept == [1, 3]
    assert choose(rows, Options(limit=99)).kept == list(range(6))


def test_an_unknown_id_is_refused_with_the_closest_one() -> None:
    rows = Texts(["a"] * 12)
    with pytest.raises(DataError, match=r"'repo_repo-7' is not in texts; .* 12 ids is 'repo__repo-7'"):
        choose(rows, Options(instance_ids=("repo_repo-7",)))
    with pytest.raises(DataError, match=r"\(and 1 more\)"):
        choose(rows, Options(instance_ids=("x", "y", "repo__repo-1")))


def test_longest_first_sorts_by_characters_and_keeps_the_order_of_equals() -> None:
    assert choose(Texts(["bb", "a", "cc", "dddd", "e"]), longest_first=True).kept == [3, 0, 2, 1, 4]


@given(st.lists(st.integers(1, 300_000), max_size=200), st.integers(1, 12))
def test_shards_are_disjoint_complete_and_balanced(sizes: list[int], count: int) -> None:
    assignment = assign_shards(sizes, count)
    assert len(assignment) == len(sizes)
    members = [[size for size, owner in zip(sizes, assignment, strict=True) if owner == s] for s in range(count)]
    assert sum(map(len, members)) == len(sizes)
    loads = [sum(part) for part in members]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_instances_of_one_size_are_dealt_evenly() -> None:
    assignment = assign_shards([5] * 10, 4)
    assert sorted(assignment.count(shard) for shard in range(4)) == [2, 2, 3, 3]
    assert sorted(assign_shards([0] * 4, 4)) == [0, 1, 2, 3]
    assert assign_shards([3, 0, 5], 10**9) == assign_shards([3, 0, 5], 3)


def test_the_shards_of_a_selection_are_disjoint_and_complete_and_come_after_the_limit() -> None:
    rows = Texts(["x" * (7 * n % 41 + 1) for n in range(50)])
    parts = [choose(rows, Options(limit=31), shard=DataShard(index=index, count=4)).kept for index in range(4)]
    assert sorted(index for part in parts for index in part) == list(range(31))
    assert {
        choose(rows, Options(limit=31), shard=DataShard(index=i, count=4)).requested_of_all_shards for i in range(4)
    } == {31}


def test_a_shard_depends_on_the_configuration_alone() -> None:
    """It does not depend on finished instances, the token counter or the order: a resume never overlaps."""
    rows = Texts([words(n % 17 + 1) for n in range(60)])
    options = Options(max_tokens=8)
    plain = choose(rows, options, counter=Words(exact=False), shard=DataShard(index=1, count=3))
    again = choose(rows, options, counter=Words(), shard=DataShard(index=1, count=3), longest_first=True)
    assert set(again.requested) == set(plain.requested)
    assert {*again.kept, *(s.index for s in again.skipped)} == set(plain.requested)


def test_an_instance_keeps_its_shard_for_any_request() -> None:
    """Ids, limit and bounds may change between two commands, and a sharded run grows."""
    rows = Texts([words(1 + 7 * n % 41) for n in range(40)])

    def owners(options: Options) -> dict[int, int]:
        parts = [choose(rows, options, counter=Words(), shard=DataShard(index=i, count=4)) for i in range(4)]
        return {index: shard for shard, part in enumerate(parts) for index in part.requested}

    whole = owners(Options())
    assert sorted(whole) == list(range(40))
    ids = tuple(rows.ids[3:30:5])
    for options in (Options(limit=9), Options(limit=31), Options(instance_ids=ids), Options(max_tokens=20)):
        some = owners(options)
        assert some == {index: whole[index] for index in some}
        assert len(some) == {9: 9, 31: 31}.get(options.limit or 0, 6 if options.instance_ids else 40)


def test_another_division_by_an_earlier_version_is_detected() -> None:
    rows = Texts([words(1 + 7 * n % 41) for n in range(40)])
    assert choose(rows, shard=DataShard(index=0, count=4)).moved() == 0
    assert choose(rows, Options(limit=13), shard=DataShard(index=0, count=4)).moved() > 0


def test_more_shards_than_instances_leave_some_empty() -> None:
    assert sorted(len(choose(Texts(["a", "b"]), shard=DataShard(index=i, count=5))) for i in range(5)) == [
        0,
        0,
        0,
        1,
        1,
    ]


def test_skips_have_a_reason_with_numbers() -> None:
    rows = Texts([words(3), "", words(500), words(900)])
    selection = choose(rows, Options(min_tokens=5, max_tokens=600), counter=Words())
    assert selection.kept == [2]
    assert [(s.instance_id, s.reason) for s in selection.skipped] == [
        ("repo__repo-0", "PromptTooShort"),
        ("repo__repo-1", "BlankPrompt"),
        ("repo__repo-3", "PromptTooLong"),
    ]
    assert selection.skipped[2].message == "the prompt has 900 tokens (words), above dataset.max_tokens=600"


def test_output_tokens_are_reserved() -> None:
    rows = Texts([words(900), words(901)])
    selection = choose(rows, counter=Words(), room=100, window=1000)
    assert selection.kept == [0]
    (skipped,) = selection.skipped
    assert skipped.reason == "ContextOverflow"
    assert (
        "901 tokens (words); the context window of 1,000 tokens, less 100 for the output, leaves 900"
        in skipped.message
    )


def test_an_output_that_fills_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no tokens for a prompt"):
        choose(Texts(["a"]), counter=Words(), room=1000, window=1000)


def test_an_estimate_skips_only_clear_overflows_but_decides_max_tokens() -> None:
    rows = Texts([words(1500), words(1801), words(10)])
    estimate = Words(exact=False, name="4 characters a token")
    selection = choose(rows, counter=estimate, room=100, window=1000)
    assert selection.kept == [0, 2]
    bounded = choose(rows, Options(max_tokens=1400), counter=estimate)
    assert bounded.kept == [2]
    assert "about 1,500 tokens (4 characters a token)" in bounded.skipped[0].message


def test_short_prompts_are_not_counted_nor_even_read() -> None:
    rows = Texts(["a" * 180, "b" * 700, words(300)])
    counter = Words()
    selection = choose(rows, Options(max_tokens=1000), counter=counter)
    assert selection.kept == [0, 1, 2]
    assert rows.read == [1, 2]  # may exceed the bound at four bytes per character, so it is read and measured
    assert counter.asked == [rows.texts[2]]


def test_nothing_is_counted_without_bounds() -> None:
    rows = Texts([words(10_000)])
    counter = Words()
    assert choose(rows, counter=counter).kept == [0]
    assert counter.asked == []
    assert rows.read == []


def test_tokens_are_counted_lazily_and_once() -> None:
    rows = Texts([words(500)] * 100)
    counter = Words()
    selection = choose(rows, Options(max_tokens=400), counter=counter)
    assert counter.asked == []
    assert selection.skip_for(3) is not None
    assert selection.skip_for(3) is not None
    assert len(counter.asked) == 1


def test_bounds_without_a_counter_are_refused() -> None:
    with pytest.raises(ConfigError, match="require a token counter"):
        choose(Texts(["a"]), Options(max_tokens=10))


def test_shards_of_the_real_instances_are_balanced(real_path: Path) -> None:
    dataset = JsonlDataset(path=str(real_path))
    rows = dataset.open()
    parts = [
        select(
            rows,
            dataset,
            count_tokens=None,
            reserved_output_tokens=0,
            context_window=None,
            shard=DataShard(index=i, count=4),
            order="dataset",
        )
        for i in range(4)
    ]
    loads = [sum(rows.characters(index) for index in part.kept) for part in parts]
    assert sorted(index for part in parts for index in part.kept) == list(range(32))
    assert max(loads) / min(loads) < 1.05
