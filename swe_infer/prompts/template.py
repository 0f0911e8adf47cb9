"""Renders prompts with the user's template, in Jinja's sandbox.

A template has a block ``user``, and may have a block ``system``; without blocks, the whole template is the user part.
Values of a row are data and never evaluated as a template.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2 import Template as JinjaTemplate
from jinja2.exceptions import TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from swe_infer.conf_files import suggestion
from swe_infer.context.base import Row, Shown
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

GOLD_COLUMNS = frozenset({"patch", "test_patch", "FAIL_TO_PASS", "PASS_TO_PASS"})
"""Columns that contain the solution. Templates cannot read them."""

_NAMES = frozenset({"issue", "hints", "files", "readmes", "edit_format", "instructions", "examples", "row", *COLUMNS})
_PARTS = frozenset({"system", "user"})
_OF_ROWS = frozenset(dir(dict))
_FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""Exceptions that a template's code may raise."""


@dataclass(frozen=True)
class ShownFile:
    """A file as a template sees it."""

    path: str
    text: str

    @cached_property
    def numbered(self) -> str:
        """The text with a number before each line, as in SWE-bench's forms."""
        return numbered(self.text)


def variables(row: Row, shown: Shown, issue: str, hints: str, edit_format: EditFormat) -> dict[str, Any]:
    """The variables of a template, except ``examples``."""
    return {
        **{name: row[name] for name in COLUMNS if row.get(name) is not None},
        "issue": issue,
        "hints": hints,
        "files": [ShownFile(path, text) for path, text in shown.files.items()],
        "readmes": [ShownFile(path, text) for path, text in shown.readmes.items()],
        "edit_format": edit_format,
        "instructions": INSTRUCTIONS[edit_format],
        "row": {name: value for name, value in row.items() if name not in GOLD_COLUMNS},
    }


class _AnyRow(dict[str, str]):
    """A made-up row for the trial rendering, which has every column."""

    def __missing__(self, name: str) -> str:
        return ""


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
            source = content.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._label} is not UTF-8 (byte {error.start})") from None
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        try:
            tree = environment.parse(source)
            self.names = frozenset(find_undeclared_variables(tree))
            self._check(tree)
            code = environment.compile(tree, filename=self._label)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{self._label}, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise ConfigError(f"{self._label} is nested too deep") from None
        self.columns = frozenset(_columns_of(tree))
        self._template: JinjaTemplate = JinjaTemplate.from_code(environment, code, environment.make_globals(None))
        self._try()

    def _check(self, tree: nodes.Template) -> None:
        for other in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
            raise ConfigError(f"{self._label}, line {other.lineno}: a template cannot include or extend another file")
        for name in tree.find_all(nodes.Name):
            if name.name in self.names and name.name not in _NAMES:
                hint = suggestion(name.name, _NAMES)
                raise ConfigError(f"{self._label}, line {name.lineno}: no such variable {name.name}{hint}")
        for column, line in _row_columns(tree):
            if column in GOLD_COLUMNS:
                raise ConfigError(f"{self._label}, line {line}: row.{column} would give the solution away")
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

    def _try(self) -> None:
        """Render a made-up row, to find errors that only occur at run time: an unknown attribute of a file, or a call
        that the sandbox refuses.
        """
        row = _AnyRow(dict.fromkeys(COLUMNS, "text"))
        shown = Shown({"pkg/a.py": "a\n"}, {"README.md": "a\n"})
        given = variables(row, shown, "text", "text", "unified_diff") | {"row": row}
        try:
            self._parts(given)
        except _FAILURES as error:
            if isinstance(error, TemplateError) or not self.columns:
                raise ConfigError(self._message(error)) from None

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
        context = self._template.new_context({**values, "examples": self._examples})
        blocks = self._template.blocks
        if not blocks:
            return {"user": self._joined(self._template.root_render_func, context)}
        return {name: self._joined(block, context).strip("\n") for name, block in blocks.items()}

    def _joined(self, function: Callable[[Any], Iterator[str]], context: Any) -> str:
        try:
            return "".join(function(context))
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


def _columns_of(tree: nodes.Template) -> Iterator[str]:
    return (column for column, _ in _row_columns(tree))


def _row_columns(tree: nodes.Template) -> Iterator[tuple[str, int]]:
    """The columns used as ``row.NAME`` or ``row["NAME"]``, with their lines."""
    found: list[nodes.Getattr | nodes.Getitem] = [*tree.find_all(nodes.Getattr), *tree.find_all(nodes.Getitem)]
    for node in found:
        if isinstance(node.node, nodes.Name) and node.node.name == "row":
            constant = node.arg if isinstance(node, nodes.Getitem) else nodes.Const(node.attr)
            name = constant.value if isinstance(constant, nodes.Const) else None
            if isinstance(name, str) and name not in _OF_ROWS:
                yield name, node.lineno


def _examples(content: bytes, label: str) -> Iterator[Any]:
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                yield bounded_json(line)
            except (ValueError, RecursionError):
                raise ConfigError(f"{label}, line {number}: must be a JSON value") from None
