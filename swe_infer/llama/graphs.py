"""CUDA graphs of decode steps: one launch instead of about ten for each layer.

A graph has fixed addresses and shapes. So a step is padded to one of a few row counts, and its inputs are written
into one buffer that one copy sends to the device. Padding rows are sequences of their own, whose keys go to the
scratch block. Graphs are captured on first use.

Shape suffixes: R rows, S sequences, P cache blocks of the longest sequence.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from swe_infer.llama.attention.base import PagedBackend, PagedPlan
from swe_infer.llama.kv_cache import SCRATCH, KVCache
from swe_infer.llama.model import MIN_ROWS, LlamaForCausalLM, ModelInput, Step, positions_and_slots

ROWS = (MIN_ROWS, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Row counts that steps are padded to. Larger steps run without a graph, since launch overhead matters little
there."""

MAX_QUERIES = 64
"""Limit on the rows of one sequence, drafted or padding. Attention kernels process as many in one tile."""

MIN_BLOCKS = 8
"""Cache blocks of a sequence in the smallest graphs; each larger size doubles it."""


class StaticStep:
    """A step of exactly ``rows`` rows, with inputs at fixed addresses.

    Args:
        single: every sequence has one row, which some kernels compute differently.
        blocks: maximum cache blocks of a sequence.
        max_position: largest position of any token, over all steps.
    """

    def __init__(self, model: LlamaForCausalLM, rows: int, blocks: int, single: bool, max_position: int) -> None:
        self.model = model
        self.rows = rows
        self.single = single
        sizes = {
            "ids": rows,
            "positions": rows,
            "slots": rows,
            "key_lens": rows,
            "cumulative_queries": rows + 1,
            "cumulative_keys": rows + 1,
            "tables": rows * blocks,
        }
        total = sum(sizes.values())
        self._host = torch.zeros(total, dtype=torch.int32, pin_memory=model.device.type == "cuda")
        self._device = torch.zeros(total, dtype=torch.int32, device=model.device)
        names = list(sizes)
        parts = [part.numpy() for part in torch.split(self._host, list(sizes.values()))]
        self._fields = dict(zip(names, parts, strict=True))
        self._tables = self._fields["tables"].reshape(rows, blocks)
        sent = dict(zip(names, torch.split(self._device, list(sizes.values())), strict=True))
        self._ids_R = sent["ids"]
        self._positions_R, self._slots_R = sent["positions"], sent["slots"]
        self._rows_R = torch.arange(rows, device=model.device)
        self._max_position = max_position
        self._plan = PagedPlan(
            queries=rows,
            cumulative_queries_S1=sent["cumulative_queries"],
            key_lens_S=sent["key_lens"],
            cumulative_keys_S1=sent["cumulative_keys"],
            block_table_SP=sent["tables"].view(rows, blocks),
            max_queries=1 if single else MAX_QUERIES,
            max_keys=blocks * model.backend.block_size,
        )

    def fill(self, model_input: ModelInput) -> None:
        """Copy a step's inputs to the device. The previous step must have run."""
        rows, padding = len(model_input.ids), self.rows - len(model_input.ids)
        queries, starts, tables = (
            list(model_input.query_lens),
            list(model_input.starts),
            list(model_input.block_tables),
        )
        extra = [1] * padding if self.single else [padding] if padding else []
        queries += extra
        starts += [0] * len(extra)
        tables += [[SCRATCH]] * len(extra)
        positions, slots = positions_and_slots(starts, queries, tables, self.model.backend.block_size)
        key_lens = [start + count for start, count in zip(starts, queries, strict=True)]
        unused = self.rows - len(queries)
        fields = self._fields
        fields["ids"][:rows] = model_input.ids
        fields["ids"][rows:] = 0
        fields["positions"][:] = positions
        fields["slots"][:] = slots
        fields["key_lens"][:] = key_lens + [0] * unused
        fields["cumulative_queries"][:] = [0, *accumulate(queries + [0] * unused)]
        fields["cumulative_keys"][:] = [0, *accumulate(key_lens + [0] * unused)]
        for row, table in enumerate(tables):  # entries beyond a table are not read
            self._tables[row, : len(table)] = table
        self._device.copy_(self._host, non_blocking=True)

    def forward(self, cache: KVCache, out_RV: Tensor | None = None) -> Tensor:
        """Return the logits of all rows, padding included (RV, float32). Reads only device memory.

        Args:
            out_RV: receives the logits.
        """
        step = Step(
            ids_T=self._ids_R,
            positions_T=self._positions_R.long(),
            max_position=self._max_position,
            slots=self.model.backend.slots(self._slots_R.long()),
            rows_R=self._rows_R,
            plan=self._plan,
        )
        return self.model.decode(step, cache, out_RV)


class DecodeGraphs:
    """The graphs of one engine.

    Args:
        limit: maximum tokens of a sequence.
    """

    def __init__(self, model: LlamaForCausalLM, cache: KVCache, limit: int) -> None:
        self._model = model
        self._cache = cache
        self._limit = limit
        self._graphs: dict[tuple[int, int, bool], tuple[StaticStep, Any]] = {}
        self._logits_RV = torch.empty(ROWS[-1], model.config.vocab_size, device=model.device)
        """Of the step that ran last; shared by all graphs."""
        self._pool: Any = None
        self.last_graph: Any = None
        """The ``torch.cuda.CUDAGraph`` that ran last. Replaying it computes the same step again."""
        model.rope.reserve(limit)  # the graphs contain the address of its table

    @classmethod
    def create(cls, model: LlamaForCausalLM, cache: KVCache, limit: int) -> DecodeGraphs | None:
        """Return None if steps cannot be captured: on a CPU, with SDPA, with RoPE that depends on
        the sequence's length, or with tensor parallelism."""
        paged = isinstance(model.backend, PagedBackend) and model.device.type == "cuda"
        if not paged or model.shard.count > 1 or model.config.rope.depends_on_length:
            return None
        return cls(model, cache, limit)

    @property
    def graph_count(self) -> int:
        """Number of captured graphs."""
        return len(self._graphs)

    def logits(self, model_input: ModelInput) -> Tensor | None:
        """Return the logits of a step (RV, float32), in memory that the next step overwrites; None: no graph fits."""
        rows = len(model_input.ids)
        if rows > ROWS[-1] or len(model_input.rows) != rows or max(model_input.query_lens) > MAX_QUERIES:
            return None
        blocks = MIN_BLOCKS
        while blocks < max(map(len, model_input.block_tables)):
            blocks *= 2
        key = (ROWS[bisect_left(ROWS, rows)], blocks, rows == len(model_input.query_lens))
        if key not in self._graphs:
            self._graphs[key] = self._capture(StaticStep(self._model, *key, self._limit - 1), model_input)
        static, graph = self._graphs[key]
        static.fill(model_input)
        graph.replay()
        self.last_graph = graph
        return self._logits_RV[:rows]

    def _capture(self, static: StaticStep, model_input: ModelInput) -> tuple[StaticStep, Any]:
        """Run the step once, so that everything is allocated and compiled, then capture it."""
        static.fill(model_input)
        stream = torch.cuda.Stream(self._model.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._model.device))
        with torch.cuda.stream(stream):
            static.forward(self._cache, self._logits_RV)
        torch.cuda.current_stream(self._model.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            static.forward(self._cache, self._logits_RV)
        self._pool = self._pool or graph.pool()
        return static, graph
