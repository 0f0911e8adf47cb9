"""How much memory a device has, and how much of it the key-value cache gets.

On a GPU the largest forward pass runs once before the cache is allocated, and the cache gets what is free less the
memory of that pass and a reserve. On a CPU it gets a share of the free memory; only pages in use are allocated.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

from swe_infer.errors import ConfigError
from swe_infer.llama.drafting.gain import MAX_DRAFT
from swe_infer.llama.kv_cache import SCRATCH
from swe_infer.llama.model import LlamaForCausalLM, ModelInput

_log = logging.getLogger(__name__)

CPU_SHARE = 0.5
"""Share of the free memory that the cache may use; other processes and activations need the rest."""

FRAGMENTATION = 1.25
"""Memory of a pass as a multiple of its tensors: the allocator cannot reuse every gap."""

_GROUP_FILES = {
    "": (("memory.max", "memory.current"), "inactive_file"),
    "memory": (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
}
"""The files with the limit and usage of a control group, and the entry of ``memory.stat`` with the content of files
that is dropped first. By the controllers in its line of ``/proc/self/cgroup``, which are empty for version 2."""


class DeviceMemory:
    """The memory of one device. A subclass may simulate another device.

    Attributes:
        measures_passes: whether the largest pass is run to measure its memory; on a CPU a share is kept for it.
    """

    reserve_bytes = 1 << 30
    """Bytes that stay free on a GPU for CUDA graphs, their logits, copies that attention keeps, and libraries."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.measures_passes = device.type == "cuda"

    def free_bytes(self) -> int:
        """Free bytes. On a CPU: MemAvailable, or what the limits of the process leave if that is less."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            return int(torch.cuda.mem_get_info(self.device)[0])
        free = _meminfo_available()
        limit = _limit_left()
        return free if limit is None else min(free, limit)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Run ``work``. Return the largest number of bytes of the tensors that it allocates and frees again."""
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device)


def cache_bytes(memory: DeviceMemory, run_largest_pass: Callable[[], object]) -> int:
    """The bytes that the cache of one rank may have, once the weights are loaded; 0 or less if nothing is left.

    Args:
        run_largest_pass: runs the input of :func:`largest_pass`.

    Raises:
        ConfigError: the pass does not fit.
    """
    if not memory.measures_passes:
        return int(memory.free_bytes() * CPU_SHARE)
    try:
        peak = memory.peak_bytes(run_largest_pass)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"runner.max_batch_tokens: {memory.device} has too little memory beside the weights for the largest "
            "forward pass; lower it, or model.context_window"
        ) from error
    free = memory.free_bytes()
    _log.debug("%s: %.2f GB free, the largest pass needs %.2f GB", memory.device, free / 1e9, peak / 1e9)
    return free - int(FRAGMENTATION * peak) - memory.reserve_bytes


def largest_pass(model: LlamaForCausalLM, context: int, max_batch_tokens: int, max_sequences: int) -> ModelInput:
    """The input of the pass that needs most memory: as many sequences as possible, each with a context of ``context``
    tokens, the first with a long chunk of its prompt, and the logits of as many rows as drafts may have.

    All cache blocks are the scratch block, so that a cache of one block suffices.
    """
    counts: list[int] = []
    for others in reversed(range(max_sequences)):
        left = max_batch_tokens - sum(counts)
        if left > 0:
            counts.append(max(1, min(context, left - others)))
    total, size = sum(counts), model.backend.block_size
    return ModelInput(
        [0] * total,
        [context - count for count in counts],
        counts,
        [[SCRATCH] * -(-context // size)] * len(counts),
        range(min(total, max_sequences * (1 + MAX_DRAFT))),
        [context] * total if model.config.rope.depends_on_length else None,
    )


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        _log.debug("no /proc/meminfo on this system")
    return 4 << 30


def _limit_left() -> int | None:
    """Bytes left below the lowest limit of this process: of its control groups, and of its address space (``ulimit
    -v``); None without a limit."""
    return min((*_groups_left(), *_addresses_left()), default=None)


def _addresses_left() -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):  # not Linux
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            yield max(0, limit - pages * resource.getpagesize())


def _groups_left(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes left in each control group with a limit that contains this process (versions 1 and 2).

    The content of files that is likely to be dropped first does not count as used.
    """
    try:
        lines = own.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in _GROUP_FILES:
            continue
        folder = root / controllers / path.lstrip("/")
        # In a container a group above this one may be mounted as the root.
        for group in (folder, *folder.parents[: len(folder.parts) - len(root.parts)]):
            names, unused = _GROUP_FILES[controllers]
            with suppress(OSError, ValueError):  # the root group has no such file, and "max" is no limit
                limit, used = (int((group / name).read_text()) for name in names)
                if limit < 1 << 60:
                    yield max(0, limit - used + min(used, _entry(group / "memory.stat", unused)))


def _entry(stat: Path, name: str) -> int:
    """The number of an entry of ``memory.stat``; 0 without it, as in some sandboxes."""
    with suppress(OSError, ValueError, KeyError):
        return int(dict(line.split() for line in stat.read_text().splitlines())[name])
    return 0
