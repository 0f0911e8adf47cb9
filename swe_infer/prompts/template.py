"""Renders prompts with the user's template, in Jinja's sandbox.

A template has a block ``user``, and may have a block ``system``; without blocks, the whole template is the user part.
Values of a row are data and never evaluated as a template.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes, pass_context
from jinja2 import Template as JinjaTemplate
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from swe_infer.conf_files import suggestion
from swe_infer.context.base import Row, Shown
from swe_infer.context.windows import Range, excerpt
from swe_infer.errors import ConfigError, DataError
from swe_infer.prompts.edit_formats import INSTRUCTIONS
from swe_infer.prompts.layouts import numbered
from swe_infer.resources import read_named
from swe_infer.text import bounded_json, first_line
from swe_infer.types import EditFormat, Prompt

COLUMNS = (
    "instance_id", "repo", "base_commit", "problem_statement", "created_at", "version", "environment_setup_commit",
)  # fmt: skip
"""Columns that are variables of a template; others are ``row.NAME``."""

GOLD_COLUMNS = frozenset(
    {
        "patch", "test_patch", "FAIL_TO_PASS", "PASS_TO_PASS", "FAIL_TO_FAIL", "PASS_TO_FAIL", "fix_patch",
        "fail_to_pass", "pass_to_pass", "F2P", "P2P", "f2p_tests", "p2p_tests", "s2p_tests", "n2p_tests",
        "fixed_tests", "eval_script", "selected_test_files_to_run", "before_repo_set_cmd", "modified_nodes",
        "pr_description",
    }
)  # fmt: skip
"""Columns with the solution or its tests, by the names of all benchmarks. Templates cannot read them."""

_NAMES = frozenset({"issue", "hints", "files", "readmes", "edit_format", "instructions", "examples", "row", *COLUMNS})
_PARTS = frozenset({"system", "user"})
_OF_ROWS = frozenset(dir(dict))
_FAILURES = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError,
)  # fmt: skip
"""Exceptions that a template's code may raise."""

_MOST_CHARACTERS = 1 << 28
"""Maximum length of a prompt."""
_MOST_PASSES = 5_000_000
"""Maximum passes through the loops of a template, for one prompt."""
_LARGEST_NUMBER = 1_000_000
"""Maximum width or count for the functions that make a long text from a short one."""
_MOST_BITS = 1 << 20
"""Maximum size of a number."""
_WIDE = re.compile(r"[%:.][^%{}]*\d{7}")
_WIDTH_IS_VALUE = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")
_COUNTED, _LIMITS = "loop passes", "limits of a prompt"  # not identifiers, so no template can name them


@dataclass(frozen=True)
class ShownFile:
    """A file as a template sees it."""

    path: str
    whole_text: str
    windows: Sequence[Range] = ()

    @cached_property
    def text(self) -> str:
        """The text, or its parts with ``prompt.lines``."""
        return excerpt(self.whole_text, self.windows, numbers=False) if self.windows else self.whole_text

    @cached_property
    def numbered(self) -> str:
        """The text with a number before each line, as in SWE-bench's forms."""
        return excerpt(self.whole_text, self.windows, numbers=True) if self.windows else numbered(self.whole_text)


def variables(row: Row, shown: Shown, issue: str, hints: str, edit_format: EditFormat) -> dict[str, Any]:
    """The variables of a template, except ``examples``."""
    return {
        **{name: row[name] for name in COLUMNS if row.get(name) is not None},
        "issue": issue,
        "hints": hints,
        "files": [ShownFile(path, text, shown.windows.get(path, ())) for path, text in shown.files.items()],
        "readmes": [ShownFile(path, text) for path, text in shown.readmes.items()],
        "edit_format": edit_format,
        "instructions": INSTRUCTIONS[edit_format],
        "row": {name: value for name, value in row.items() if name not in GOLD_COLUMNS},
    }


class _Limits:
    """Bounds the length of one prompt and the passes through its template's loops."""

    def __init__(self) -> None:
        self._characters = 0
        self._passes = 0

    def checked(self, parts: Iterable[str]) -> Iterator[str]:
        for part in parts:
            self._characters += len(part)
            if self._characters > _MOST_CHARACTERS:
                raise SecurityError(f"the prompt is longer than {_MOST_CHARACTERS:,} characters")
            yield part

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._passes += 1
            if self._passes > _MOST_PASSES:
                raise SecurityError(f"more than {_MOST_PASSES:,} passes through loops")
            yield item


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    limits: _Limits = context.parent[_LIMITS]
    return limits.counted(items)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without random values, and with bounds on memory and time.

    Random values would change the prompts of a run when it is resumed.
    """

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
        del self.globals["lipsum"], self.filters["random"]
        for name in ("batch", "center", "indent", "slice"):
            self.filters[name] = _bounded(self.filters[name], _check_counts)
        self.filters["format"] = _bounded(self.filters["format"], _check_format)
        self.filters[_COUNTED] = _counted

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            _check_format(left, *(right if isinstance(right, tuple) else [right]))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MOST_BITS:
                raise SecurityError(f"a number of more than {_MOST_BITS:,} bits")
        elif operator == "*":
            for items, count in ((left, right), (right, left)):
                if isinstance(items, Sized) and isinstance(count, int) and len(items) * count > _MOST_CHARACTERS:
                    raise SecurityError(f"a text or list of {len(items) * count:,} items")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *arguments: Any, **named: Any) -> Any:
        text = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # the sandbox wraps str.format
        if isinstance(text, str):
            if "format" in function.__name__:
                _check_format(text, *arguments, *named.values())
            else:
                _check_counts(*arguments, *named.values())
        return super().call(context, function, *arguments, **named)


def _bounded(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*arguments: Any, **named: Any) -> Any:
        check(*arguments, *named.values())
        return function(*arguments, **named)

    return bounded


def _check_counts(*values: Any) -> None:
    """Raises SecurityError for a width or count that would make a huge text."""
    for value in values:
        if isinstance(value, int | float) and abs(value) > _LARGEST_NUMBER:
            raise SecurityError(f"{value:,} is too large: at most {_LARGEST_NUMBER:,}")


def _check_format(text: Any, *values: Any) -> None:
    """As :func:`_check_counts`, for a format string, which may contain widths or take them from the values."""
    if isinstance(text, str) and _WIDE.search(text):
        raise SecurityError("a format that is too wide")
    if isinstance(text, str) and _WIDTH_IS_VALUE.search(text):
        _check_counts(*values)


class _AnyValue(str):
    """A made-up value of a column, which may be of any type."""

    def __getattr__(self, name: str) -> _AnyValue:
        return self

    def __getitem__(self, key: object) -> _AnyValue:
        return self

    def __call__(self, *arguments: object, **named: object) -> _AnyValue:
        return self

    def __iter__(self) -> Iterator[_AnyValue]:
        return iter((self,))

    __reversed__ = __iter__


class _AnyRow(dict[str, str]):
    """A made-up row for the trial rendering, which has every column."""

    def __missing__(self, name: str) -> str:
        return _AnyValue("text")


class Template:
    """A template, compiled and tried on a made-up row.

    Args:
        path: the value of ``prompt.template``. examples: the value of ``prompt.examples``.

    Raises:
        ConfigError: one line with the file, the line and what is wrong there.
    """

    def __init__(self, path: str, examples: str | None = None) -> None:
        self._label = f"prompt.template={path}"
        content = read_named(path, "prompt.template")
        digest = hashlib.blake2b(content, digest_size=8)
        self._examples: list[Any] = []
        if examples is not None:
            few = read_named(examples, "prompt.examples")
            digest.update(b"\0" + few)
            self._examples = list(_examples(few, f"prompt.examples={examples}"))
        self.digest = digest.hexdigest()
        try:
            source = content.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._label} is not UTF-8 (byte {error.start})") from None
        environment = _Environment()
        try:
            tree = environment.parse(source)
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
            self.names = frozenset(find_undeclared_variables(tree))
            self._check(tree)
            code = environment.compile(tree, filename=self._label)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{self._label}, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise ConfigError(f"{self._label} is nested too deep") from None
        self.required_columns = self._required_columns(tree)
        self._uses_rows = "row" in self.names
        self._has_conditions = any(True for _ in tree.find_all((nodes.If, nodes.CondExpr, nodes.For)))
        self._template: JinjaTemplate = JinjaTemplate.from_code(environment, code, environment.make_globals(None))
        self._try()

    def _check(self, tree: nodes.Template) -> None:
        for other in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
            raise ConfigError(f"{self._label}, line {other.lineno}: a template cannot include or extend another file")
        for name in tree.find_all(nodes.Name):
            if name.name in self.names and name.name not in _NAMES:
                hint = suggestion(name.name, _NAMES)
                raise ConfigError(f"{self._label}, line {name.lineno}: no such variable {name.name}{hint}")
        for node, column in _row_columns(tree):
            if column in GOLD_COLUMNS:
                raise ConfigError(f"{self._label}, line {node.lineno}: row.{column} would give the solution away")
        blocks = list(tree.find_all(nodes.Block))
        for block in blocks:
            if block.name not in _PARTS:
                raise ConfigError(
                    f"{self._label}, line {block.lineno}: no such block {block.name}; the blocks are system and user"
                )
        if not blocks:
            return
        if all(block.name != "user" for block in blocks):
            raise ConfigError(f"{self._label} has a block system, but no block user")
        for stray in tree.body:
            if not isinstance(stray, nodes.Block) and not _is_blank(stray):
                where = f"{self._label}, line {stray.lineno}"
                raise ConfigError(f"{where}: text outside the blocks system and user is in no prompt")

    def _required_columns(self, tree: nodes.Template) -> dict[str, str]:
        """Columns of the dataset that the template uses, by name, with the place of each for messages.

        Columns for whose absence the template provides (``is defined``, ``default``, ``"x" in row``) are left out.
        """
        optional = {column for column in map(_optional_column, tree.find_all(_GUARDS)) if column is not None}
        found = {column: f"line {node.lineno}: row.{column}" for node, column in _row_columns(tree)}
        for name in tree.find_all(nodes.Name):
            if name.name in COLUMNS and name.name in self.names:
                found.setdefault(name.name, f"line {name.lineno}: {name.name}")
            if name.name == "issue" and "issue" in self.names:
                found.setdefault("problem_statement", f"line {name.lineno}: issue")
        return {column: f"{self._label}, {place}" for column, place in found.items() if column not in optional}

    def _try(self) -> None:
        """Render a made-up row, to find errors that only occur at run time: an unknown attribute of a file, or a call
        that the sandbox refuses.
        """
        row = _AnyRow(dict.fromkeys(COLUMNS, "text"))
        shown = Shown({"pkg/a.py": "a\n"}, {"README.md": "a\n"})
        given = variables(row, shown, "text", "text", "unified_diff") | {"row": row}
        try:
            parts = self._parts(given)
        except _FAILURES as error:
            if isinstance(error, TemplateError) or not self._uses_rows:
                raise ConfigError(self._message(error)) from None
            return
        if not parts["user"].strip() and not self._has_conditions:
            raise ConfigError(f"{self._label}: the prompt is blank")

    def render(self, values: Mapping[str, Any]) -> Prompt:
        """The prompt that the template makes of ``values``, see :func:`variables`.

        Raises:
            DataError: the template cannot be rendered for this row; the message names the line.
        """
        try:
            parts = self._parts(values)
        except _FAILURES as error:
            raise DataError(self._message(error)) from None
        return Prompt(parts.get("system") or None, parts["user"])

    def _parts(self, values: Mapping[str, Any]) -> dict[str, str]:
        limits = _Limits()
        context = self._template.new_context({**values, "examples": self._examples, _LIMITS: limits})
        blocks = self._template.blocks
        if not blocks:
            return {"user": self._joined(self._template.root_render_func, context, limits)}
        return {name: self._joined(block, context, limits).strip("\n") for name, block in blocks.items()}

    def _joined(self, function: Callable[[Any], Iterator[str]], context: Any, limits: _Limits) -> str:
        try:
            return "".join(limits.checked(function(context)))
        except _FAILURES:
            return self._template.environment.handle_exception()  # with the template's line numbers

    def _message(self, error: BaseException) -> str:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self._label]
        place = f", line {lines[-1]}" if lines else ""
        return f"{self._label}{place}: {first_line(error)}"


def _is_blank(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Output) and all(
        isinstance(part, nodes.TemplateData) and not part.data.strip() for part in node.nodes
    )


def _row_columns(tree: nodes.Template) -> Iterator[tuple[nodes.Node, str]]:
    """The uses of columns as ``row.NAME`` or ``row["NAME"]``; none if the template assigns ``row`` itself."""
    if any(name.name == "row" and name.ctx != "load" for name in tree.find_all(nodes.Name)):
        return
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if (name := _row_column(node)) is not None:
            yield node, name


def _row_column(node: nodes.Node) -> str | None:
    """The column of ``row.NAME`` or ``row["NAME"]``; None for another expression."""
    if not (isinstance(node, nodes.Getattr | nodes.Getitem) and isinstance(node.node, nodes.Name)):
        return None
    if node.node.name != "row":
        return None
    if isinstance(node, nodes.Getattr):
        return None if node.attr in _OF_ROWS else node.attr
    return _constant(node.arg)


_GUARDS = (nodes.Test, nodes.Filter, nodes.Compare)


def _optional_column(node: nodes.Node) -> str | None:
    """The column for whose absence an expression provides, such as ``row.x is defined`` or ``"x" in row``."""
    if isinstance(node, nodes.Compare):
        of_row = any(isinstance(operand.expr, nodes.Name) and operand.expr.name == "row" for operand in node.ops)
        return _constant(node.expr) if of_row else None
    if isinstance(node, nodes.Test | nodes.Filter) and node.name in ("defined", "undefined", "default", "d"):
        subject = node.node
        if isinstance(subject, nodes.Name):
            return subject.name
        return None if subject is None else _row_column(subject)
    return None


def _constant(node: nodes.Node) -> str | None:
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None


def _examples(content: bytes, label: str) -> Iterator[Any]:
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                yield bounded_json(line)
            except (ValueError, RecursionError):
                raise ConfigError(f"{label}, line {number}: must be a JSON value") from None
