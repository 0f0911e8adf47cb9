"""Chat templates of checkpoints, rendered by transformers.

A template sees only the conversation, the switch for thinking, and a fixed date: what it renders is the same on every
day and machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.text import first_line
from swe_infer.types import Prompt, PromptFormat

if TYPE_CHECKING:
    from tokenizers import AddedToken

DEFAULT_DATE = "2024-07-26"
"""The date that the templates of Llama 3.1 to 3.3 state where no clock is available."""

_QUESTION, _ANSWER, _SYSTEM = "question-4f1c", "answer-9b27", "system-c83e"


def find_template(
    directory: Path, prompt_format: PromptFormat, thinking: bool | None, template_date: str | None
) -> ChatTemplate | None:
    """The chat template of a checkpoint; None if prompts are plain text.

    Raises:
        ConfigError: ``prompt_format=chat`` with a checkpoint that has no chat template.
    """
    if prompt_format == "raw" or (prompt_format == "auto" and not _may_have_template(directory)):
        return None
    tokenizer = load_tokenizer(directory)
    if tokenizer.chat_template:
        try:
            template = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise CheckpointError(f"{directory}: no chat template can be chosen: {first_line(error)}") from error
        return ChatTemplate(tokenizer, template, thinking, template_date)
    if prompt_format == "chat":
        raise ConfigError(f"model.prompt_format=chat, but {directory} has no chat template; use raw")
    return None


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a checkpoint as transformers loads it.

    Raises:
        CheckpointError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, use_fast=True)
    except Exception as error:  # transformers raises many types for damaged files
        raise CheckpointError(f"{directory}: the tokenizer cannot be read: {first_line(error)}") from error


def _may_have_template(directory: Path) -> bool:
    """Whether a checkpoint states a template, without importing transformers."""
    if (directory / "chat_template.jinja").is_file() or (directory / "chat_template.json").is_file():
        return True
    try:
        return bool(json.loads((directory / "tokenizer_config.json").read_bytes()).get("chat_template"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: of transformers.
        template: in Jinja's syntax.
        thinking: value of the variables ``enable_thinking`` and ``thinking``; None: the template's default.
        template_date: today's date for the template, as YYYY-MM-DD; None: :data:`DEFAULT_DATE`.

    Raises:
        ConfigError: the template cannot render a question.
    """

    def __init__(self, tokenizer: Any, template: str, thinking: bool | None, template_date: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = _with_date(template, date.fromisoformat(template_date or DEFAULT_DATE))
        self._variables = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        try:
            self._accepts_system = self._renders(system=_SYSTEM, user=_QUESTION)
        except ConfigError:
            self._accepts_system = False
        if not self._accepts_system and not self._renders(user=_QUESTION):
            raise ConfigError("model.prompt_format=chat: the chat template leaves out the user's message; use raw")

    def is_of_instruct_model(self, end_tokens: set[str]) -> bool:
        """Whether the template ends an assistant's turn with one of ``end_tokens``. Base models are published with
        templates too, whose end of turn does not end their outputs."""
        conversation = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        try:
            text = str(self._apply(conversation, add_generation_prompt=False, tokenize=False))
        except Exception:  # noqa: BLE001 - templates raise any error
            return False
        _, found, rest = text.rpartition(_ANSWER)
        return bool(found) and any(token in rest for token in end_tokens)

    def controls(self, token: AddedToken) -> bool:
        """Whether a token structures conversations: a special one, or one that the template writes."""
        return token.special or (token.content in self._template and not token.content.isspace())

    def conversation(self, prompt: Prompt) -> list[dict[str, str]]:
        """The messages of a prompt without its prefill. A system message that the template refuses becomes the
        beginning of the user's."""
        messages = [dict(message) for message in replace(prompt, prefill=None).messages]
        if prompt.system is not None and self._accepts_system:
            messages.insert(0, {"role": "system", "content": prompt.system})
        elif prompt.system is not None:
            messages[0]["content"] = f"{prompt.system}\n\n{messages[0]['content']}"
        return messages

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a conversation, up to the beginning of the assistant's turn.

        Raises:
            ConfigError: the template refuses the conversation.
        """
        return str(self._rendered(messages, tokenize=False))

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The token ids of a conversation, in which tokens that :meth:`controls` names are text in a message.

        Raises:
            ConfigError: the template refuses the conversation.
        """
        return list(self._rendered(messages, tokenize=True, sanitize_control_tokens=True, return_dict=False))

    def _rendered(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Any:
        try:
            return self._apply(messages, add_generation_prompt=True, **options)
        except Exception as error:  # templates raise any error
            raise ConfigError(
                f"model.prompt_format=chat: the chat template cannot render this prompt: {first_line(error)}"
            ) from error

    def _apply(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            add_generation_prompt=add_generation_prompt,
            **options,
            **self._variables,
        )

    def _renders(self, **contents: str) -> bool:
        """Whether the template renders messages, by role; some refuse a system message, some leave it out."""
        text = self.render([{"role": role, "content": content} for role, content in contents.items()])
        return all(content in text for content in contents.values())


def _with_date(template: str, today: date) -> str:
    """``template`` with its own ``strftime_now``: transformers has one that reads the clock, and accepts no other."""
    if "strftime_now" not in template:
        return template
    codes = {f"%{code}": today.strftime(f"%{code}") for code in "aAbBdefFHIjmMpSuUwWxXyYzZ"}
    replacements = "".join(f"|replace({code!r}, {value!r})" for code, value in codes.items())
    return f"{{%- macro strftime_now(form) -%}}{{{{ form{replacements} }}}}{{%- endmacro -%}}{template}"
