"""The ``prompt`` group: renders a row and its files as a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from swe_infer.context.base import Row, Shown
from swe_infer.context.gold import gold_changes
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.prompt_format import prompt_of, split_prompt
from swe_infer.prompts import layouts
from swe_infer.types import EditFormat, PathText, Prompt

if TYPE_CHECKING:
    from swe_infer.prompts.template import Template

Style = Literal["given", "style2", "style3", "full_file", "edits_only", "plain"]

_LAYOUTS: Mapping[Style, Callable[[Sequence[str], str, EditFormat], str]] = {
    "style2": layouts.style_2,
    "style3": layouts.style_3,
    "full_file": layouts.full_file,
    "edits_only": layouts.style_2,
    "plain": layouts.plain,
}
_WITHOUT_NUMBERS = frozenset[Style]({"full_file", "plain"})
_OUR_OWN = frozenset[Style]({"plain"})

TEXT_COLUMN = "text"
ISSUE_COLUMN = "problem_statement"
HINTS_COLUMN = "hints_text"


@dataclass(frozen=True, kw_only=True)
class PromptRenderer:
    """How a prompt is written: in a style of this package, or with the user's template."""

    style: Annotated[
        Style, Option("given: the row's own text; four of SWE-bench's; plain: whole files without numbers.", "answer")
    ]
    edit_format: Annotated[
        EditFormat,
        Option("The form of the answer that the prompt requests; it is also tried first when parsing.", "answer"),
    ] = "unified_diff"
    template: Annotated[
        PathText | None,
        Option("A Jinja template instead of the style; its content is part of the identity.", "address"),
    ] = None
    examples: Annotated[
        PathText | None,
        Option(
            "JSON lines with few-shot `examples` for a template; the content is part of the identity.",
            "address",
        ),
    ] = None
    system: Annotated[
        str | None, Option("The system part, instead of the style's or template's; empty: none.", "answer")
    ] = None
    hints: Annotated[
        bool | None, Option("Show hints_text after the issue; null: only if a template uses `hints`.", "answer")
    ] = None
    lines: Annotated[
        int | None,
        Option("Lines before and after each place that the context names; null: whole files.", "answer"),
    ] = None
    prefill: Annotated[str | None, Option("The beginning of the answer, if the provider supports it.", "answer")] = (
        None
    )

    def __post_init__(self) -> None:
        if self.prefill is not None and not self.prefill.strip():
            raise ConfigError("prompt.prefill is blank: give the beginning of the answer, or null")
        if self.lines is not None:
            self._check_lines(self.lines)
        template = self._template
        if template is None:
            if self.examples is not None:
                raise ConfigError("prompt.examples is for templates: set prompt.template, or leave it out")
            if self.hints and self.style == "given":
                raise ConfigError("prompt.hints=true: prompt=given uses the row's own text; choose another prompt")
            return
        for name, value in (("hints", self.hints), ("examples", self.examples is not None)):
            if value and name not in template.names:
                raise ConfigError(f"prompt.{name} is set, but prompt.template={self.template} does not name {name}")
        if "examples" in template.names and self.examples is None:
            raise ConfigError(f"prompt.template={self.template} names examples: set prompt.examples to their file")

    def _check_lines(self, lines: int) -> None:
        """Raises ConfigError if this prompt cannot show parts of files."""
        if lines < 0:
            raise ConfigError(f"prompt.lines={lines}: must be at least 0, or null for whole files")
        if self.takes_text or self.style == "edits_only":
            raise ConfigError(
                f"prompt.lines={lines}: prompt={self.style} shows no whole files; choose another prompt"
            )
        if self.edit_format == "whole_file":
            raise ConfigError(
                f"prompt.lines={lines}: prompt.edit_format=whole_file requests whole files, of which the prompt "
                "would show parts; choose another form"
            )

    @cached_property
    def _template(self) -> Template | None:
        if self.template is None:
            return None
        from swe_infer.prompts.template import Template  # Jinja is only loaded for templates

        return Template(self.template, self.examples)

    @property
    def rules(self) -> str:
        """Name and version of the style, or the digest of the template. Part of a run's identity."""
        return f"{self.style}-1" if self._template is None else f"template-1-{self._template.digest}"

    @property
    def takes_text(self) -> bool:
        """Whether the prompt is the row's own text."""
        return self.style == "given" and self.template is None

    @property
    def is_plain(self) -> bool:
        """Whether the prompt is the row's own text without additions."""
        return self.takes_text and self.system is None and self.prefill is None

    @property
    def required_columns(self) -> Mapping[str, str]:
        """Columns without which no row has a prompt: name -> the option that needs it, for messages."""
        hints = {HINTS_COLUMN: "prompt.hints=true"} if self.hints else {}
        if self._template is not None:
            return self._template.required_columns | hints
        return {} if self.style == "given" else {ISSUE_COLUMN: f"prompt.style={self.style}"} | hints

    def check_context(self, *, gives_text: bool, context: str, names_lines: bool = False) -> None:
        """Raise ConfigError if this prompt cannot be combined with the context named ``context``.

        Args:
            gives_text: the context uses the row's own text.
            names_lines: the context names places in files.
        """
        if self.takes_text and not gives_text:
            raise ConfigError(
                f"context={context} chooses files, but prompt=given uses the row's own text: choose a prompt that "
                "shows them, such as prompt=style3"
            )
        if self.lines is not None and not names_lines:
            raise ConfigError(
                f"prompt.lines={self.lines}: context={context} names no places in files; choose context=bm25, "
                "oracle_and_bm25, files or llm, or prompt.lines=null"
            )
        if gives_text and self.template is None and self.style != "given":
            raise ConfigError(
                f"context=given uses the row's own text, but prompt={self.style} writes another: choose a context, "
                "such as context=oracle, or prompt=given"
            )

    def render(self, row: Row, shown: Shown, *, text_column: str = TEXT_COLUMN) -> Prompt:
        """The prompt for one row.

        Raises:
            DataError: the row lacks something that the prompt needs; the message says what.
        """
        if self._template is not None:
            prompt = self._template.render(self._variables(row, shown))
        elif self.style == "given":
            prompt = prompt_of(_text(row, text_column), row)
        else:
            prompt = split_prompt(_LAYOUTS[self.style](self._issue(row), self._code(row, shown), self.edit_format))
        system = prompt.system if self.system is None else self.system or None
        if not prompt.user.strip():
            raise DataError("the prompt is blank")
        made = Prompt(system, prompt.user, self.prefill)
        try:
            made.text.encode()
        except UnicodeEncodeError:
            raise DataError("the prompt contains an unpaired surrogate") from None
        return made

    def _issue(self, row: Row) -> list[str]:
        hints = self._hints(row) if self.hints else ""
        shown = ["<hints>", hints, "</hints>"] if hints else []
        return ["<issue>", _text(row, ISSUE_COLUMN), "</issue>", *shown]

    def _hints(self, row: Row) -> str:
        hints = row.get(HINTS_COLUMN)
        return hints if isinstance(hints, str) and hints.strip() and self.hints is not False else ""

    def _code(self, row: Row, shown: Shown) -> str:
        files = dict(shown.files)
        if shown.creates_file and self.style not in _OUR_OWN:
            files[layouts.NEW_FILE] = ""
        numbers = self.style not in _WITHOUT_NUMBERS
        readmes = layouts.whole_files(shown.readmes, numbers=numbers)
        if self.style == "edits_only":
            return f"{readmes}\n{layouts.edited_parts(files, gold_changes(row), keeps_order=shown.keeps_order)}"
        shown_files = layouts.whole_files(
            files, numbers=numbers, keeps_order=shown.keeps_order, windows=shown.windows
        )
        return f"{readmes}\n{shown_files}"

    def _variables(self, row: Row, shown: Shown) -> dict[str, Any]:
        from swe_infer.prompts.template import variables

        assert self._template is not None
        issue = _text(row, ISSUE_COLUMN) if "issue" in self._template.names else ""
        return variables(row, shown, issue, self._hints(row), self.edit_format)


def _text(row: Row, column: str) -> str:
    """A column that a prompt needs.

    Raises:
        DataError: it is missing, not a string, or blank.
    """
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        found = "is blank" if isinstance(text, str) else "is missing" if text is None else "is not a string"
        raise DataError(f"the row's {column} {found}")
    return text
