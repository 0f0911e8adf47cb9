"""The requests of runs as those of an engine."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

from swe_infer.instance_files import KnownFiles
from swe_infer.llama.data_parallel import DataParallelEngine
from swe_infer.llama.drafting import NO_SOURCE, DraftSource
from swe_infer.llama.engine import Engine
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams
from swe_infer.runners.base import RequestStream
from swe_infer.types import Request, sample_seed


def engine_requests(
    engine: Engine | DataParallelEngine, streams: Sequence[RequestStream]
) -> Iterator[GenerationRequest]:
    """Convert the requests of streams, which are read as requests are taken."""
    elsewhere = isinstance(engine, DataParallelEngine)  # in other processes, which make the patches
    end_tokens, defaults, source = engine.end_tokens, engine.defaults, NO_SOURCE
    for index, request in _merged(streams):
        stream, decoding, prompt = streams[index], request.decoding, request.prompt
        if stream.broken or stream.stop.is_set():
            stream.drop()
            continue
        stream.start(request)
        makes_patch = elsewhere and request.purpose is None and _are_whole(request.files)
        used = makes_patch or decoding.drafter != "none"
        own = DraftSource(prompt, {} if request.files is None or not used else request.files)
        source = source if source == own else own  # shared by the samples of a prompt
        yield GenerationRequest(
            key=(index, *request.key),
            prompt_ids=(),
            stop_params=StopParams(decoding.max_new_tokens, end_tokens, decoding.stop, prefill=prompt.prefill or ""),
            temperature=defaults.temperature if decoding.temperature is None else decoding.temperature,
            top_p=defaults.top_p if decoding.top_p is None else decoding.top_p,
            seed=sample_seed(decoding, request.instance_id, request.sample),
            drafter=decoding.drafter,
            source=source,
            makes_patch=makes_patch,
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
        push_next(index)
        yield index, request
