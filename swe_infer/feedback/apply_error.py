"""``feedback=apply_error``: a further turn where a patch does not apply or does not parse, or where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from swe_infer.errors import ConfigError
from swe_infer.feedback.message import request_again
from swe_infer.feedback.mismatch import describe_mismatches
from swe_infer.feedback.syntax import SyntaxProblem, find_syntax_problem
from swe_infer.options import Option
from swe_infer.run_directory.records import Record
from swe_infer.types import EditFormat

_MOST_TURNS = 16
_CHECKED = frozenset({"none", "does_not_apply", "applies", "repaired"})
_DECLINED = frozenset({"refusal", "content_filter"})


@dataclass(frozen=True, kw_only=True)
class ApplyError:
    """Tells the model the exact reason why its patch cannot be used.

    An answer gets a further turn if it contains no patch, if its patch does not apply, or if a Python file does not
    parse after the patch although it did before. An answer that the model or the provider refused gets none.

    Raises:
        ConfigError: ``turns`` is out of range.
    """

    name: ClassVar[str] = "apply_error"

    turns: Annotated[
        int,
        Option("Further turns of each sample, at most; a finished run pays for the new turns only.", "scope"),
    ] = 1

    def __post_init__(self) -> None:
        if not 1 <= self.turns <= _MOST_TURNS:
            raise ConfigError(
                f"feedback.turns={self.turns}: must be between 1 and {_MOST_TURNS}; feedback=none sends no turn"
            )

    def may_need_turn(self, patch_status: str | None) -> bool:
        """See :meth:`swe_infer.feedback.base.Feedback.may_need_turn`."""
        return patch_status in _CHECKED

    def message(self, record: Record, files: Mapping[str, str], edit_format: EditFormat | None) -> str | None:
        """See :meth:`swe_infer.feedback.base.Feedback.message`."""
        status = record.get("patch_status")
        if status not in _CHECKED or record.get("finish_reason") in _DECLINED:
            return None
        if status in ("applies", "repaired"):
            problem = find_syntax_problem(record.get("model_patch") or "", files)
            return None if problem is None else request_again(_parse_error(problem), edit_format)
        parts = [_STOPPED[reason]] if (reason := record.get("finish_reason") or "") in _STOPPED else []
        why = _first_line(record.get("patch_reason"))
        if status == "does_not_apply":
            parts.append(f"Your patch does not apply: {why or 'git apply refuses it'}.")
        else:
            parts.append(f"No patch could be made from your answer: {why or 'it contains none'}.")
        mismatches = describe_mismatches(record, files, edit_format)
        return request_again("\n\n".join([*parts, *mismatches]), edit_format, explain_form=not mismatches)


_STOPPED = {
    "length": "Your answer was cut off at the limit of output tokens. Give a shorter answer: the patch alone, "
    "without an explanation.",
    "repetition": "Your answer was stopped because it repeated itself.",
}
_LONGEST_REASON = 500


def _first_line(reason: str | None) -> str:
    line = (reason or "").strip().partition("\n")[0]
    return (line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + "…").rstrip(".")


def _parse_error(problem: SyntaxProblem) -> str:
    return (
        f"Your patch applies, but then {problem.path} is not valid Python: line {problem.line}: {problem.message}. "
        f"After your patch, these lines are:\n\n{problem.excerpt}"
    )
