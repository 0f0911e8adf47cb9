"""Splitting prompts, and parsing the files in them."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swe_infer.prompt_format import (
    PromptFiles,
    files_in_prompt,
    prompt_of,
    prose_in_prompt,
    shown_files,
    split_prompt,
)
from swe_infer.types import Prompt
from tests.support.steps import calls_of, lines_executed


def _prompt(files: dict[str, str], *, numbered: bool = True) -> str:
    """A prompt in SWE-bench's style 3."""
    parts = ["You will be given code.", "<issue>", "It is broken.", "</issue>", "<code>"]
    for path, content in files.items():
        lines = content.split("\n")
        shown = [f"{n} {line}" for n, line in enumerate(lines, 1)] if numbered else lines
        parts += [f"[start of {path}]", *shown, f"[end of {path}]"]
    return "\n".join([*parts, "</code>", "Respond below:"]) + "\n"


@pytest.mark.parametrize("numbered", [True, False])
def test_files_are_parsed_byte_for_byte(numbered: bool) -> None:
    files = {
        "a.py": "x = 1\n\ny = 2\n",
        "open.txt": "no newline",
        "empty.py": "",
        "blank.py": "\n\n",
        "d/n.md": "1. a\n2 b\n",
    }
    assert files_in_prompt(_prompt(files, numbered=numbered)) == files


def test_carriage_returns_of_a_prompt_are_not_those_of_its_files() -> None:
    files = {"a.py": "x = 1\n\ny = 2\n", "b.py": "", "c.py": "z"}
    for numbered in (True, False):
        text = _prompt(files, numbered=numbered)
        assert files_in_prompt(text.replace("\n", "\r\n")) == files
        assert files_in_prompt("You will see code.\n" + text.replace("\n", "\r\n")) == files
    dos = {"a.py": "x = 1\r\n\r\n"}
    assert files_in_prompt(_prompt(dos)) == dos


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}\.py", fullmatch=True),
        st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=9)).map(
            "\n".join
        ),
        max_size=4,
    )
)
def test_any_content_comes_back_from_numbered_lines(files: dict[str, str]) -> None:
    assert files_in_prompt(_prompt(files)) == files


def test_line_numbers_of_a_long_file_are_removed() -> None:
    lines = [f"line of {number}" for number in range(1, 12_001)]
    shown = "\n".join(f"{number} {line}" for number, line in enumerate(lines, 1))
    assert files_in_prompt(f"[start of a.py]\n{shown}\n[end of a.py]\n") == {"a.py": "\n".join(lines)}


def test_blank_last_line_may_have_lost_the_space_behind_its_number() -> None:
    assert files_in_prompt("[start of a.py]\n1 x\n2\n[end of a.py]\n") == {"a.py": "x\n"}


def test_lines_that_begin_with_digits_are_kept_where_the_file_is_not_numbered() -> None:
    assert files_in_prompt("[start of a.txt]\n3 x\n1 y\n[end of a.txt]\n") == {"a.txt": "3 x\n1 y"}


def test_excerpts_are_ignored() -> None:
    text = "[start of a.py]\n...\n7 x\n8 y\n...\n20 z\n[end of a.py]\n[start of b.py]\n1 x\n[end of b.py]\n"
    assert files_in_prompt(text) == {"b.py": "x"}


def test_a_whole_file_counts_where_excerpts_of_it_come_first() -> None:
    excerpt, whole, other = (f"[start of {name}]\n{body}\n[end of {name}]\n" for name, body in _SHOWN)
    assert list(files_in_prompt(excerpt + other + whole).items()) == [("b", "y"), ("a", "x\nz")]


_SHOWN = (("a", "1 x\n...\n9 z"), ("a", "1 x\n2 z"), ("b", "1 y"))


def test_a_file_without_end_marker_is_ignored() -> None:
    assert files_in_prompt("[start of a.py]\n1 x\n[start of b.py]\n1 y\n[end of b.py]\n") == {"b.py": "y"}


def test_first_occurrence_of_a_file_counts() -> None:
    assert files_in_prompt("[start of a]\n1 x\n[end of a]\n[start of a]\n1 y\n[end of a]\n") == {"a": "x"}


def test_marker_inside_a_file_does_not_end_another_or_start_one() -> None:
    text = "[start of a.py]\n1 [end of b.py]\n2 [start of c.py]\n3 \n[end of a.py]\n"
    assert files_in_prompt(text) == {"a.py": "[end of b.py]\n[start of c.py]\n"}


@pytest.mark.parametrize(
    "text",
    [
        "[start of x]\n" * 20_000,
        "9" * 200_000,
        "[start of x]\n1 a\n[end of x]\n" * 20_000,
        "[start of x]\n[end of y]\n" * 9_000,
    ],
)
def test_time_is_linear_in_the_prompt(text: str) -> None:
    pieces = lines_executed(lambda: files_in_prompt(text[: len(text) // 8]))
    assert lines_executed(lambda: files_in_prompt(text)) < 12 * pieces + 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("System\nUser\nmore", Prompt("System", "User\nmore")),
        ("one line", Prompt(None, "one line")),
        ("", Prompt(None, "")),
        ("\nUser", Prompt(None, "\nUser")),
        ("System\n \n", Prompt(None, "System\n \n")),
    ],
)
def test_prompt_is_split_without_ever_raising(text: str, expected: Prompt) -> None:
    assert split_prompt(text) == expected


def test_a_prompt_is_parsed_once_on_first_access_to_a_file() -> None:
    text = "Fix it.\n" + _prompt({"a.py": "x = 1\n", "b.py": "y\n"}) + "A patch, please."
    made: list[PromptFiles] = []
    assert calls_of(shown_files.__code__, lambda: made.append(PromptFiles(split_prompt(text)))) == 0
    (files,) = made
    assert calls_of(shown_files.__code__, lambda: (files["a.py"], list(files), "c.py" in files, len(files))) == 1
    copies: list[object] = []
    fresh = PromptFiles(split_prompt(text))
    assert calls_of(shown_files.__code__, lambda: copies.append(pickle.loads(pickle.dumps(fresh)))) == 0
    assert calls_of(shown_files.__code__, lambda: copies.index(fresh)) == 0, "they have the same prompt"
    assert copies == [files] == [{"a.py": "x = 1\n", "b.py": "y\n"}]
    assert prose_in_prompt(text).startswith("Fix it.\n")
    assert prose_in_prompt(text).endswith("\nA patch, please.")
    assert "x = 1" not in prose_in_prompt(text)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("one line", "user\nmore"),
        Prompt("two\nlines", "user"),
        Prompt("ends in a break\n", "\nuser"),
        Prompt(" ", "\n\nuser\n"),
        Prompt(None, "first\nsecond"),
    ],
)
def test_a_system_column_restores_the_parts_of_a_prompt(prompt: Prompt) -> None:
    assert prompt_of(prompt.question, {"system": prompt.system or ""}) == prompt


@pytest.mark.parametrize("row", [{}, {"system": "other"}, {"system": "first\nsecond"}, {"system": ["first"]}])
def test_an_unrelated_system_column_is_ignored(row: dict[str, object]) -> None:
    assert prompt_of("first\nsecond", row) == Prompt("first", "second")
