"""The flash-Llama engine: continuous batching of generation requests.

An :class:`Engine` owns one model and its KV cache. The prefix cache outlives a run, so that runs which share an
engine (the jobs of a sweep) compute a prompt once; :class:`EnginePool` keeps the engine between them.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from swe_infer.errors import ConfigError
from swe_infer.interrupts import NATIVE
from swe_infer.llama.attention.base import PagedBackend
from swe_infer.llama.cluster import RayCluster
from swe_infer.llama.config import GenerationDefaults, LlamaConfig, read_config, read_generation_defaults
from swe_infer.llama.drafting import DraftSource
from swe_infer.llama.graphs import DecodeGraphs
from swe_infer.llama.hub import snapshot_directory
from swe_infer.llama.kv_cache import BlockPool, KVCache
from swe_infer.llama.memory import DeviceMemory, cache_bytes, largest_pass
from swe_infer.llama.model import LlamaForCausalLM, ModelInput
from swe_infer.llama.placement import choose_device
from swe_infer.llama.sampler import Sampler, SamplingParams
from swe_infer.llama.scheduler import Chunk, Scheduler
from swe_infer.llama.sequence import GenerationRequest, OnRejected, RequestOutput, Sequence
from swe_infer.llama.speculation import Speculation
from swe_infer.llama.stats import EngineStats
from swe_infer.llama.stopping import StopCriteria
from swe_infer.llama.tensor_parallel import TensorParallelGroup, check_tensor_parallel, load_part
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.llama.tp_rank import SINGLE_RANK
from swe_infer.text import first_line
from swe_infer.types import Failure, LlamaModel, Prompt, Skip

_log = logging.getLogger(__name__)

_ONE_THREAD_PARAMETERS = 20_000_000
_ENCODE_S = 0.1
_READ_AHEAD = 2  # requests beyond those that run, so that their prompts are encoded meanwhile


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of the engine.

    Args:
        max_batch_tokens: tokens of a forward pass; longer prompts are split into chunks.
        max_sequences: sequences decoded concurrently.
        kv_cache_gb: gigabytes (10^9 bytes) of the KV cache; None: from the free memory.
        workers: engines side by side; None: one for each GPU, or one on a CPU.
        cluster: Ray cluster of the engines; None: this machine.
        stall_timeout_s: seconds without a step after which one of several engines is restarted.
    """

    max_batch_tokens: int = 2048
    max_sequences: int = 64
    kv_cache_gb: float | None = None
    workers: int | None = None
    cluster: RayCluster | None = None
    stall_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for key in ("max_batch_tokens", "max_sequences"):
            if getattr(self, key) < 1:
                raise ConfigError(f"runner.{key}={getattr(self, key)}: must be at least 1")
        if self.kv_cache_gb is not None and not self.kv_cache_gb > 0:
            raise ConfigError(f"runner.kv_cache_gb={self.kv_cache_gb}: must be above 0, or null to size it by itself")


class Engine:
    """Continuous batching over one model.

    Args:
        model: with its weights loaded.
        tokenizer: of the same checkpoint.
        defaults: the checkpoint's sampling defaults.
        context_window: tokens; None: the checkpoint's.
        tp_group: the other ranks of a tensor-parallel model.
        memory: of the model's device, which limits the cache.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: LlamaTokenizer,
        options: EngineOptions | None = None,
        *,
        defaults: GenerationDefaults | None = None,
        context_window: int | None = None,
        tp_group: TensorParallelGroup | None = None,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.model = model
        self.sampler = Sampler()
        self._tp_group = tp_group
        self.usable = True
        self.tokenizer = tokenizer
        self.options = options or EngineOptions()
        self.defaults = defaults or GenerationDefaults()
        self.context_window = context_window or model.config.context_window
        self.cache = self._allocate_cache(memory or DeviceMemory(model.device))
        size = self.cache.block_size
        self.end_tokens = end_tokens(model.config, self.defaults, tokenizer)
        self.speculation = Speculation(tokenizer, model.config.vocab_size)
        self.scheduler = Scheduler(
            BlockPool(self.cache.blocks),
            size,
            self.options.max_batch_tokens,
            self.options.max_sequences,
            self.speculation.draft,
            partial(_copy_block, self.cache, tp_group),
        )
        self._step_running = False
        self._encoder = ThreadPoolExecutor(1, NATIVE)
        self._encoding: deque[tuple[GenerationRequest, Future[tuple[int, ...]]]] = deque()
        self._encoded_source: DraftSource | None = None  # the last one
        self._rejected: list[tuple[GenerationRequest, Failure | Skip]] = []
        self.graphs = DecodeGraphs.create(model, self.cache, min(self.context_window, self.cache_tokens))
        self.reset_stats()

    @classmethod
    def load(cls, model: LlamaModel, options: EngineOptions | None = None) -> Engine:
        """Load a checkpoint and merge its adapter.

        Raises:
            CheckpointError: the checkpoint cannot be read or is not a supported Llama.
            ConfigError: this machine lacks the device, dtype, attention backend or memory.
        """
        started = time.perf_counter()
        directory, config, tokenizer, defaults = read_checkpoint(model)
        network, tp_group = _load_network(model, directory, config)
        try:
            engine = cls(
                network,
                tokenizer,
                options,
                defaults=defaults,
                context_window=model.context_window,
                tp_group=tp_group,
            )
        except BaseException:
            if tp_group is not None:
                tp_group.close()
            raise
        _freeze_gc()
        half = network.device.type == "cuda" and network.dtype != torch.float32
        if half and not isinstance(network.backend, PagedBackend):
            _log.warning(
                "attention uses SDPA, which gathers keys and allows no CUDA graphs: install the extra flash-attn, or "
                "try model/attention=varlen, which has not been measured"
            )
        _log.info(
            "loaded %s in %.1f s: %s%s on %s, %s attention, cache of %d tokens",
            model.label,
            time.perf_counter() - started,
            _short(network.dtype),
            "" if network.weight_dtype == network.dtype else f" over {_short(network.weight_dtype)} weights",
            network.device if tp_group is None else f"{model.tensor_parallel} x {network.device.type}",
            type(network.backend).__module__.rsplit(".", 1)[-1],
            engine.cache_tokens,
        )
        return engine

    def _cache_capacity(self, memory: DeviceMemory) -> int:
        """Bytes of this rank's part of the cache."""
        ranks, options = self.model.shard.count, self.options
        if options.kv_cache_gb is not None:
            return int(options.kv_cache_gb * 1e9) // ranks
        if memory.measures_passes:
            self.model.rope.reserve(self.context_window)
        largest = largest_pass(self.model, self.context_window, options.max_batch_tokens, options.max_sequences)

        def run() -> None:
            logits_RV = self.model.run(largest, self.model.new_cache(1))
            self.sampler(logits_RV, [SamplingParams(1.0, 0.5, 0, row) for row in largest.rows])

        if self._tp_group is None:
            return cache_bytes(memory, run)
        self._tp_group.send(largest)
        smallest = self._tp_group.receive_min(cache_bytes(memory, run))
        return smallest // ranks if memory.device.type == "cpu" else smallest  # ranks on a CPU share its memory

    def _allocate_cache(self, memory: DeviceMemory) -> KVCache:
        config, size = self.model.config, self.model.backend.block_size
        block_bytes = KVCache.block_bytes(
            config.num_hidden_layers, size, self.model.backend.shape.kv_heads, config.head_dim, self.model.dtype
        )
        capacity, automatic = self._cache_capacity(memory), self.options.kv_cache_gb is None
        blocks = capacity // block_bytes - automatic  # beside the scratch block
        if automatic:
            blocks = min(blocks, self.options.max_sequences * -(-self.context_window // size))
        if blocks < 1:
            reason = "; the weights and the largest pass leave no more: lower runner.max_batch_tokens"
            raise ConfigError(
                f"runner.kv_cache_gb: {max(0, capacity) / 1e9:.3f} GB is less than one cache block "
                f"({block_bytes} bytes){reason if automatic else ''}"
            )
        free = memory.free_bytes()
        try:
            cache = self.model.new_cache(1 + blocks)
        except (torch.OutOfMemoryError, OSError) as error:
            raise ConfigError(
                f"runner.kv_cache_gb={self.options.kv_cache_gb}: {self.model.device} has {free / 1e9:.3f} GB free "
                "beside the weights"
            ) from error
        if self._tp_group is not None:
            self._tp_group.send(1 + blocks)
        return cache

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit in the cache."""
        return self.scheduler.pool.total * self.cache.block_size

    @property
    def busy(self) -> bool:
        """Whether a request is in flight."""
        return bool(self._encoding) or self.scheduler.busy

    @property
    def unstarted(self) -> list[GenerationRequest]:
        """The requests that never ran."""
        waiting = [sequence.request for sequence in self.scheduler.waiting if sequence.started is None]
        return waiting + [request for request, _ in self._encoding]

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request. A prompt is encoded in a thread, once for its samples. If the request cannot run,
        :meth:`take_rejected` returns it, at once or after a step."""
        if request.prompt_ids:
            self._queue(request)
            return
        if request.source is not self._encoded_source:
            self._encoded_source = request.source
            self._ids = self._encoder.submit(_encode, self.tokenizer, request.source.prompt)
        self._encoding.append((request, self._ids))

    def _queue_encoded(self) -> None:
        """Queue the requests whose prompts are encoded. If nothing else can run, wait a moment for the first one: the
        caller may have been told to stop."""
        while self._encoding:
            request, ids = self._encoding[0]
            if not ids.done() and (self.scheduler.busy or wait([ids], _ENCODE_S).not_done):
                return
            self._encoding.popleft()
            try:
                encoded = replace(request, prompt_ids=ids.result())
            except Exception as error:  # noqa: BLE001 - tokenizers and chat templates may raise anything
                self._rejected.append((request, Failure(type(error).__name__, first_line(error))))
            else:
                self._queue(encoded)

    def _queue(self, request: GenerationRequest) -> None:
        ids, limit = request.prompt_ids, min(self.context_window, self.cache_tokens)
        why: Failure | Skip
        if len(ids) >= limit:
            what = "context window" if self.context_window <= self.cache_tokens else "key-value cache"
            why = Skip("ContextOverflow", f"the prompt has {len(ids)} tokens and the {what} holds {limit}")
        elif not ids:
            why = Failure("ValueError", "the prompt has no tokens")
        elif not 0 <= min(ids) <= max(ids) < self.model.config.vocab_size:
            why = Failure("ValueError", "the prompt has a token id outside the model's vocabulary")
        else:
            rope, criteria = self.model.rope, StopCriteria(request.stop_params, self.tokenizer, ids)
            self.scheduler.add(Sequence(request, criteria, limit, rope.salt(len(ids)), rope.switch))
            return
        self._rejected.append((request, why))

    @torch.inference_mode()
    def step(self) -> list[RequestOutput]:
        """Run one forward pass. Returns the outputs that it completed."""
        self._queue_encoded()
        started = time.perf_counter()
        self._step_running = True
        chunks = self.scheduler.schedule()  # copies blocks, on every rank
        if not chunks:
            self._step_running = False
            return []
        complete = [chunk for chunk in chunks if chunk.completes]
        scheduled = time.perf_counter()
        chosen = iter(self._forward(chunks, complete))
        self._step_running = False
        if all(chunk.count == 1 for chunk in chunks):
            self.speculation.gain.cost.record(
                sum(len(chunk.draft) for chunk in chunks), time.perf_counter() - scheduled
            )
        finished = []
        for chunk in complete:
            answer = self._advance(chunk, list(islice(chosen, 1 + len(chunk.draft))))
            if answer is not None:
                finished.append(answer)
        self._record_stats(chunks, finished, time.perf_counter() - started)
        return finished

    def _advance(self, chunk: Chunk, chosen: list[int]) -> RequestOutput | None:
        """Append a sequence's next tokens. Returns its output if it is complete."""
        sequence = chunk.sequence
        taken, reason = sequence.advance(chosen, chunk.draft)
        self.speculation.record_verified(sequence, chunk.draft, taken)
        self.stats.output_tokens += len(taken)
        self.scheduler.commit_draft(chunk)
        if reason is None:
            if sequence.crossed_switch(len(taken)):
                self.scheduler.recompute(sequence, self.model.rope.salt(len(sequence.tokens)))
            return None
        self.scheduler.finish_sequence(sequence)
        answer = sequence.result(reason)
        self.speculation.record_output(sequence, answer)
        return answer

    def _forward(self, chunks: list[Chunk], complete: list[Chunk]) -> list[int]:
        ids: list[int] = []
        rows: list[int] = []
        for chunk in chunks:
            ids += chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
            if chunk.completes:
                rows += range(len(ids) - 1, len(ids) + len(chunk.draft))
                ids += chunk.draft
        model_input = ModelInput(
            ids,
            [chunk.start for chunk in chunks],
            [chunk.rows for chunk in chunks],
            [chunk.sequence.blocks for chunk in chunks],
            rows,
            self._rope_lengths(chunks),
        )
        logits_RV = self._logits(model_input)
        if not complete:
            return []
        places = ((chunk.sequence, ahead) for chunk in complete for ahead in range(1 + len(chunk.draft)))
        return self.sampler(logits_RV, [_sampling_params(sequence, ahead) for sequence, ahead in places])

    def _logits(self, model_input: ModelInput) -> Tensor:
        """Run a step on all ranks. Returns the logits of ``model_input.rows``."""
        logits_RV = None if self.graphs is None else self.graphs.logits(model_input)
        if logits_RV is not None:
            return logits_RV
        if self._tp_group is None:
            return self.model.run(model_input, self.cache)
        self._tp_group.send(model_input)
        try:
            return self.model.run(model_input, self.cache)
        except RuntimeError as error:
            raise self._tp_group.failure() from error

    def _rope_lengths(self, chunks: list[Chunk]) -> list[int] | None:
        """The length for the angles of each token, where RoPE depends on it. With ``dynamic``, prompt tokens scale
        with the prompt's length, generated ones with their position."""
        kind = self.model.config.rope.type
        if not self.model.config.rope.depends_on_length:
            return None
        lengths: list[int] = []
        for chunk in chunks:
            if kind == "longrope":
                lengths += [len(chunk.sequence.tokens)] * chunk.rows
                continue
            prompt = len(chunk.sequence.request.prompt_ids)
            lengths += [max(prompt, p + 1) for p in range(chunk.start, chunk.start + chunk.rows)]
        return lengths

    def _record_stats(self, chunks: list[Chunk], finished: list[RequestOutput], seconds: float) -> None:
        stats = self.stats
        stats.steps += 1
        stats.busy_s += seconds
        for chunk in chunks:
            if chunk.start >= len(chunk.sequence.request.prompt_ids) and chunk.count == 1:
                stats.decode_rows += chunk.rows
            else:
                stats.prefill_rows += chunk.count
                stats.decode_rows += len(chunk.draft)
        for answer in finished:
            stats.finished += 1
            stats.prompt_tokens += answer.prompt_tokens
            stats.cached_tokens += answer.cached_tokens

    def generate(
        self,
        requests: Iterable[GenerationRequest],
        on_rejected: OnRejected,
        stop: threading.Event | None = None,
    ) -> Iterator[RequestOutput]:
        """Generate for ``requests``, which are read as capacity allows. Outputs come in the order of completion.

        Args:
            on_rejected: called with the outcome of a request that cannot run.
            stop: once set, no new request is started; running ones complete.
        """
        with threads_for(self.model.config, self.model.device, self.model.shard.count):
            yield from self._generate(iter(requests), on_rejected, stop)

    def _generate(
        self,
        source: Iterator[GenerationRequest],
        on_rejected: OnRejected,
        stop: threading.Event | None,
    ) -> Iterator[RequestOutput]:
        exhausted = False
        while True:
            stopping = stop is not None and stop.is_set()
            if stopping:
                self.drop_unstarted()
            while not stopping and not exhausted and self._has_capacity():
                request = next(source, None)
                if request is None:
                    exhausted = True
                    break
                self.add_request(request)
            if not (self.busy or self._rejected):
                return
            answers = self.step()
            for rejected in self.take_rejected():
                on_rejected(*rejected)
            yield from answers

    def take_rejected(self) -> list[tuple[GenerationRequest, Failure | Skip]]:
        """The requests that could not run since the last call, and why."""
        rejected, self._rejected = self._rejected, []
        return rejected

    def drop_unstarted(self) -> None:
        """Drop the requests that never ran. Preempted ones stay."""
        for _, ids in self._encoding:
            ids.cancel()
        self._encoding.clear()
        self._encoded_source = None
        self.scheduler.drop_unstarted()

    def figures(self) -> dict[str, float]:
        """Figures for progress, summary and tracker: counts, rates over the engine's busy time, shares."""
        pool = self.scheduler.pool
        return {
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            "kv_cache_used": round(pool.used / pool.total, 4),
            "kv_cache_gb": round(self.cache.nbytes / 1e9, 3),
            "preemptions": self.scheduler.preemptions - self.stats.preemptions_before,
            **self.stats.figures(),
        }

    def reset_stats(self) -> None:
        """Reset the statistics for the next run of this engine."""
        self.stats = EngineStats(preemptions_before=self.scheduler.preemptions)
        self.speculation.stats = self.stats

    def _has_capacity(self) -> bool:
        in_flight = len(self._encoding) + len(self.scheduler.waiting) + len(self.scheduler.running)
        return in_flight < self.options.max_sequences + _READ_AHEAD

    def clear_prefix_cache(self) -> None:
        """Empty the prefix cache. No request may be in flight."""
        self.scheduler.pool.clear_cached()

    def close(self) -> None:
        """Stop the other ranks of a tensor-parallel model."""
        self.usable = self._tp_group is None
        if self._tp_group is not None:
            self._tp_group.close()

    def abandon(self) -> None:
        """Drop all requests in flight, after an error or interrupt. The prefix cache is kept, unless a step was
        interrupted: then blocks may not hold the content they are registered for."""
        self.drop_unstarted()
        self._rejected.clear()
        for sequence in self.scheduler.waiting:
            self.speculation.discard(sequence)
        self.scheduler.waiting.clear()
        for sequence in list(self.scheduler.running):
            self.speculation.discard(sequence)
            self.scheduler.finish_sequence(sequence)
        if self._step_running:
            self.clear_prefix_cache()
            self._step_running = False
            if self._tp_group is not None:  # its ranks are still inside the step
                self.close()


def _copy_block(cache: KVCache, tp_group: TensorParallelGroup | None, source: int, target: int) -> None:
    """Copy a block on all ranks. A function, since a reference from scheduler to engine would be a cycle that only
    the garbage collector frees."""
    if tp_group is not None:
        tp_group.send((source, target))
    cache.copy(source, target)


@cache
def _freeze_gc() -> None:
    """Exempt imported objects from garbage collection, once, so that it does not scan them during a run."""
    gc.collect(1)
    gc.freeze()


@contextmanager
def threads_for(config: LlamaConfig, device: torch.device, ranks: int = 1) -> Iterator[None]:
    """Use one thread for a small model on a CPU: its matrix products are too short for several threads. Divide the
    threads among tensor-parallel ranks. Figures: ``benchmarks/README.md``."""
    before = torch.get_num_threads()
    if device.type == "cpu" and ranks > 1:
        torch.set_num_threads(max(1, before // ranks))
    if device.type == "cpu" and config.parameters < _ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_checkpoint(model: LlamaModel) -> tuple[Path, LlamaConfig, LlamaTokenizer, GenerationDefaults]:
    """Read what a checkpoint has beside its weights. Raises CheckpointError."""
    directory = snapshot_directory(model.path, "config.json", allow_pickle=model.allow_pickle)
    return directory, read_config(directory), LlamaTokenizer.of(model, directory), read_generation_defaults(directory)


def _load_network(
    model: LlamaModel, directory: Path, config: LlamaConfig
) -> tuple[LlamaForCausalLM, TensorParallelGroup | None]:
    """Load the model, or this rank's part and the processes of the other ranks."""
    device = choose_device(model.device)
    if model.tensor_parallel > 1:
        check_tensor_parallel(model, device)
        model = replace(model, device=str(device))
        tp_group = TensorParallelGroup(model, directory, config)
        try:
            network = load_part(model, directory, config, tp_group.shard)
            tp_group.init_process_group()
        except BaseException:
            tp_group.close()
            raise
        return network, tp_group
    with threads_for(config, device):
        return load_part(replace(model, device=str(device)), directory, config, SINGLE_RANK), None


def _encode(tokenizer: LlamaTokenizer, prompt: Prompt) -> tuple[int, ...]:
    return tuple(tokenizer.encode(prompt))


def _sampling_params(sequence: Sequence, ahead: int) -> SamplingParams:
    """Parameters for the token ``ahead`` places after the next one."""
    request = sequence.request
    return SamplingParams(request.temperature, request.top_p, request.seed, sequence.generated + ahead)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def end_tokens(config: LlamaConfig, defaults: GenerationDefaults, tokenizer: LlamaTokenizer) -> frozenset[int]:
    """Token ids that end an output, from config, generation config and tokenizer."""
    own = () if tokenizer.eos is None else (tokenizer.eos,)
    return frozenset((*config.eos_token_ids, *defaults.eos_token_ids, *own))
