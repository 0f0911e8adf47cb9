"""A checkpoint's tokenizer: encodes prompts and decodes outputs incrementally. Threads may share one.

``tokenizer.json`` is read with the ``tokenizers`` package, which is fast. ``transformers`` is imported only for a
checkpoint without that file and for chat templates, see :mod:`swe_infer.llama.chat_template`. No code of a checkpoint
is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.llama.chat_template import find_template, load_tokenizer
from swe_infer.llama.config import read_json
from swe_infer.llama.hub import config_directory
from swe_infer.text import first_line
from swe_infer.types import LlamaModel, Prompt, PromptFormat

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTEXT = 8
"""Prompt tokens that are decoded along with the first output tokens, to preserve a leading space."""

_LONG = 1 << 18
"""Characters of a text that take long to encode: a tenth of a second."""


class LlamaTokenizer:
    """Encodes prompts and decodes outputs.

    Args:
        prompt_format: ``auto`` is ``chat`` for an instruct model, by :meth:`.ChatTemplate.is_of_instruct_model`.
        thinking, template_date: see :class:`.ChatTemplate`.

    Raises:
        CheckpointError: the directory has no readable tokenizer.
        ConfigError: ``prompt_format=chat`` with a checkpoint that has no chat template, or ``model.thinking`` with
            plain text.
    """

    def __init__(
        self,
        directory: Path,
        prompt_format: PromptFormat = "raw",
        *,
        thinking: bool | None = None,
        template_date: str | None = None,
    ) -> None:
        self.directory = directory
        self._backend = _load(directory)
        self._backend.encode_special_tokens = True  # they are text; _template_backend recognises them
        self._chat_lock = Lock()
        config_path = directory / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        self._add_bos: bool | None = config.get("add_bos_token")
        self._bos = self._special(config, "bos_token")
        self.eos = self._special(config, "eos_token")
        chat = find_template(directory, prompt_format, thinking, template_date)
        if chat is not None and prompt_format == "auto" and not chat.is_of_instruct_model(self._end_tokens()):
            chat = None
        self._chat = chat
        added = self._backend.get_added_tokens_decoder().values()
        self._control_tokens = [token.content for token in added if chat is not None and chat.controls(token)]
        self.prompt_format: Literal["raw", "chat"] = "raw" if chat is None else "chat"
        if chat is None and thinking is not None:
            raise ConfigError(
                "model.thinking: only a chat template can use it; set model.prompt_format=chat or model.thinking=null"
            )

    @classmethod
    def of(cls, model: LlamaModel, directory: Path) -> LlamaTokenizer:
        """The tokenizer of ``model``, whose files are in ``directory``."""
        return cls(directory, model.prompt_format, thinking=model.thinks, template_date=model.template_date)

    def _end_tokens(self) -> set[str]:
        """The texts of the tokens that end an output, by any of the checkpoint's files."""
        ids = [self.eos]
        for name in ("config.json", "generation_config.json"):
            if (path := self.directory / name).is_file():
                stated = read_json(path).get("eos_token_id")
                ids += stated if isinstance(stated, list) else [stated]
        known = (token for token in ids if isinstance(token, int) and 0 <= token < self.size)
        found = (self._backend.id_to_token(token) for token in known)
        return {text for text in found if text}

    @property
    def size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt. Other threads run meanwhile.

        Special tokens in the text of a dataset, such as ``</s>``, are encoded as plain text.
        """
        if self._chat is not None:
            return self._encode_chat(prompt)
        ids = _encoded(self._backend, prompt.text, add_special_tokens=True)
        starts_with_bos = bool(ids) and ids[0] == self._bos
        if self._add_bos and self._bos is not None and not starts_with_bos:
            return [self._bos, *ids]
        if self._add_bos is False and starts_with_bos:
            return ids[1:]
        return ids

    def _encode_chat(self, prompt: Prompt) -> list[int]:
        """The ids of a rendered conversation and the prefill. A control token is one that the template writes; spelt
        in a message, it is plain text."""
        assert self._chat is not None
        messages, prefill = self._chat.conversation(prompt), prompt.prefill or ""
        written = "".join([*(message["content"] for message in messages), prefill])
        with self._chat_lock:  # the tokenizer of transformers has a state
            if any(token in written for token in self._control_tokens):
                return self._chat.encode(messages) + self.encode_text(prefill)
            text = self._chat.render(messages) + prefill
            backend = self._template_backend
        return _encoded(backend, text, add_special_tokens=False)

    @cached_property
    def _template_backend(self) -> Tokenizer:
        """Recognises special tokens: the switch for that cannot be set while another thread encodes."""
        return _load(self.directory)

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text. Special tokens are neither added nor recognised."""
        return _encoded(self._backend, text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def _special(self, config: dict[str, Any], key: str) -> int | None:
        value = config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        found = self._backend.token_to_id(content) if isinstance(content, str) else None
        return None if found is None else int(found)


def prompt_format_of(model: LlamaModel) -> Literal["raw", "chat"]:
    """The prompt format of ``model``; that of ``auto`` is read from the checkpoint's tokenizer.

    Raises:
        CheckpointError: the checkpoint's tokenizer cannot be read.
    """
    if model.prompt_format != "auto":
        return model.prompt_format
    return LlamaTokenizer.of(model, config_directory(model.path, "config.json")).prompt_format


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


def _encoded(backend: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The ids of a text. The call for a batch is the one during which other threads run.

    Raises:
        CheckpointError: the tokenizer fails, such as with a regular expression that backtracks without end.
        Stopped: a signal came while the main thread encoded a long text.
    """

    def encode() -> list[int]:
        try:
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust: it is a BaseException
                raise
            raise CheckpointError(f"the tokenizer cannot encode a prompt: {first_line(error)}") from None
        return ids

    return encode() if len(text) < _LONG else INTERRUPTS.call_native(encode)


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
    backend: Tokenizer = load_tokenizer(directory).backend_tokenizer
    return backend
