"""The interface of attention backends, and the choice among them.

Shape suffixes: T packed tokens, H query heads, K key-value heads, D head dimension, N cache blocks, B tokens per
block, S sequences, P blocks of the longest sequence.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from swe_infer.errors import ConfigError
from swe_infer.types import AttentionChoice

PlanT = TypeVar("PlanT")


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Dimensions, device and dtype of attention."""

    heads: int
    kv_heads: int
    head_dim: int
    device: torch.device
    dtype: torch.dtype

    @property
    def group(self) -> int:
        """Query heads for each key-value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Layout:
    """Which packed query rows belong to which sequence. All lists are on the host and have S entries.

    Sequence ``s`` has ``query_lens[s]`` rows: the last of its ``key_lens[s]`` tokens, whose keys and values are in
    the cache blocks ``block_tables[s]``. Each row attends to the keys up to its own.
    """

    query_lens: Sequence[int]
    key_lens: Sequence[int]
    block_tables: Sequence[Sequence[int]]


class AttentionBackend(ABC, Generic[PlanT]):
    """Causal grouped-query attention of packed queries over a paged cache.

    ``plan`` prepares a layout once per step; ``attend`` uses the plan in every layer. A pool is NBKD unless a backend
    overrides :meth:`pool_shape`.
    """

    block_size: int
    """The backend's preferred number of tokens per cache block."""

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape

    @classmethod
    @abstractmethod
    def why_not(cls, shape: AttentionShape) -> str | None:
        """The reason why this backend cannot run ``shape`` on this machine; None if it can."""

    @abstractmethod
    def plan(self, layout: Layout) -> PlanT:
        """Prepare ``layout`` on the device."""

    def pool_shape(self, blocks: int) -> tuple[int, int, int, int]:
        """Shape of the keys (or values) of one layer."""
        return (blocks, self.block_size, self.shape.kv_heads, self.shape.head_dim)

    def slots(self, places_T: Tensor) -> Tensor:
        """Convert each token's ``block * block_size + offset`` to the argument of :meth:`write`, once per step."""
        return places_T

    def write(self, k_pool: Tensor, v_pool: Tensor, k_TKD: Tensor, v_TKD: Tensor, slots: Tensor) -> None:
        """Write each token's key and value into the pools of its layer."""
        k_pool.flatten(0, 1).index_copy_(0, slots, k_TKD)
        v_pool.flatten(0, 1).index_copy_(0, slots, v_TKD)

    @abstractmethod
    def attend(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: PlanT, window: int | None = None) -> Tensor:
        """Return the attention output THD over pools of :meth:`pool_shape`. Rows beyond the layout are padding; their
        output is zero.

        Args:
            window: number of keys that each row sees, its own included; None: all.
        """


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """Arguments of paged flash-attention kernels; tensors are int32 on the device.

    ``max_queries`` and ``max_keys`` are upper bounds; a larger bound gives the same result.
    """

    queries: int
    cumulative_queries_S1: Tensor
    key_lens_S: Tensor
    cumulative_keys_S1: Tensor
    block_table_SP: Tensor
    max_queries: int
    max_keys: int


class PagedBackend(AttentionBackend[PagedPlan]):
    """A flash-attention kernel on CUDA with block tables of 256 tokens per block."""

    block_size = 256

    @classmethod
    def why_not(cls, shape: AttentionShape) -> str | None:
        if shape.device.type != "cuda":
            return f"needs a CUDA device, and this is {shape.device.type}"
        if shape.dtype not in (torch.bfloat16, torch.float16):
            return f"needs bfloat16 or float16, and this is {shape.dtype}"
        if torch.cuda.get_device_capability(shape.device) < (8, 0):
            return "needs compute capability 8.0"
        if shape.head_dim > 256 or shape.head_dim % 8:
            return f"head_dim {shape.head_dim} is not a multiple of 8 up to 256"
        return None

    def plan(self, layout: Layout) -> PagedPlan:
        """Copy the layout to the device asynchronously, from pinned memory."""
        width = max((len(table) for table in layout.block_tables), default=1)

        def send(values: object) -> Tensor:
            tensor = torch.tensor(values, dtype=torch.int32, pin_memory=self.shape.device.type == "cuda")
            return tensor.to(self.shape.device, non_blocking=True)

        return PagedPlan(
            queries=sum(layout.query_lens),
            cumulative_queries_S1=send([0, *accumulate(layout.query_lens)]),
            key_lens_S=send(list(layout.key_lens)),
            cumulative_keys_S1=send([0, *accumulate(layout.key_lens)]),
            block_table_SP=send([[*table, *[0] * (width - len(table))] for table in layout.block_tables]),
            max_queries=max(layout.query_lens, default=0),
            max_keys=max(layout.key_lens, default=0),
        )

    def attend(
        self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: PagedPlan, window: int | None = None
    ) -> Tensor:
        if plan.queries == len(q_THD):
            return self.kernel(q_THD, k_pool, v_pool, plan, window)
        out_THD = torch.zeros_like(q_THD)
        out_THD[: plan.queries] = self.kernel(q_THD[: plan.queries], k_pool, v_pool, plan, window)
        return out_THD

    @abstractmethod
    def kernel(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: PagedPlan, window: int | None) -> Tensor:
        """:meth:`attend` without padding rows."""


def choose_backend(choice: AttentionChoice, shape: AttentionShape) -> AttentionBackend[Any]:
    """Return the first backend of ``choice`` that works.

    Raises:
        ConfigError: a name is unknown, or no backend works; the error gives the reason of each.
    """
    known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "base"))
    reasons = []
    for name in choice.backends:
        if name not in known:
            raise ConfigError(f"model.attention.backends: unknown backend {name}; there are {', '.join(known)}")
        backend: type[AttentionBackend[Any]] = importlib.import_module(f"swe_infer.llama.attention.{name}").Backend
        reason = backend.why_not(shape)
        if reason is None:
            return backend(shape)
        reasons.append(f"{name}: {reason}")
    raise ConfigError(f"model.attention.backends: none works here ({'; '.join(reasons)})")
