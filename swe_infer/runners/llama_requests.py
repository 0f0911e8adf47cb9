"""The requests of runs as those of an engine: prompts are encoded ahead, in threads."""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from swe_infer.instance_files import KnownFiles
from swe_infer.llama.data_parallel import DataParallelEngine
from swe_infer.llama.drafting import DraftSource
from swe_infer.llama.engine import Engine
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams
from swe_infer.prompt_format import prose_in_prompt
from swe_infer.runners.base import RequestStream
from swe_infer.text import first_line
from swe_infer.types import Failure, Prompt, Request, sample_seed

_MOST_THREADS = 16
_AHEAD = 2
"""Requests that are read ahead, for each thread."""

_Ids: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """A request of a stream, whose prompt is being encoded."""

    index: int
    request: Request
    ids: Future[_Ids]
    source: DraftSource


class EngineRequests:
    """Converts the requests of streams. A prompt that cannot be encoded fails its own requests only.

    It is an iterator, which reads the streams in the thread that iterates. Each request reads up to two further ones,
    until two for each thread are read ahead.
    """

    def __init__(self, engine: Engine | DataParallelEngine, streams: Sequence[RequestStream]) -> None:
        self._engine, self._streams = engine, streams
        self._merged = _merged(streams)
        self._elsewhere = isinstance(engine, DataParallelEngine)  # in other processes, which make the patches
        threads = min(_MOST_THREADS, max(1, len(os.sched_getaffinity(0)) // 2)) if self._elsewhere else 1
        self._pool = ThreadPoolExecutor(threads, "encode")
        self._most_ahead = _AHEAD * threads
        self._ahead: deque[_Read] = deque()
        self._last: _Read | None = None

    def __iter__(self) -> Iterator[GenerationRequest]:
        return self

    def __next__(self) -> GenerationRequest:
        while True:
            self._read_ahead()
            if not self._ahead:
                raise StopIteration
            read = self._ahead.popleft()
            stream = self._streams[read.index]
            if stream.broken or stream.stop.is_set():
                stream.drop()
                continue
            stream.start(read.request)
            try:
                return self._converted(read, read.ids.result())
            except Exception as error:  # noqa: BLE001 - tokenizers and chat templates may raise anything
                stream.deliver(read.request.key, Failure(type(error).__name__, first_line(error)))

    def close(self) -> None:
        """End the threads, without waiting for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(self) -> None:
        for _ in range(2):
            if len(self._ahead) <= self._most_ahead and (item := next(self._merged, None)) is not None:
                self._last = self._read(*item)
                self._ahead.append(self._last)

    def _read(self, index: int, request: Request) -> _Read:
        """The samples of a prompt share its ids and its source."""
        last, prompt, files = self._last, request.prompt, {} if request.files is None else request.files
        same = last is not None and last.request.prompt == prompt
        ids = last.ids if last is not None and same else self._pool.submit(self._encode, prompt)
        if last is not None and same and (last.source.files is files or last.source.files == files):
            return _Read(index, request, ids, last.source)
        return _Read(index, request, ids, DraftSource(prose_in_prompt(prompt.text), files))

    def _encode(self, prompt: Prompt) -> _Ids:
        return tuple(self._engine.tokenizer.encode(prompt))

    def _converted(self, read: _Read, ids: _Ids) -> GenerationRequest:
        request, defaults = read.request, self._engine.defaults
        decoding, prefill = request.decoding, request.prompt.prefill or ""
        return GenerationRequest(
            key=(read.index, *request.key),
            prompt_ids=ids,
            stop_params=StopParams(decoding.max_new_tokens, self._engine.end_tokens, decoding.stop, prefill=prefill),
            temperature=defaults.temperature if decoding.temperature is None else decoding.temperature,
            top_p=defaults.top_p if decoding.top_p is None else decoding.top_p,
            seed=sample_seed(decoding, request.instance_id, request.sample),
            drafter=decoding.drafter,
            source=read.source,
            makes_patch=self._elsewhere and request.purpose is None and _are_whole(request.files),
            edit_format=request.edit_format,
        )


def origin(request: GenerationRequest) -> tuple[int, tuple[str, int]]:
    """The index of a request's stream, and its key in that stream."""
    assert isinstance(request.key, tuple)
    index, instance_id, sample = request.key
    return index, (instance_id, sample)


def _are_whole(files: Mapping[str, str] | None) -> bool:
    """Whether another process can check a patch against these files: not if others are read from a repository."""
    return files is not None and not isinstance(files, KnownFiles)


def _merged(streams: Sequence[RequestStream]) -> Iterator[tuple[int, Request]]:
    """Merges streams that are sorted by falling prompt length, so that runs request the same instance together."""
    heads: list[tuple[int, str, int, Request]] = []

    def push_next(index: int) -> None:
        request = streams[index].next_request()
        if request is not None:
            heapq.heappush(heads, (-request.prompt.characters, request.instance_id, index, request))

    for index in range(len(streams)):
        push_next(index)
    while heads:
        _, _, index, request = heapq.heappop(heads)
        yield index, request
        push_next(index)
