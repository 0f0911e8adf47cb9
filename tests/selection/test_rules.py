"""The rules of the group ``selection``: votes by resulting files, ties, patches that do not apply."""

from __future__ import annotations

import difflib
import random
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from swe_infer.conf_files import options_of
from swe_infer.errors import ConfigError
from swe_infer.run_directory.predictions import Candidate, Choice
from swe_infer.selection.base import InstanceSelector, recorded_rule, rule_named

BASE = {
    "pkg/m.py": 'def scale(value):\n    """Scales."""\n    # the factor\n    return value * 2\n',
    "pkg/n.py": "LIMIT = 10\n",
    "notes.txt": "one two\nthree\n",
    "conf.yaml": "a:\n  b: 1\n",
}
PY = "pkg/m.py"
TRIPLE = [
    {PY: 'def scale(value):\n    """Scales."""\n    # the factor\n    return value * 3\n'},
    {PY: "def scale(value):\n    return value*3\n"},
    {PY: "def scale( value ):\n\n    return (value * 3)  # corrected\n"},
    {PY: 'def scale(value):\n    """Multiplies by three.\n\n    Always.\n    """\n    return value * 3\n'},
    {PY: "def scale(value):\n    return value * 3\n", "pkg/n.py": "# how many\nLIMIT  =  10\n"},
]
"""The same change in several forms."""
NEGATIVE = [
    {PY: 'def scale(value):\n    """Scales."""\n    # the factor\n    return -value * 2\n'},
    {PY: "def scale(value):\n    return (-value) * 2\n"},
]
OTHER = [{"notes.txt": "one two\nthree four\n"}, {"notes.txt": "one   two\n\n  three\tfour  \n"}]


def patch(changed: Mapping[str, str | None], base: Mapping[str, str] = BASE) -> str:
    """A diff from ``base`` to new contents; None removes a file."""
    parts = []
    for path, new in changed.items():
        before, after = base.get(path), new
        names = (
            f"a/{path}" if before is not None else "/dev/null",
            f"b/{path}" if after is not None else "/dev/null",
        )
        lines = difflib.unified_diff(
            (before or "").splitlines(keepends=True), (after or "").splitlines(keepends=True), *names
        )
        parts += [f"diff --git a/{path} b/{path}\n", *lines]
    return "".join(parts)


def candidates(*patches: str, status: str = "applies") -> list[Candidate]:
    return [Candidate(number, text, status if text else "none") for number, text in enumerate(patches)]


def chosen(rule: str, given: list[Candidate], files: Mapping[str, str] = BASE) -> Choice:
    choice = rule_named(rule).choose(given, lambda: files)
    assert choice is not None
    return choice


@pytest.mark.parametrize("same", [TRIPLE, NEGATIVE, OTHER], ids=["triple", "negative", "text"])
def test_forms_of_one_change_vote_together(same: list[dict[str, str]], tmp_path: Path) -> None:
    patches = [patch(new) for new in same]
    for number, text in enumerate(patches):  # what is compared is what git makes of the patches
        folder = tmp_path / str(number)
        for path, content in BASE.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content)
        subprocess.run(["git", "apply", "-"], input=text, text=True, cwd=folder, check=True)
        assert {path: (folder / path).read_text() for path in same[number]} == same[number]
    different = patch({"pkg/n.py": "LIMIT = 11\n"})
    found = chosen("majority", candidates(different, *patches))
    assert (found.index, found.votes) == (1, len(same))
    assert found.share == pytest.approx(len(same) / (1 + len(same)), abs=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({PY: BASE[PY].replace("2", "3")}, {PY: BASE[PY].replace("2", "4")}),
        ({PY: "def scale(value):\n    return 'a  b'\n"}, {PY: "def scale(value):\n    return 'a b'\n"}),
        ({"conf.yaml": "a:\n  b: 2\n"}, {"conf.yaml": "a:\nb: 2\n"}),
        ({"pkg/n.py": None}, {"pkg/n.py": ""}),
        ({"new.py": "X = 1\n"}, {"other.py": "X = 1\n"}),
        ({PY: "def scale(value:\n    return 1\n"}, {PY: "def scale(value:\n        return 1\n"}),
    ],
)
def test_different_results_do_not_vote_together(one: dict[str, str | None], other: dict[str, str | None]) -> None:
    found = chosen("majority", candidates(patch(one), patch(other)))
    assert (found.index, found.votes, found.share) == (0, 1, 0.5)
    assert "the first of 2 results" in found.reason


def test_votes_equal_an_independent_count() -> None:
    chance = random.Random(7)
    groups = {"triple": TRIPLE, "negative": NEGATIVE, "other": OTHER}
    for _ in range(150):
        labels = chance.choices([*groups, "does not apply", "empty"], k=chance.randint(1, 9))
        given, votes = [], list[str]()
        for number, label in enumerate(labels):
            if label in groups:
                given.append(Candidate(number, patch(chance.choice(groups[label])), "applies"))
                votes.append(label)
            elif label == "empty":
                given.append(Candidate(number, "", "none"))
            else:
                given.append(Candidate(number, patch({PY: "x\n"}, {PY: "y\n"}), "does_not_apply"))
        if not votes:
            continue
        most = max(votes.count(label) for label in votes)
        winner = next(label for label in labels if label in groups and votes.count(label) == most)
        found = chosen("majority", given)
        assert (found.index, found.votes) == (labels.index(winner), most)
        assert found.share == pytest.approx(most / len(votes), abs=1e-6)
        tied = sum(count == most for count in Counter(votes).values())
        assert (f"the first of {tied} results" in found.reason) == (tied > 1)


def test_patches_that_do_not_apply_vote_only_without_others() -> None:
    wrong = patch({PY: "x\n"}, {PY: "y\n"})
    unchecked = patch({"unknown.py": "x\n"}, {"unknown.py": "y\n"})
    given = [Candidate(0, wrong, "does_not_apply"), Candidate(1, wrong, "does_not_apply"), Candidate(2, "", "none")]
    found = chosen("majority", given)
    assert (found.index, found.votes, found.share) == (0, 2, 1.0)
    found = chosen("majority", [*given, Candidate(3, unchecked, "unchecked")])
    assert (found.index, found.votes) == (3, 1)
    found = chosen("majority", [*given, Candidate(3, patch(TRIPLE[1]), "repaired")])
    assert (found.index, found.votes) == (3, 1)
    for rule in ("majority", "applies", "shortest", "first"):
        assert chosen(rule, candidates("", "")).index == 0
    for rule in ("applies", "shortest"):
        found = chosen(rule, given)
        assert found.index == 0
        assert "no patch applies" in found.reason


def test_without_the_files_patches_are_compared_by_their_text() -> None:
    def missing() -> Mapping[str, str]:
        raise ConfigError("the dataset is gone")

    one, other = patch(TRIPLE[0]), patch(TRIPLE[0]).replace("value * 3", "value  *  3")
    selector = InstanceSelector(rule_named("majority"), lambda name: missing())
    found = selector.select("a", candidates(patch(NEGATIVE[0]), one, other))
    assert found is not None
    assert (found.index, found.votes) == (1, 2)
    assert "the dataset is gone" in found.reason


def test_shortest_counts_changed_lines_of_patches_that_apply() -> None:
    long, short = patch(TRIPLE[3]), patch(TRIPLE[0])
    given = [Candidate(0, "-\n", "does_not_apply"), Candidate(1, long, "applies"), Candidate(2, short, "repaired")]
    found = chosen("shortest", [*given, Candidate(3, short, "applies")])
    assert found.index == 2
    assert found.reason == "sample 2 changes the fewest lines of 3 that apply: 2"


def test_first_is_sample_0_alone() -> None:
    rule = rule_named("first")
    assert rule.choose([Candidate(1, "x", "applies")], dict) is None
    in_runs = [Candidate(1, "x", "applies", "a"), Candidate(0, "y", "none", "b")]
    assert rule.choose(in_runs, dict) == Choice(1, "sample 0 of b")


def test_code_that_the_parser_cannot_handle_is_compared_as_text() -> None:
    deep = "x = " + "(" * 5000 + ")" * 5000 + "\n"
    huge = "".join(f"v{n} = {n}\n" for n in range(60_000))
    for content in (deep, huge, "x = '\x00'\n", "x = '\udcff'\n"):
        same = [patch({"new.py": content}), patch({"new.py": content.replace(" = ", "  =  ")})]
        assert chosen("majority", candidates(patch({"new.py": "y = 1\n"}), *same)).votes == 2


def test_a_rule_is_found_by_its_option_and_nothing_else_is_imported() -> None:
    assert set(options_of("selection")) >= {"first", "applies", "majority", "shortest"}
    for option in options_of("selection"):
        assert rule_named(option).name == option
    with pytest.raises(ConfigError, match="selection=mayority: unknown option; did you mean majority"):
        rule_named("mayority")
    first = recorded_rule({})
    assert first is not None
    assert first.name == "first"
    assert recorded_rule({"selection": {"_target_": "os.system"}}) is None
    assert recorded_rule({"selection": "os.system"}) is None
