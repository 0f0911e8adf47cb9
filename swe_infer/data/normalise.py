"""Rows of published benchmarks with the columns of SWE-bench.

Publishers write the same things under other names and in other types: test lists as lists, JSON, Python literals or
mappings, dates as integers or times, the base commit inside a mapping, the issue in several columns.
:class:`Normaliser` has one rule for each of these. ``docs/datasets.md`` lists what is odd about each benchmark.
"""

from __future__ import annotations

import ast
import datetime
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swe_infer.errors import DataError
from swe_infer.harnesses import BenchmarkName, pull_request_of
from swe_infer.instance_files import BRANCH_COLUMN
from swe_infer.patches.diff import PatchError, reversed_patch
from swe_infer.text import bounded_json

Row = Mapping[str, Any]

MARK = "benchmark"
"""The column that a normalised row has in addition: the benchmark. Such a row is not changed again."""

_NAMES = {
    "fail_to_pass": "FAIL_TO_PASS", "F2P": "FAIL_TO_PASS", "f2p": "FAIL_TO_PASS", "f2p_tests": "FAIL_TO_PASS",
    "pass_to_pass": "PASS_TO_PASS", "P2P": "PASS_TO_PASS", "p2p": "PASS_TO_PASS", "p2p_tests": "PASS_TO_PASS",
    "fix_patch": "patch", "parent_commit": "base_commit", "repo_name": "repo", "hints": "hints_text",
    "repo_language": "language", "lang": "language",
}  # fmt: skip
"""SWE-bench's name of a column by the publisher's."""
_TEST_LISTS = frozenset({"FAIL_TO_PASS", "PASS_TO_PASS", "FAIL_TO_FAIL", "PASS_TO_FAIL"})
_TEXTS = frozenset({"repo", "base_commit", "patch", "test_patch", "problem_statement"})
_PULL_REQUEST = ("org", "repo", "number")
_OF_PULL_REQUESTS = frozenset(
    {
        "org", "number", "base", "title", "body", "resolved_issues", "s2p_tests", "n2p_tests", "fixed_tests",
        "run_result", "test_patch_result", "fix_patch_result",
    }
)  # fmt: skip
"""Columns of Multi-SWE-bench that are left out: the others state them, or they are logs of tests."""
_INDEXED = (
    "instance_id", *_PULL_REQUEST, "problem_statement", "requirements", "interface", "title", "body",
    "resolved_issues", MARK,
)  # fmt: skip

_PRO = "swebench_pro"
_MULTI = "multi_swe_bench"
_SMITH = "swe_smith"


class RowFault(Exception):
    """A row that cannot be normalised. ``str(error)`` names the column, if it is known, and what is wrong, in one
    line."""

    def __init__(self, column: str | None, why: str) -> None:
        super().__init__(f"the row {why}" if column is None else f"column {column!r} {why}")


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Converts the rows of a benchmark.

    Args:
        interface: append the row's ``interface`` to the issue; None: as the benchmark's own code does.
        language: of rows that state none.
    """

    benchmark: BenchmarkName
    interface: bool | None = None
    language: str | None = None

    @property
    def indexed(self) -> Collection[str]:
        """The columns that :meth:`identity` and :meth:`statement` read."""
        return _INDEXED

    def columns(self, found: Collection[str], label: str) -> Collection[str]:
        """The names of the normalised columns.

        Args:
            found: the publisher's columns.
            label: the dataset's name in messages.

        Raises:
            DataError: the rows are not of this benchmark.
        """
        names = {_NAMES.get(name, name) for name in found} | {MARK}
        if "instance_id" in found:
            missing = [] if "problem_statement" in found or self.benchmark == _MULTI else ["problem_statement"]
        else:
            wanted = _PULL_REQUEST if self.benchmark == _MULTI else ("instance_id",)
            missing = [name for name in wanted if name not in found]
        if missing:
            raise DataError(
                f"{label} has no column {missing[0]!r}, so its rows are not of dataset.benchmark={self.benchmark}; "
                f"it has {', '.join(sorted(found))}"
            )
        if self.benchmark == _MULTI:
            names = (names - _OF_PULL_REQUESTS) | {"instance_id", "base_commit", "version", "problem_statement"}
        if self.benchmark == _SMITH and "base_commit" not in names:
            names.add(BRANCH_COLUMN)
        return names if self.language is None else names | {"language"}

    def identity(self, row: Row) -> object:
        """The ``instance_id`` of a row; anything but a string if it has none."""
        if self.benchmark == _MULTI and not any(_is_null(row.get(name)) for name in _PULL_REQUEST):
            org, repo, number = (row[name] for name in _PULL_REQUEST)
            number = int(number) if isinstance(number, float) and number.is_integer() else number
            return f"{org}__{str(repo).rpartition('/')[2]}-{number}"
        return row.get("instance_id")

    def statement(self, row: Row) -> str:
        """The issue of a row; empty if it has none."""
        if row.get(MARK) != self.benchmark and self.benchmark == _MULTI and "problem_statement" not in row:
            return _issue_of_pull_request(row)
        text = row.get("problem_statement")
        if not isinstance(text, str) or not text.strip():
            return ""
        if row.get(MARK) == self.benchmark:
            return text
        shows = self.benchmark == _PRO if self.interface is None else self.interface
        parts = [text]
        if self.benchmark == _PRO:
            parts.append(f"Requirements:\n{_text_or_empty(row, 'requirements')}")
        if shows and (self.benchmark == _PRO or _text_or_empty(row, "interface").strip()):
            parts.append(f"New interfaces introduced:\n{_text_or_empty(row, 'interface')}")
        return "\n\n".join(parts)

    def normalised(self, row: Row) -> dict[str, Any]:
        """The row with SWE-bench's columns, without nulls.

        Raises:
            RowFault: a column has a value of another kind.
        """
        if row.get(MARK) == self.benchmark:
            return {name: value for name, value in row.items() if not _is_null(value)}
        found: dict[str, Any] = {}
        for name, value in row.items():
            known = _NAMES.get(name, name)
            if _is_null(value) or (known != name and not _is_null(row.get(known))):
                continue
            found[known] = _converted(name, known, value)
        if self.benchmark == _MULTI:
            found = self._of_pull_request(row, found)
        found["instance_id"] = self.identity(row)
        found["problem_statement"] = self.statement(row)
        if self.benchmark == _SMITH:
            _undo_bug(found)
        if self.language is not None:
            found.setdefault("language", self.language)
        return {**found, MARK: self.benchmark}

    def _of_pull_request(self, row: Row, found: Mapping[str, Any]) -> dict[str, Any]:
        instance_id = self.identity(row)
        stated = pull_request_of(instance_id) if isinstance(instance_id, str) else None
        org, repo = (row.get("org"), str(row.get("repo")).rpartition("/")[2])
        if stated is None or (not _is_null(org) and stated[:2] != (org, repo)):
            raise RowFault("instance_id", f"is {str(instance_id)[:60]!r}, not ORG__REPO-NUMBER of a pull request")
        kept = {name: value for name, value in found.items() if name not in _OF_PULL_REQUESTS}
        if not _is_null(row.get("org")) and "/" not in str(row.get("repo")):
            kept["repo"] = f"{row['org']}/{row.get('repo')}"
        if "base_commit" not in kept:
            base = _json_of("base", row.get("base"))
            sha = base.get("sha") if isinstance(base, Mapping) else None
            if not isinstance(sha, str):
                raise RowFault("base", "is not a mapping with the commit as `sha`")
            kept["base_commit"] = sha
        kept.setdefault("version", str(stated[2]))
        return kept


def _is_null(value: object) -> bool:
    """Whether a row has no value: pandas writes NaN for null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _converted(name: str, known: str, value: Any) -> Any:
    """The value of the publisher's column ``name`` for SWE-bench's column ``known``."""
    if known in _TEST_LISTS:
        return list(_tests(name, value))
    if known == "created_at":
        return _iso_date(name, value)
    if known == "version":
        return value if isinstance(value, str) else str(value)
    if known == "image_assets":
        return _json_of(name, value)
    if known in _TEXTS and not isinstance(value, str):
        raise RowFault(name, f"is of type {type(value).__name__}, not a string")
    return value


def _tests(column: str, value: Any) -> Iterator[str]:
    """The names of tests in a list, a mapping, JSON or a Python literal.

    Arrow gives a mapping the keys of every row, with nulls for those of other rows, and a list of structs may be
    stored by column.
    """
    value = _literal(column, value)
    if isinstance(value, Mapping):
        names = value.get("name")
        value = names if isinstance(names, list) else [name for name, result in value.items() if result is not None]
    if isinstance(value, set):
        value = sorted(value, key=str)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowFault(column, f"is of type {type(value).__name__}, not a list of tests")
    for test in value:
        name = test.get("name") if isinstance(test, Mapping) else test
        if not isinstance(name, str):
            raise RowFault(column, f"contains {str(test)[:60]!r}, which is not the name of a test")
        yield name


def _literal(column: str, value: Any) -> Any:
    """The value that a string states as JSON or as a Python literal."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return []
    try:
        return bounded_json(value)
    except (ValueError, RecursionError):
        pass  # a Python literal, as some benchmarks have
    text = value.strip()
    try:
        strings = _strings(text)
        if strings is None and len(text) > _LONGEST_LITERAL:
            raise RowFault(column, f"is longer than {_LONGEST_LITERAL:,} characters and no list of strings")
        return ast.literal_eval(text) if strings is None else strings
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise RowFault(column, f"is neither JSON nor a Python literal: {value[:60]!r}") from None


_LONGEST_LITERAL = 500_000
"""Characters. The syntax tree of a literal needs up to 500 bytes for each."""
_STRING = re.compile(r"""\s*('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")\s*(?:,|$)""", re.DOTALL)


def _strings(text: str) -> list[str] | None:
    """The strings of a list, tuple or set of string literals, without a syntax tree; None for another text."""
    if text[:1] + text[-1:] not in ("[]", "()", "{}"):
        return None
    body, at = text[1:-1].rstrip(), 0
    found: list[str] = []
    while at < len(body):
        match = _STRING.match(body, at)
        if match is None:
            return None
        literal = match[1]
        found.append(ast.literal_eval(literal) if "\\" in literal else literal[1:-1])
        at = match.end()
    return found


def _json_of(column: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return bounded_json(value or "{}")
    except (ValueError, RecursionError):
        raise RowFault(column, f"is not JSON: {value[:60]!r}") from None


_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (math.inf, 1e9))
"""The largest number of seconds, milliseconds, microseconds and nanoseconds since 1970, and the divisor."""


def _iso_date(column: str, value: Any) -> str:
    """A time as ISO 8601 in UTC. Text that is no time stays as it is: nothing depends on it."""
    moment: object = value
    if isinstance(value, str):
        try:
            is_number = re.fullmatch(r"[0-9]{9,19}", value)  # 20240506 is a date
            moment = int(value) if is_number else datetime.datetime.fromisoformat(value)
        except ValueError:
            return value
    try:
        if isinstance(moment, int | float) and not isinstance(moment, bool):
            divisor = next(divisor for most, divisor in _UNITS if abs(moment) < most)
            moment = datetime.datetime.fromtimestamp(moment / divisor, datetime.UTC)
        if isinstance(moment, datetime.date) and not isinstance(moment, datetime.datetime):
            moment = datetime.datetime.combine(moment, datetime.time())
        if isinstance(moment, datetime.datetime):
            aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
            return aware.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (StopIteration, ValueError, OverflowError, OSError):
        pass  # no known form, or beyond Python's range
    raise RowFault(column, f"is not a time: {str(value)[:60]!r}")


def _issue_of_pull_request(row: Row) -> str:
    """Title and body of the first issue that a pull request resolves, or of the pull request."""
    issues: Any = row.get("resolved_issues")
    if isinstance(issues, str):
        try:
            issues = bounded_json(issues)
        except (ValueError, RecursionError):
            issues = None
    if isinstance(issues, Mapping) and all(isinstance(column, list) for column in issues.values()):
        # a list of structs, by column
        issues = [dict(zip(issues, values, strict=False)) for values in zip(*issues.values(), strict=False)]
    first = issues[0] if isinstance(issues, Sequence) and issues and isinstance(issues[0], Mapping) else {}
    texts = [
        "\n".join(filter(None, (_text_or_empty(one, "title"), _text_or_empty(one, "body")))) for one in (first, row)
    ]
    return next(filter(str.strip, texts), "")


def _text_or_empty(row: Row, column: str) -> str:
    text = row.get(column)
    return text if isinstance(text, str) else ""


def _undo_bug(row: dict[str, Any]) -> None:
    """SWE-smith: ``patch`` introduces the bug, so the gold patch is its reverse. The base is a branch."""
    if isinstance(row.get("patch"), str) and row["patch"].strip():
        try:
            row["patch"] = reversed_patch(row["patch"])
        except PatchError as error:
            raise RowFault("patch", f"cannot be reversed: {error}") from None
    if not row.get("base_commit"):
        row[BRANCH_COLUMN] = row["instance_id"]
