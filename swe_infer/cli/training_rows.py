"""Rows for fine-tuning in the dataset formats of TRL, and their check.

The formats are those of https://huggingface.co/docs/trl/dataset_formats. A *conversational* column is a list of
messages with ``role`` and ``content``; a *standard* one is a string. Trainers ignore the column ``metadata``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from swe_infer.types import Prompt

Format = Literal["chat", "prompt_completion", "preference"]

COLUMNS: Mapping[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
}
"""The columns of a format that a trainer reads."""
METADATA = "metadata"

_PROMPTS = ("messages", "prompt")
"""The columns that begin with a prompt. The other columns are answers."""
_SURROGATE = "the text contains an unpaired surrogate"


def training_row(
    form: Format, prompt: Prompt, answers: Sequence[str], metadata: Mapping[str, Any], *, standard: bool
) -> dict[str, Any]:
    """A row; :func:`fault_of` checks it.

    Args:
        prompt: without the beginning of the answer.
        answers: the answer; for ``preference`` the chosen one and the rejected one.
        standard: strings instead of messages. ``chat`` has no such form, and no model continues a conversation so.
    """
    columns = COLUMNS[form]
    if standard and form != "chat":
        values: list[Any] = [prompt.question, *answers]
    else:
        parts = [_messages(prompt), *([_message("assistant", answer)] for answer in answers)]
        values = [[message for part in parts for message in part]] if form == "chat" else parts
    return {**dict(zip(columns, values, strict=True)), METADATA: dict(metadata)}


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    system = [] if prompt.system is None else [_message("system", prompt.system)]
    return [*system, *prompt.messages]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def fault_of(row: Mapping[str, Any], form: Format) -> str | None:
    """Why a row is not in the documented format; None if it is."""
    if row.keys() != {*COLUMNS[form], METADATA}:
        return f"the columns are not {', '.join(COLUMNS[form])} and {METADATA}"
    values = [row[column] for column in COLUMNS[form]]
    if len({type(value) for value in values}) > 1:
        return "strings and messages are mixed"
    if form == "chat" and not isinstance(values[0], list):
        return "messages is not a list"
    for column, value in zip(COLUMNS[form], values, strict=True):
        fault = _list_fault(column, value) if isinstance(value, list) else text_fault(value)
        if fault is not None:
            return f"{column}: {fault}"
    return None if _is_unicode(json.dumps(row[METADATA], ensure_ascii=False)) else f"{METADATA}: {_SURROGATE}"


def _list_fault(column: str, messages: Sequence[object]) -> str | None:
    roles: list[object] = []
    for message in messages:
        if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
            return "a message is not a role and a content"
        roles.append(message["role"])
        if (fault := text_fault(message["content"])) is not None:
            return fault
    is_prompt = column in _PROMPTS
    turns = roles[1:] if is_prompt and roles[:1] == ["system"] else roles
    order = ("user", "assistant") if is_prompt else ("assistant", "user")
    if not turns or any(role != order[index % 2] for index, role in enumerate(turns)):
        return f"the roles do not alternate from {order[0]}"
    last = "user" if column == "prompt" else "assistant"
    return None if turns[-1] == last else f"the last role is not {last}"


def text_fault(text: object) -> str | None:
    """Why a text is not one to learn; None if it is."""
    if not isinstance(text, str):
        return "the text is not a string"
    if not text.strip():
        return "the text is blank"
    return None if _is_unicode(text) else _SURROGATE


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
