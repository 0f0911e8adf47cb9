"""The paged key-value cache: its memory and the allocation of its blocks.

Blocks are reference-counted. A full block is registered under the hash of all tokens up to its end, so later
sequences with the same prefix find it. An unreferenced block keeps its content until it is reallocated, least
recently used first (automatic prefix caching of vLLM, Kwon et al., 2023). Where a shared prefix ends within a block,
that part is copied from a block with the same predecessors instead of being computed again.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import torch

from swe_infer.llama.large_pages import zeros

SCRATCH = 0
"""The block that padding rows write to. It is never allocated."""


class KVCache:
    """Keys and values of all layers: two pools for each layer, in the shape of the attention backend.

    On a CPU physical memory is allocated when a page is first written (:mod:`swe_infer.llama.large_pages`), so a
    large unused cache costs nothing.

    Args:
        pool_shape: of the keys of one layer; the first dimension is the number of blocks.
        block_size: tokens per block.
    """

    def __init__(
        self, layers: int, pool_shape: tuple[int, ...], block_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (2, layers, *pool_shape)
        self.block_size = block_size
        self.blocks = pool_shape[0]
        self.nbytes = math.prod(shape) * dtype.itemsize
        on_cpu = device.type == "cpu"
        self._pool = pool = zeros(shape, dtype) if on_cpu else torch.zeros(shape, device=device, dtype=dtype)
        self.keys = list(pool[0].unbind(0))
        self.values = list(pool[1].unbind(0))

    def copy(self, source: int, target: int) -> None:
        """Copy a block in all layers."""
        self._pool[:, :, target] = self._pool[:, :, source]

    @staticmethod
    def block_bytes(layers: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one block over all layers."""
        return 2 * layers * block_size * kv_heads * head_dim * dtype.itemsize


def block_hashes(tokens: Sequence[int], block_size: int, salt: bytes, known: list[bytes]) -> list[bytes]:
    """Return the hashes of the full blocks of ``tokens``. ``known`` contains the first ones and is extended in place.

    ``salt`` separates prompts whose keys depend on more than the preceding tokens.
    """
    for index in range(len(known), len(tokens) // block_size):
        parent = known[-1] if known else salt
        content = array("q", tokens[index * block_size : (index + 1) * block_size]).tobytes()
        known.append(hashlib.blake2b(parent + content, digest_size=16).digest())
    return known


class BlockPool:
    """Allocates blocks by number. Does not touch tensors."""

    def __init__(self, blocks: int) -> None:
        self._unused = list(range(blocks - 1, SCRATCH, -1))
        self._refcounts = [0] * blocks
        self._hashes: dict[int, bytes] = {}
        self._by_hash: dict[bytes, int] = {}
        self._contents: dict[int, tuple[bytes, array[int], int]] = {}
        self._children: dict[bytes, dict[int, None]] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self.total = blocks - 1

    @property
    def free(self) -> int:
        """Number of blocks that can be allocated, including unreferenced ones with reusable content."""
        return len(self._unused) + len(self._evictable)

    @property
    def used(self) -> int:
        return self.total - self.free

    def lookup(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest registered prefix of ``hashes``. Reference counts do not change."""
        found = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def count_unreferenced(self, blocks: Sequence[int]) -> int:
        """Number of ``blocks`` without a reference, for which :meth:`incref` lowers :attr:`free`."""
        return sum(self._refcounts[block] == 0 for block in blocks)

    def incref(self, blocks: Sequence[int]) -> None:
        """Add a reference to blocks that :meth:`lookup` returned."""
        for block in blocks:
            if self._refcounts[block] == 0:
                del self._evictable[block]
            self._refcounts[block] += 1

    def allocate(self) -> int:
        """Return a block for new content, with one reference.

        Raises:
            IndexError: no block is free; callers check :attr:`free` first.
        """
        if self._unused:
            block = self._unused.pop()
        elif self._evictable:
            block, _ = self._evictable.popitem(last=False)
            self._evict(block)
        else:
            raise IndexError("no cache block is free")
        self._refcounts[block] = 1
        return block

    def register(self, block: int, block_hash: bytes) -> None:
        """Register a full block under its hash. The first block of a hash keeps it."""
        if block_hash not in self._by_hash and block not in self._hashes:
            self._by_hash[block_hash] = block
            self._hashes[block] = block_hash

    def register_partial(self, block: int, parent: bytes, tokens: Sequence[int], step: int) -> None:
        """Register the tokens of a block, full or not, for :meth:`find_partial`.

        Args:
            parent: hash of the preceding block; the salt for a first block.
            tokens: whose keys and values are in the block.
            step: the step that writes them.
        """
        self._contents[block] = (parent, array("q", tokens), step)
        self._children.setdefault(parent, {})[block] = None

    def find_partial(self, parent: bytes, tokens: Sequence[int], before: int) -> tuple[int, int]:
        """Return ``(block, count)``: the block after ``parent``, written before step ``before``, that shares the most
        leading ``tokens``, and their number. ``(SCRATCH, 0)`` if no block does."""
        best = (SCRATCH, 0)
        for block in self._children.get(parent, ()):
            _, held, step = self._contents[block]
            if step >= before:
                continue
            count = 0
            for one, other in zip(tokens, held, strict=False):
                if one != other:
                    break
                count += 1
            if count > best[1]:
                best = (block, count)
        return best

    def _evict(self, block: int) -> None:
        """Remove a block from the indexes."""
        name = self._hashes.pop(block, None)
        if name is not None:
            del self._by_hash[name]
        content = self._contents.pop(block, None)
        if content is not None:
            siblings = self._children[content[0]]
            del siblings[block]
            if not siblings:
                del self._children[content[0]]

    def decref(self, blocks: Sequence[int]) -> None:
        """Drop a reference to each block. Later blocks of a sequence are evicted first: prefixes are shared more
        often."""
        for block in reversed(blocks):
            self._refcounts[block] -= 1
            if self._refcounts[block]:
                continue
            if block in self._hashes or block in self._contents:
                self._evictable[block] = None
            else:
                self._unused.append(block)

    def clear_cached(self) -> None:
        """Evict the content of all unreferenced blocks."""
        for block in self._evictable:
            self._evict(block)
            self._unused.append(block)
        self._evictable.clear()
