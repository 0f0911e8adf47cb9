"""What memory there is for the key-value cache."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

__all__ = ["available_bytes", "free_bytes"]

_log = logging.getLogger(__name__)

CPU_SHARE = 0.5
"""Part of the free memory that the cache may grow to; other processes and activations need the rest."""

CUDA_SHARE = 0.9


def available_bytes(device: torch.device) -> int:
    """Bytes that a cache on ``device`` may take, weights being loaded already: a share of :func:`free_bytes`."""
    return int(free_bytes(device) * (CUDA_SHARE if device.type == "cuda" else CPU_SHARE))


def free_bytes(device: torch.device) -> int:
    """Bytes that are free. On a CPU: what the kernel calls available, or what the control group leaves if less."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _meminfo_available()
    limit = _cgroup_left()
    return free if limit is None else min(free, limit)


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        _log.debug("no /proc/meminfo on this system")
    return 4 << 30


def _cgroup_left() -> int | None:
    """Bytes below the limit of this process's control group (version 2, then 1), or None without a limit."""
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            text = Path(limit).read_text().strip()
            if text != "max" and int(text) < 1 << 60:
                return max(0, int(text) - int(Path(usage).read_text()))
        except (OSError, ValueError):
            continue
    return None
