"""Memory on large pages, for what every pass reads through: weights and cache.

With pages of 4 kB each of them is looked up on its own, which on a virtual machine takes half as long as reading it:
a pass of 8 rows over 200 MB of weights took 14.2 ms, and 9.5 ms with pages of 2 MB. Linux gives those where they are
asked for, unless ``/sys/kernel/mm/transparent_hugepage/enabled`` says ``never``.
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
"""Bytes: a line of the processor's cache."""


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU. Their memory is real only where it was touched, a page at a time."""
    nbytes = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(_mapping(nbytes), dtype=dtype).view(*shape)


class Arena:
    """Memory for tensors that are kept together, so that small ones share a large page. It is freed with the last of
    them."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        """A tensor of one dimension on the CPU."""
        nbytes = count * dtype.itemsize
        if self._used + nbytes > len(self._chunk):
            self._chunk = zeros([max(_CHUNK, nbytes)], torch.uint8)
            self._used = 0
        found = self._chunk[self._used : self._used + nbytes].view(dtype)
        self._used += -(-nbytes // _ALIGNED) * _ALIGNED
        return found


def _mapping(nbytes: int) -> mmap.mmap:
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux alone has it
    if advice is None:
        return mmap.mmap(-1, nbytes)
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that was built without
        mapping.madvise(advice)
    return mapping
