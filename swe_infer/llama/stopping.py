"""Stop criteria of an output: end token, stop string, closed patch, length, or a loop. They depend only on the
sequence's own output and run on the host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from swe_infer.llama.tokenizer import LlamaTokenizer, TextStream
from swe_infer.types import FinishReason

FENCE_GRACE = 64
"""Tokens allowed after a closed diff fence. An output may have one fence for each file, with prose in between."""

REPEAT_WINDOW = 256
REPEAT_PERIOD = 64
REPEAT_INTERVAL = 16

_PATCH_CLOSED = re.compile(r"^</patch>", re.MULTILINE)
_FENCE = re.compile(r"^(`{3,}|~{3,})[ \t]*(\w*)", re.MULTILINE)
_DIFF_LINE = re.compile(r"^(diff --git |--- |\+\+\+ |@@ )", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StopParams:
    """Stop parameters of a request.

    Args:
        max_new_tokens: maximum tokens, the end token included.
        end_tokens: token ids that end the output and are not part of the text.
        stop: strings that end the output and are not part of the text.
        closed_patch: whether a closed ``<patch>`` tag, or a closed diff fence and ``FENCE_GRACE`` tokens, ends the
            output.
        repetition: whether a loop ends the output.
        prefill: the beginning of the answer, which the output continues; it may open a fence.
    """

    max_new_tokens: int
    end_tokens: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    closed_patch: bool = True
    repetition: bool = True
    prefill: str = ""


class StopCriteria:
    """Tracks one output. Call :meth:`push` for each token; ``text`` is the output so far."""

    def __init__(self, stop_params: StopParams, tokenizer: LlamaTokenizer, prompt_ids: Sequence[int]) -> None:
        self.stop_params = stop_params
        self._stream = TextStream(tokenizer, prompt_ids)
        self._longest_stop = max((len(s) for s in stop_params.stop), default=0)
        self._line_start = 0
        self._fence: str | None = None
        self._fence_start = 0
        self._grace: int | None = None
        self.tokens: list[int] = []
        self._cut: int | None = None
        for fence in _FENCE.finditer(stop_params.prefill):
            self._fence = None if self._fence == fence[1] else self._fence or fence[1]

    @property
    def text(self) -> str:
        return self._stream.text if self._cut is None else self._stream.text[: self._cut]

    def push(self, token: int) -> FinishReason | None:
        """Add the next token. Returns a reason if the output is complete."""
        self.tokens.append(token)
        if token in self.stop_params.end_tokens:
            self._stream.finish()
            return "stop"
        before = len(self._stream.text)
        self._stream.push(token)
        if len(self._stream.text) > before and self._text_ends(before):
            return "stop"
        if self._grace is not None:
            self._grace -= 1
            if self._grace <= 0:
                return "stop"
        if len(self.tokens) >= self.stop_params.max_new_tokens:
            return self.end("length")
        if self.stop_params.repetition and len(self.tokens) % REPEAT_INTERVAL == 0 and repeats(self.tokens):
            return self.end("repetition")
        return None

    def end(self, reason: FinishReason) -> FinishReason:
        """End the output for an external reason, such as a full context window."""
        before = len(self._stream.text)
        self._stream.finish()
        if len(self._stream.text) > before and self._stop_string(before):
            return "stop"
        return reason

    def _text_ends(self, before: int) -> bool:
        return self._stop_string(before) or (self.stop_params.closed_patch and self._patch_closed())

    def _stop_string(self, before: int) -> bool:
        if not self.stop_params.stop:
            return False
        start = max(0, before - self._longest_stop + 1)
        places = [self._stream.text.find(stop, start) for stop in self.stop_params.stop]
        found = [place for place in places if place >= 0]
        if found:
            self._cut = min(found)
        return bool(found)

    def _patch_closed(self) -> bool:
        """Examine the lines completed since the last call.

        A tag or fence counts only at the start of a line: lines of a diff start with a space, plus or minus.
        """
        text = self._stream.text
        if _PATCH_CLOSED.match(text, self._line_start):
            return True
        while (end := text.find("\n", self._line_start)) >= 0:
            self._line(text[self._line_start : end], end)
            self._line_start = end + 1
            if _PATCH_CLOSED.match(text, self._line_start):
                return True
        return False

    def _line(self, line: str, end: int) -> None:
        match = _FENCE.match(line)
        if match is None:
            return
        if self._fence is None:
            self._fence, self._fence_start, self._grace = match[1], end, None
        elif line.rstrip() == self._fence:
            body = self._stream.text[self._fence_start : end]
            self._fence = None
            if _DIFF_LINE.search(body):
                self._grace = FENCE_GRACE


def repeats(tokens: Sequence[int]) -> bool:
    """Whether the last ``REPEAT_WINDOW`` tokens repeat one piece of at most ``REPEAT_PERIOD`` tokens."""
    if len(tokens) < REPEAT_WINDOW:
        return False
    tail = tokens[-REPEAT_WINDOW:]
    return any(tail[:-period] == tail[period:] for period in range(1, REPEAT_PERIOD + 1))
