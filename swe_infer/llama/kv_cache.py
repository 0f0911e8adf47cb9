"""The paged key-value cache: its memory, and who holds which block.

Blocks are counted by reference. A full block has a name, the hash of all tokens up to its end, under which any later
sequence with the same beginning finds it. A block that nobody holds keeps its content until its place is needed, the
least recently used first (vLLM's automatic prefix caching, Kwon et al., 2023). Where a beginning ends within a block,
the part that is alike is copied from any block that follows the same blocks, so that it is not computed again.
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
"""The block that padding rows write to. It is never handed out."""


class KVCache:
    """Keys and values of all layers: for each layer two pools in the shape that the attention backend reads.

    On a CPU memory is real only where it was touched (:mod:`swe_infer.llama.large_pages`). So a large cache costs
    nothing until it is used.

    Args:
        pool_shape: of the keys of one layer; its first dimension counts blocks.
        block_size: tokens a block.
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
        """Bytes that one block takes in all layers together."""
        return 2 * layers * block_size * kv_heads * head_dim * dtype.itemsize


def block_hashes(tokens: Sequence[int], block_size: int, salt: bytes, known: list[bytes]) -> list[bytes]:
    """The names of the full blocks of ``tokens``. ``known`` holds those of the first ones and is extended in place.

    ``salt`` sets apart what tokens alone do not: prompts whose keys depend on more than the tokens before them.
    """
    for index in range(len(known), len(tokens) // block_size):
        parent = known[-1] if known else salt
        content = array("q", tokens[index * block_size : (index + 1) * block_size]).tobytes()
        known.append(hashlib.blake2b(parent + content, digest_size=16).digest())
    return known


class BlockPool:
    """Hands out blocks by number. It knows nothing of tensors."""

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
        """Blocks that can be had now, those that hold reusable content included."""
        return len(self._unused) + len(self._evictable)

    @property
    def used(self) -> int:
        return self.total - self.free

    def lookup(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks that hold the longest known beginning of ``names``. Nothing is taken yet."""
        found = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def count_unreferenced(self, blocks: Sequence[int]) -> int:
        """How many of ``blocks`` nobody holds, so that taking them lowers :attr:`free`."""
        return sum(self._refcounts[block] == 0 for block in blocks)

    def incref(self, blocks: Sequence[int]) -> None:
        """Hold blocks that :meth:`lookup` found."""
        for block in blocks:
            if self._refcounts[block] == 0:
                del self._evictable[block]
            self._refcounts[block] += 1

    def allocate(self) -> int:
        """A block for new content.

        Raises:
            IndexError: none is free; the caller looks at :attr:`free` first.
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
        """Make a full block findable. The first block of a name keeps it."""
        if block_hash not in self._by_hash and block not in self._hashes:
            self._by_hash[block_hash] = block
            self._hashes[block] = block_hash

    def register_partial(self, block: int, parent: bytes, tokens: Sequence[int], step: int) -> None:
        """Make the beginning of a block findable, full or not.

        Args:
            parent: the name of the block before; the salt for a first block.
            tokens: those whose keys and values it holds.
            step: the step that writes them.
        """
        self._contents[block] = (parent, array("q", tokens), step)
        self._children.setdefault(parent, {})[block] = None

    def find_partial(self, parent: bytes, tokens: Sequence[int], before: int) -> tuple[int, int]:
        """``(block, count)``: the block after ``parent``, written before step ``before``, that begins with most of
        ``tokens``, and with how many of them. The scratch block and 0 if there is none."""
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
        """Forget what a block holds."""
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
        """Let go of a sequence's blocks. Later ones are reused first: a beginning is worth more than its end."""
        for block in reversed(blocks):
            self._refcounts[block] -= 1
            if self._refcounts[block]:
                continue
            if block in self._hashes or block in self._contents:
                self._evictable[block] = None
            else:
                self._unused.append(block)

    def clear_cached(self) -> None:
        """Give up the content of all blocks that nobody holds."""
        for block in self._evictable:
            self._evict(block)
            self._unused.append(block)
        self._evictable.clear()
