"""Feedback messages: the exact reason, what the file says there, bounded in size, only for answers that need one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import pytest

from swe_infer.errors import ConfigError
from swe_infer.feedback.apply_error import ApplyError
from swe_infer.feedback.base import NoFeedback
from swe_infer.instance_files import InstanceFiles
from swe_infer.patches.pipeline import make_patch
from swe_infer.prompts.edit_formats import INSTRUCTIONS
from swe_infer.prompts.rows import RowFiles
from swe_infer.run_directory.records import Record
from swe_infer.types import EditFormat, FinishReason

FILLER = "".join(f"def helper_{number}(value):\n    return value + {number}\n\n\n" for number in range(200))
AREA = "def area(width, height):\n    factor = 2\n    return width + height\n"
FILES = {"pkg/area.py": FILLER + AREA, "pkg/old.py": 'print "Python 2"\n'}
SEARCH = "pkg/area.py\n<<<<<<< SEARCH\n{old}\n=======\n    return width * height\n>>>>>>> REPLACE\n"


def record_of(
    answer: str,
    form: EditFormat = "unified_diff",
    finish: FinishReason = "stop",
    files: Mapping[str, str] = FILES,
) -> Record:
    made = make_patch(answer, files, form)
    return {
        "instance_id": "a", "sample": 0, "status": "completed", "cost_usd": None, "finish_reason": finish,
        "full_output": answer, "model_patch": made.patch, "patch_status": made.status, "patch_reason": made.reason,
    }  # fmt: skip


def message(answer: str, form: EditFormat = "unified_diff", finish: FinishReason = "stop") -> str | None:
    record = record_of(answer, form, finish)
    reply = ApplyError().message(record, FILES, form)
    assert reply == ApplyError().message(dict(record), dict(FILES), form)  # type: ignore[arg-type]
    assert reply is None or len(reply) < 20_000
    return reply


def diff(old: str, line: int = 803, new: str = "+    return width * height\n") -> str:
    lines = old.splitlines()
    counts = f"-{line},{len(lines)} +{line},{sum(text[0] == ' ' for text in lines) + new.count(chr(10))}"
    return f"--- a/pkg/area.py\n+++ b/pkg/area.py\n@@ {counts} @@\n{old}{new}"


def test_a_hunk_that_matches_nowhere_is_quoted_with_the_lines_of_the_file() -> None:
    reply = message(diff("     factor = 3\n-    return width - height\n", line=20))
    assert reply is not None
    assert "    factor = 3\n    return width - height" in reply, "the lines of the answer"
    assert "    factor = 2\n    return width + height" in reply, "the lines of the file, far from the stated position"
    assert "lines of pkg/area.py, 800 to 804" in reply
    assert reply.rstrip().endswith("exactly as they are in it.")
    reply = message(SEARCH.format(old="def area(width, height):\n    return width + height"), "search_replace")
    assert reply is not None
    assert "Edit 1 of 1" in reply
    assert AREA.rstrip() in reply
    nowhere = message(diff("-@@@ nothing of this kind ###\n-%%% at all &&&\n", line=801))
    assert nowhere is not None
    assert "At the stated position" in nowhere
    assert AREA.rstrip() in nowhere


def test_each_other_reason_is_told_in_one_sentence() -> None:
    for form in get_args(EditFormat):
        reply = message("I am not sure what you mean.", form)
        assert reply is not None
        assert INSTRUCTIONS[form].rstrip() in reply
    cut = message(diff("     factor = 2\n-    return width + height\n")[:-30], finish="length")
    assert cut is not None
    assert cut.startswith("Your answer was cut off at the limit of output tokens.")
    empty = message("", finish="length")
    assert empty is not None
    assert "the answer is empty" in empty
    broken = message(diff("     factor = 2\n-    return width + height\n", 802, "+    return (width * height\n"))
    assert broken is not None
    assert "pkg/area.py is not valid Python: line 803: '(' was never closed" in broken
    assert "803     return (width * height" in broken
    known = InstanceFiles(lambda: list(FILES), lambda: RowFiles(FILES))
    answer = diff("-    factor = 3\n").replace("pkg/area.py", "pkg/areas.py")
    missing = ApplyError().message(record_of(answer, files=known), known, "unified_diff")
    assert missing is not None
    assert "pkg/areas.py: the file does not exist at the base commit" in missing
    assert "The closest path is pkg/area.py." in missing


@pytest.mark.parametrize("finish", ["refusal", "content_filter"])
def test_a_refusal_gets_no_further_turn(finish: FinishReason) -> None:
    assert message("I cannot help with that.", finish=finish) is None


def test_an_answer_that_can_be_used_or_not_checked_gets_no_further_turn() -> None:
    good = diff("     factor = 2\n-    return width + height\n", 802)
    assert record_of(good)["patch_status"] == "applies"
    assert message(good) is None
    unknown = "--- a/pkg/other.py\n+++ b/pkg/other.py\n@@ -1,1 +1,1 @@\n-a = 1\n+a = (\n"
    assert record_of(unknown)["patch_status"] == "unchecked"
    assert message(unknown) is None
    python_2 = '--- a/pkg/old.py\n+++ b/pkg/old.py\n@@ -1,1 +1,1 @@\n-print "Python 2"\n+print "two"\n'
    assert record_of(python_2)["patch_status"] == "applies"
    assert message(python_2) is None, "it did not parse before either"
    assert NoFeedback().message(record_of("nothing"), FILES, None) is None


def test_huge_and_hostile_answers_give_a_bounded_message() -> None:
    lines = "".join(f"-line {number} {'x' * 3000}\n" for number in range(3000))
    assert message(diff(lines, new="+a\n")) is not None
    many = "".join(diff(f"-absent {number}\n", new="+a\n") for number in range(300))
    assert message(many) is not None
    assert message("```\n" * 5000 + diff("-`````` absent\n")) is not None
    surrogate = message(diff("-absent \udc80 line\n"))
    assert surrogate is not None
    surrogate.encode()


def test_turns_are_checked() -> None:
    for turns in (0, 17):
        with pytest.raises(ConfigError, match=r"feedback\.turns"):
            ApplyError(turns=turns)
