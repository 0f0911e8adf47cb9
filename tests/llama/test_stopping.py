"""When an output ends, and its text then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swe_infer.llama.stopping import FENCE_GRACE, REPEAT_PERIOD, REPEAT_WINDOW, StopCriteria, StopParams, repeats
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.types import Prompt

if TYPE_CHECKING:
    from tests.support.checkpoints import make_tokenizer

DIFF = "--- a/q.py\n+++ b/q.py\n@@ -1,2 +1,2 @@\n-a\n+b\n c\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return LlamaTokenizer(directory)


def write(
    tokenizer: LlamaTokenizer, text: str, stop_params: StopParams, prompt: str = "a prompt"
) -> tuple[str, str | None]:
    """Feed ``text`` token by token until a stop; returns the output's text and the reason."""
    criteria = StopCriteria(stop_params, tokenizer, tokenizer.encode(Prompt(None, prompt)))
    for token in tokenizer.encode(Prompt(None, text))[1:]:
        reason = criteria.push(token)
        if reason is not None:
            return criteria.text, reason
    return criteria.text, None


def test_an_end_token_ends_the_output_and_is_not_part_of_it(tokenizer: LlamaTokenizer) -> None:
    criteria = StopCriteria(StopParams(99, frozenset({2, 7})), tokenizer, [1])
    ids = tokenizer.encode(Prompt(None, "def f"))[1:]
    assert [criteria.push(token) for token in ids] == [None] * len(ids)
    assert criteria.push(2) == "stop"
    assert criteria.text == "def f"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("return",), "def f(x):\n    "),
        (("nowhere", "x):"), "def f("),
        (("):\n    ret", "zzz"), "def f(x"),
        (("d",), ""),
    ],
)
def test_a_stop_string_ends_the_output_and_is_not_part_of_it(
    tokenizer: LlamaTokenizer, stop: tuple[str, ...], expected: str
) -> None:
    assert write(tokenizer, "def f(x):\n    return x + 1\n", StopParams(99, stop=stop)) == (expected, "stop")


def test_a_stop_string_in_the_prompt_does_not_count(tokenizer: LlamaTokenizer) -> None:
    stop_params = StopParams(99, stop=("STOP",))
    assert write(tokenizer, "def f", stop_params, prompt="STOP") == ("def f", None)
    assert write(tokenizer, "OP here", stop_params, prompt="a ST") == ("OP here", None)


def test_the_earliest_of_several_stop_strings_cuts(tokenizer: LlamaTokenizer) -> None:
    assert write(tokenizer, "one two three", StopParams(99, stop=("three", "two")))[0] == "one "


def test_a_closed_patch_tag_ends_the_output(tokenizer: LlamaTokenizer) -> None:
    text = f"<patch>\n{DIFF}</patch>\nand much more prose\n" * 2
    written, reason = write(tokenizer, text, StopParams(999))
    assert reason == "stop"
    assert written.startswith(f"<patch>\n{DIFF}</patch>")
    assert len(written) < len(f"<patch>\n{DIFF}</patch>\nand")


def test_a_patch_tag_within_the_content_of_a_diff_is_no_end(tokenizer: LlamaTokenizer) -> None:
    text = "<patch>\n--- a/x.xml\n+++ b/x.xml\n@@ -1 +1,2 @@\n <patch>\n+ </patch>\n-</patch>\n"
    assert write(tokenizer, text, StopParams(999)) == (text, None)


def test_all_fenced_diffs_of_an_answer_are_written(tokenizer: LlamaTokenizer) -> None:
    text = f"First:\n```diff\n{DIFF}```\nThen the other file:\n```diff\n{DIFF}```\n" + "And so on. " * 100
    written, reason = write(tokenizer, text, StopParams(9999))
    assert reason == "stop"
    assert written.count("```diff") == 2
    assert len(tokenizer.encode(Prompt(None, written.rpartition("```")[2]))) <= FENCE_GRACE + 2


def test_a_fence_that_the_prompt_opened_is_closed_by_the_output(tokenizer: LlamaTokenizer) -> None:
    text = f"{DIFF}```\n" + "and more prose\n" * 200
    written, reason = write(tokenizer, text, StopParams(9999, repetition=False, prefill="Here:\n```diff\n"))
    assert reason == "stop"
    assert len(written) < len(text) / 2
    closed = "```py\nx\n```\nHere:"
    assert write(tokenizer, text, StopParams(9999, repetition=False, prefill=closed))[1] is None


def test_a_closed_fence_without_a_diff_is_no_end(tokenizer: LlamaTokenizer) -> None:
    text = "```python\nprint(1)\n```\n" + "The reason is as follows. " * 30
    assert write(tokenizer, text, StopParams(9999, repetition=False)) == (text, None)


def test_a_longer_fence_is_not_closed_by_a_shorter_one(tokenizer: LlamaTokenizer) -> None:
    text = f"````diff\n{DIFF}```\n" + "x y z " * 60
    assert write(tokenizer, text, StopParams(9999, repetition=False))[1] is None


def test_length_counts_generated_tokens_alone(tokenizer: LlamaTokenizer) -> None:
    written, reason = write(tokenizer, "def f(x):\n    return x\n", StopParams(3), prompt="a long prompt " * 50)
    assert reason == "length"
    assert len(tokenizer.encode(Prompt(None, written))) - 1 == 3


def test_a_stop_string_in_the_last_token_is_a_stop_and_no_length(tokenizer: LlamaTokenizer) -> None:
    tokens = len(tokenizer.encode(Prompt(None, "def f"))) - 1
    assert write(tokenizer, "def f", StopParams(tokens, stop=("f",)))[1] == "stop"


@pytest.mark.parametrize("period", [1, 3, 17, REPEAT_PERIOD])
def test_a_loop_is_found(period: int) -> None:
    tokens = [*range(1000, 1100), *(list(range(period)) * REPEAT_WINDOW)]
    assert repeats(tokens[: 100 + REPEAT_WINDOW])
    assert not repeats(tokens[: 99 + REPEAT_WINDOW])


def test_long_periods_and_short_outputs_are_no_loops() -> None:
    assert not repeats([1] * (REPEAT_WINDOW - 1))
    assert not repeats(list(range(REPEAT_PERIOD + 1)) * 9)


def test_a_looping_output_ends_for_repetition_however_repetitive_its_prompt(tokenizer: LlamaTokenizer) -> None:
    written, reason = write(tokenizer, "x, " * 600, StopParams(9999), prompt="x, " * 600)
    assert reason == "repetition"
    assert REPEAT_WINDOW / 2 < len(written) < 600 * 3
    assert write(tokenizer, "x, " * 20, StopParams(9999), prompt="x, " * 600)[1] is None
