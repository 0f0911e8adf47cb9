"""CPU memory on large pages (2 MB), for weights and cache.

Every step reads all of the weights, and with pages of 4 kB address translation limits the bandwidth. Linux grants
large pages on request, unless ``/sys/kernel/mm/transparent_hugepage/enabled`` is ``never``. Figures:
``benchmarks/README.md``.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_CHUNK = 64 << 20
_ALIGNED = 64
"""Bytes of a cache line."""


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return zeros on the CPU. Physical memory is allocated page by page on first write."""
    nbytes = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(_mapping(nbytes), dtype=dtype).view(*shape)


class Arena:
    """Allocates tensors that live together from shared chunks, so that small ones share a large page. A chunk is
    freed with the last tensor in it."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised one-dimensional tensor on the CPU."""
        nbytes = count * dtype.itemsize
        if self._used + nbytes > len(self._chunk):
            self._chunk = zeros([max(_CHUNK, nbytes)], torch.uint8)
            self._used = 0
        found = self._chunk[self._used : self._used + nbytes].view(dtype)
        self._used += -(-nbytes // _ALIGNED) * _ALIGNED
        return found


def _mapping(nbytes: int) -> mmap.mmap:
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # only on Linux
    if advice is None:
        return mmap.mmap(-1, nbytes)
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without transparent huge pages
        mapping.madvise(advice)
    return mapping
