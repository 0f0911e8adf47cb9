"""Where a model runs and in which type: device, dtype, what the CPU multiplies, and whether there is memory for it.

``ONEDNN_MAX_CPU_ISA`` limits what oneDNN reports, so a slower processor's paths can be run on a faster one.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from swe_infer.errors import ConfigError

_log = logging.getLogger(__name__)

_SMALL = 250_000_000
"""Parameters of a model whose weights are kept in float32 for arithmetic in float32: it takes a gigabyte at most, and
converting matrices of this size costs more than reading them costs. Larger ones are faster in 16 bits; measured in
``benchmarks/README.md``."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_ONEDNN_SUPPORT = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}

_BFLOAT16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Instructions that multiply bfloat16, in the words of :func:`torch.cpu.get_capabilities`; the last two are ARM's."""

CPU_SHARE = 0.5
"""Part of the free memory that the cache may grow to; other processes and activations need the rest."""

CUDA_SHARE = 0.9


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA where there is one.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device={name}: not a device; cpu, cuda and cuda:0 are") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"model.device={name}: the engine runs on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"model.device={name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def worker_devices(name: str, workers: int | None) -> list[str]:
    """The device of each worker. Workers beyond the number of GPUs share them.

    Raises:
        ConfigError: no such device on this machine.
    """
    device = choose_device(name)
    if str(device) == "cuda":  # no index: all of them
        gpus = torch.cuda.device_count()
        return [f"cuda:{i % gpus}" for i in range(workers or gpus)]
    return [str(device)] * (workers or 1)


def choose_dtype(name: str, device: torch.device, checkpoint: str | None) -> torch.dtype:
    """The type of the arithmetic. ``auto`` takes bfloat16 on a GPU. On a CPU it takes the checkpoint's own type where
    products of that are fast, and float32 elsewhere: always for float16, and for bfloat16 on many CPUs.
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    if checkpoint == "bfloat16" and fast_bfloat16():
        return torch.bfloat16
    if checkpoint in ("bfloat16", "float16"):
        _log.info("model.dtype=auto: arithmetic in float32, because this CPU is slow at %s", checkpoint)
    return torch.float32


def choose_weight_dtype(
    dtype: torch.dtype, device: torch.device, stored: torch.dtype | None, parameters: int, free: int, *, adapted: bool
) -> torch.dtype:
    """The type in which weights are kept: that of the arithmetic, but on a CPU the checkpoint's own where that has 16
    bits, the arithmetic is float32, and the model is large. Nothing is lost and half the memory is read.

    With an adapter merged, weights have more precision than the checkpoint, and are kept in float32 if that fits.

    Args:
        dtype: of the arithmetic.
        stored: of all the checkpoint's matrices; None: they have several.
        parameters: how many there are.
        free: bytes of memory.
        adapted: whether an adapter will be merged.
    """
    if device.type != "cpu" or dtype != torch.float32 or stored not in (torch.bfloat16, torch.float16):
        return dtype
    if parameters < _SMALL:
        return dtype
    wide = parameters * dtype.itemsize
    if adapted and wide <= free:
        return dtype
    if adapted:
        _log.warning(
            "model.peft_path: merged in %s, because weights in float32 take %.1f GB and %s has %.1f GB free",
            str(stored).removeprefix("torch."),
            wide / 1e9,
            device,
            free / 1e9,
        )
    return stored


def check_memory(weights: int, free: int, device: torch.device) -> None:
    """Refuse weights that cannot fit, before minutes go into reading them. Sizes are in bytes.

    Raises:
        ConfigError: they exceed the free memory.
    """
    if weights > free:
        raise ConfigError(
            f"model.path: the weights take {weights / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free; "
            "model.tensor_parallel=N divides them among N GPUs, and model.device=cpu helps where the machine's "
            "memory is larger"
        )


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has products of this 16-bit type here, be they emulated with wider ones. Where it has not, it
    refuses to pack a weight of the type, and torch multiplies element by element."""
    supported = getattr(torch.ops.mkldnn, _ONEDNN_SUPPORT[dtype], None)  # None in a torch without oneDNN
    return supported is not None and bool(supported())


def fast_bfloat16() -> bool:
    """Whether products of bfloat16 are faster here than those of float32."""
    capabilities = torch.cpu.get_capabilities()
    return onednn_multiplies(torch.bfloat16) and any(capabilities.get(name) for name in _BFLOAT16_PRODUCTS)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which elements of ``dtype`` are multiplied: float32 where the CPU cannot multiply 16 bits."""
    slow = device.type == "cpu" and dtype in _ONEDNN_SUPPORT and not onednn_multiplies(dtype)
    return torch.float32 if slow else dtype


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
