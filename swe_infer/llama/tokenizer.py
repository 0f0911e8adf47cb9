"""A checkpoint's tokenizer: encodes prompts and decodes outputs incrementally.

``tokenizer.json`` is read with the ``tokenizers`` package, which is fast. ``transformers`` is imported only for a
checkpoint without that file and for chat templates. No code of a checkpoint is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.config import read_json
from swe_infer.text import first_line
from swe_infer.types import Prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTEXT = 8
"""Prompt tokens that are decoded along with the first output tokens, to preserve a leading space."""


class LlamaTokenizer:
    """Encodes prompts and decodes outputs.

    Raises:
        CheckpointError: the directory has no readable tokenizer.
        ConfigError: ``prompt_format=chat`` with a checkpoint that has no chat template.
    """

    def __init__(self, directory: Path, prompt_format: Literal["raw", "chat"] = "raw") -> None:
        self.directory = directory
        self.prompt_format = prompt_format
        self._backend = _load(directory)
        config_path = directory / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        self._add_bos: bool | None = config.get("add_bos_token")
        self._bos = self._special(config, "bos_token")
        self.eos = self._special(config, "eos_token")
        self._chat: Any = _chat_renderer(directory) if prompt_format == "chat" else None

    @property
    def size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt.

        Special tokens in the text of a dataset, such as ``</s>``, are encoded as plain text.
        """
        if self._chat is not None:
            return self._encode_chat(prompt)
        self._treat_special_tokens_as_text(True)
        ids = list(self._backend.encode(prompt.text).ids)
        starts_with_bos = bool(ids) and ids[0] == self._bos
        if self._add_bos and self._bos is not None and not starts_with_bos:
            return [self._bos, *ids]
        if self._add_bos is False and starts_with_bos:
            return ids[1:]
        return ids

    def count(self, prompt: Prompt) -> int:
        """Return the number of token ids of a prompt. Faster than :meth:`encode`, and other threads run meanwhile."""
        if self._chat is not None:
            return len(self._encode_chat(prompt))
        self._treat_special_tokens_as_text(True)
        encoded = self._backend.encode_batch_fast([prompt.text])[0]
        starts_with_bos = len(encoded) > 0 and encoded.ids[0] == self._bos
        if self._add_bos and self._bos is not None and not starts_with_bos:
            return len(encoded) + 1
        return len(encoded) - (self._add_bos is False and starts_with_bos)

    def _encode_chat(self, prompt: Prompt) -> list[int]:
        messages = replace(prompt, prefill=None).messages
        if prompt.system is not None:
            messages.insert(0, {"role": "system", "content": prompt.system})
        text = self._chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        text += prompt.prefill or ""
        self._treat_special_tokens_as_text(False)
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _treat_special_tokens_as_text(self, value: bool) -> None:
        if self._backend.encode_special_tokens != value:  # it cannot be set while another thread encodes
            self._backend.encode_special_tokens = value

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text. Special tokens are neither added nor recognised."""
        self._treat_special_tokens_as_text(True)
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def _special(self, config: dict[str, Any], key: str) -> int | None:
        value = config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        found = None if content is None else self._backend.token_to_id(content)
        return None if found is None else int(found)


class TextStream:
    """Decodes one output token by token. An incomplete character is held back.

    Preceding tokens are decoded along with new ones, because decoders treat the first token of a text specially.
    """

    def __init__(self, tokenizer: LlamaTokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_CONTEXT:])
        self._prefix = 0
        self._read = len(self._ids)
        self.text = ""

    def push(self, token: int) -> None:
        self._ids.append(token)
        self._advance(final=False)

    def finish(self) -> None:
        """Emit an incomplete character."""
        self._advance(final=True)

    def _advance(self, *, final: bool) -> None:
        before = self._tokenizer.decode(self._ids[self._prefix : self._read])
        now = self._tokenizer.decode(self._ids[self._prefix :])
        if len(now) > len(before) and (final or not now.endswith("\ufffd")):
            self.text += now[len(before) :]
            self._prefix, self._read = self._read, len(self._ids)


def _load(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not (directory / "tokenizer.model").is_file():
        raise CheckpointError(f"{directory} has neither tokenizer.json nor tokenizer.model")
    backend: Tokenizer = _transformers(directory).backend_tokenizer
    return backend


def _transformers(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"{directory}: the tokenizer cannot be read: {first_line(error)}") from error


def _chat_renderer(directory: Path) -> Any:
    tokenizer = _transformers(directory)
    if not tokenizer.chat_template:
        raise ConfigError(f"model.prompt_format=chat, but {directory} has no chat template; use raw")
    return tokenizer
