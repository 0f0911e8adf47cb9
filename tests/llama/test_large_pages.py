"""Memory of weights and cache: zeroed, on large pages where Linux supports them, and freed with its last tensor."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.large_pages import Arena, zeros

_STATM = Path("/proc/self/statm")
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def mapped(address: int) -> dict[str, str]:
    """Linux's description of the mapping that contains an address."""
    found: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            begin, end = (int(part, 16) for part in name.split("-"))
            inside = begin <= address < end
        elif inside:
            found[name] = rest.strip()
    return found


def resident_bytes() -> int:
    """Of this process; 0 where it is unknown. Linux joins neighbouring mappings, so a tensor has none of its own."""
    if not _STATM.exists():
        return 0
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def test_memory_is_zero_and_allocated_on_first_write() -> None:
    before = resident_bytes()
    found = zeros([1 << 20, 256], torch.float32)
    assert found.shape == (1 << 20, 256)
    assert resident_bytes() - before < found.nbytes / 8  # other threads may allocate
    assert not found[:: 1 << 16].any()


@pytest.mark.skipif(not _THP.exists() or "[never]" in _THP.read_text(), reason="Linux gives no large pages here")
def test_it_uses_large_pages() -> None:
    found = zeros([64 << 20], torch.uint8)
    found.fill_(1)
    assert int(mapped(found.data_ptr())["AnonHugePages:"].split()[0]) >= 32 << 10


def test_tensors_of_an_arena_do_not_overlap_and_keep_its_memory() -> None:
    arena = Arena()
    made = [arena.empty(count, dtype) for count in (1, 1000, 40 << 20) for dtype in (torch.bfloat16, torch.float32)]
    for number, tensor in enumerate(made):
        tensor[:1], tensor[-1:] = number, number
        assert tensor.data_ptr() % 64 == 0
    del arena
    gc.collect()
    assert [(tensor[0].item(), tensor[-1].item()) for tensor in made] == [(n, n) for n in range(len(made))]
    assert made[1].data_ptr() - made[0].data_ptr() == 64
