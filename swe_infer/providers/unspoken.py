"""What an answer has beside its text: reasoning, tool calls, and a refusal.

It is paid for, so the record keeps it. If the text is empty, it becomes the text: a patch may be in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from swe_infer.types import FinishReason

MAX_KEPT = 1 << 20
"""Characters of each part in a record. Of a longer one, the end is kept."""


@dataclass(slots=True)
class Unspoken:
    """The parts of an answer beside its text.

    Args:
        calls: name and arguments of each tool call; the arguments are a JSON value or its text.
    """

    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(map(str.strip, self.reasoning)) or bool(self.calls) or any(self.refusals)

    def text_and_details(self, text: str, finish: FinishReason) -> tuple[str, dict[str, Any]]:
        """The text of the answer, and the details for its record. An empty text is replaced by the first part that is
        not empty: tool calls, a refusal, reasoning."""
        reasoning = "\n".join(part for part in self.reasoning if part.strip())
        parts = {"tool_calls": self._calls_as_text(), "refusal": "".join(self.refusals), "reasoning": reasoning}
        details: dict[str, Any] = {name: part[-MAX_KEPT:] for name, part in parts.items() if part}
        if text.strip() or not details:
            return text, details
        used = next(iter(details))
        del details[used]
        text = parts[used]
        if used == "reasoning":  # in the tags of a model that writes it as text, so it is read alike
            text = f"<think>\n{text}\n" + ("</think>\n" if finish == "stop" else "")
        return text, {**details, "text_from": used}

    def _calls_as_text(self) -> str:
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"
            for name, arguments in self.calls
        )


def strings_of(value: Any, *keys: str) -> list[str]:
    """The strings in ``value``: itself, or those below ``keys`` of an object or of a list of objects. A value below a
    key may be a list of objects with a ``text``."""
    found: list[Any] = []
    for item in value if isinstance(value, list) else [value]:
        for part in [item.get(key) for key in keys] if isinstance(item, dict) else [item]:
            found += (
                [inner.get("text") for inner in part if isinstance(inner, dict)] if isinstance(part, list) else [part]
            )
    return [text for text in found if isinstance(text, str) and text]
