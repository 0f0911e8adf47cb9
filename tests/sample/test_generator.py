"""The generated repair tasks: reproducible, disjoint between splits, and well-formed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from benchmarks.sample_tasks.cases import write_test
from benchmarks.sample_tasks.generator import generate, make
from benchmarks.sample_tasks.respelt import ANY_KIND
from benchmarks.sample_tasks.templates import SPLITS, Split, families, fill, read_toml
from swe_infer.prompt_format import files_in_prompt, split_prompt

COUNT = 150

pytestmark = pytest.mark.full  # of a program in benchmarks/


@pytest.mark.parametrize("split", SPLITS)
def test_a_task_follows_from_its_split_and_number_alone(split: Split) -> None:
    first = list(islice(generate(split), 20))
    assert first[7:] == list(islice(generate(split, 7), 13))
    assert len({task.text for task in first}) == 20


def test_tasks_are_the_same_in_a_process_with_another_hash_seed() -> None:
    program = "from benchmarks.sample_tasks.generator import make; print([make('test', n).text for n in range(5)])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{[make('test', n).text for n in range(5)]}\n"}


@pytest.mark.parametrize("split", SPLITS)
def test_the_files_of_a_task_are_python_and_differ_by_one_bug(split: Split) -> None:
    for task in islice(generate(split), COUNT):
        stray = task.kind == ANY_KIND  # any text in place of any other, for training alone, need not be Python
        for source in (task.fixed,) if stray else (task.broken, task.fixed):
            names = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
            assert task.function in names
        assert task.broken != task.fixed
        assert task.patch.count("\n@@ ") == 1
        assert 1 <= len(re.findall(r"^[-+](?![-+])", task.patch, re.MULTILINE)) <= 3


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_text_stands_for_any_other_outside_training(split: Split) -> None:
    assert ANY_KIND not in {task.kind for task in islice(generate(split), COUNT)}


def test_a_stretch_of_tokens_is_replaced_anywhere_in_half_of_the_training_tasks() -> None:
    tasks = [task for task in islice(generate("train"), 4 * COUNT) if task.kind == ANY_KIND]
    assert 0.4 < len(tasks) / (4 * COUNT) < 0.7
    for task in tasks:
        removed, added = (
            next(line[1:] for line in task.patch.splitlines()[3:] if line.startswith(sign)) for sign in "-+"
        )
        assert removed != added
        assert f"`{removed.strip()}`" in task.problem_statement or task.problem_statement.count("`") >= 4


@pytest.mark.parametrize("split", SPLITS)
def test_an_issue_says_which_comparison_is_right_unless_it_was_merely_turned_round(split: Split) -> None:
    turned = {("<", ">"), (">", "<"), ("<=", ">="), (">=", "<=")}
    for task in islice(generate(split), 8 * COUNT):
        if task.kind == "direction":
            before, after = (re.findall(r"[<>]=?", line) for line in task.patch.splitlines()[3:5])
            old, new = next(pair for pair in zip(before, after, strict=True) if pair[0] != pair[1])
            assert (old, new) in turned or f"`{new}`" in task.problem_statement


@pytest.mark.parametrize("split", ["test"])
def test_a_name_that_is_wrong_stands_once_in_its_line(split: Split) -> None:
    checked = 0
    for task in islice(generate(split), 4 * COUNT):
        if task.kind != "name":
            continue
        body = task.patch.splitlines()[3:]
        old, new = (next(line for line in body if line.startswith(sign)) for sign in "-+")
        before, after = re.findall(r"\w+", old), re.findall(r"\w+", new)
        wrong = [one for one, other in zip(before, after, strict=True) if one != other]
        assert len(wrong) == 1
        assert before.count(wrong[0]) == 1, task.patch
        checked += 1
    assert checked > 5


@pytest.mark.parametrize("split", SPLITS)
def test_the_prompt_shows_the_issue_and_the_file_in_the_swe_bench_form(split: Split) -> None:
    for task in islice(generate(split), COUNT):
        assert files_in_prompt(task.text) == {task.path: task.broken}
        prompt = split_prompt(task.text)
        assert prompt.system is not None
        assert prompt.text == task.text
        assert f"<issue>\n{task.problem_statement}\n</issue>\n<code>\n[start of {task.path}]\n1 " in task.text
        assert f"`{task.function}`" in task.problem_statement


def test_no_slot_or_marker_is_left_in_a_task() -> None:
    for split in SPLITS:
        for task in islice(generate(split), COUNT):
            assert not re.search(r"\$|\+>|^->", task.text + task.patch, re.MULTILINE)


@pytest.mark.parametrize("split", SPLITS)
def test_the_gold_patch_makes_the_broken_file_the_fixed_one(split: Split, tmp_path: Path) -> None:
    for task in islice(generate(split, 500), 8):
        place = tmp_path / task.instance_id
        target = place / task.path
        target.parent.mkdir(parents=True)
        target.write_text(task.broken)
        subprocess.run(["git", "apply", "-"], input=task.patch, text=True, cwd=place, check=True)
        assert target.read_text() == task.fixed


def test_splits_share_no_function() -> None:
    seen: set[str] = set()
    for split in SPLITS:
        names = {re.sub(r"\$\w+", "$", family.correct) for family in families(split)}
        assert not names & seen
        seen |= names


def test_splits_share_no_name() -> None:
    words = read_toml("words.toml")
    pools = [{word for pool in words[split].values() for word in str(pool).split()} for split in SPLITS]
    verbs = [{verb for family in families(split) for verb in family.verbs} for split in SPLITS]
    for kind in (pools, verbs):
        for at, one in enumerate(kind):
            for other in kind[at + 1 :]:
                assert not one & other


def test_splits_share_no_sentence() -> None:
    wordings = read_toml("wordings.toml")
    seen: set[str] = set()
    for split in SPLITS:
        section = wordings[split]
        sentences: set[str] = set()
        for part in ("openings", "lines", "closings"):
            sentences |= set(section[part])
        for faults in section["faults"].values():
            sentences |= set(faults)
        assert not sentences & seen
        seen |= sentences


def test_no_noun_names_a_module_of_the_standard_library() -> None:
    words = read_toml("words.toml")
    for split in SPLITS:
        for pool in ("noun", "rare"):
            assert not set(str(words[split].get(pool, "")).split()) & sys.stdlib_module_names


def test_there_are_many_kinds_of_bugs_and_a_wording_for_each_in_every_split() -> None:
    wordings = read_toml("wordings.toml")
    for split in SPLITS:
        kinds = {bug.kind for family in families(split) for bug in family.bugs()}
        assert len(kinds) >= 12
        assert kinds <= set(wordings[split]["faults"])


def test_every_bug_of_a_family_changes_its_source() -> None:
    names = {slot: f"n_{slot}" for slot in "fgstuwpqrdkvijnmabxy"} | {"xs": "n_xs", "ys": "n_ys"}
    for split in SPLITS:
        for family in families(split):
            assert family.bugs()
            for bug in family.bugs():
                assert bug.faulty != family.correct
                ast.parse(fill(bug.faulty, names))


def test_functions_without_a_meaning_are_for_training_alone() -> None:
    free = {split: sum(task.family.name == "freeform" for task in islice(generate(split), COUNT)) for split in SPLITS}
    assert free["train"] > COUNT // 2
    assert free["validation"] == free["test"] == 0


def test_issues_name_the_faulty_line_by_its_right_number() -> None:
    for split in SPLITS:
        for task in islice(generate(split), COUNT):
            match = re.search(r"\w\.py:(\d+)", task.problem_statement)
            assert match is not None
            broken, fixed = task.broken.split("\n"), task.fixed.split("\n")
            number = int(match[1])
            assert broken[: number - 1] == fixed[: number - 1]
            assert task.patch.splitlines()[2].startswith(f"@@ -{number},")
            assert broken[number - 1] != fixed[number - 1] or task.kind == "extra"  # of two equal lines one goes


@pytest.mark.parametrize("split", ["test"])
def test_nearly_every_task_has_a_test_that_tells(split: Split) -> None:
    tests = [write_test(task) for task in islice(generate(split), COUNT)]
    assert sum(test is None for test in tests) <= COUNT // 20


@pytest.mark.parametrize(("builder", "held"), [(WheelBuilder, False), (SdistBuilder, True)])
def test_the_generator_is_in_the_source_distribution_alone(
    builder: type[WheelBuilder] | type[SdistBuilder], held: bool
) -> None:
    root = Path(__file__).resolve().parents[2]
    paths = {file.distribution_path for file in builder(str(root)).recurse_included_files()}
    assert "swe_infer/sample/instances.jsonl" in paths
    for name in ("generator.py", "families.toml"):
        found = [path for path in paths if path.endswith(f"/{name}")]
        assert found == ([f"benchmarks/sample_tasks/{name}"] if held else [])
