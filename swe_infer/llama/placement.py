"""Chooses device and dtypes of a model, and checks that its weights fit in memory.

``ONEDNN_MAX_CPU_ISA`` limits what oneDNN reports, so a slower CPU's code paths can run on a faster one.
"""

from __future__ import annotations

import logging

import torch

from swe_infer.errors import ConfigError

_log = logging.getLogger(__name__)

_SMALL = 250_000_000
"""Parameters up to which weights stay in float32 for arithmetic in float32: a gigabyte at most, and converting small
matrices costs more than reading them. Larger models are faster in 16 bits. Figures: ``benchmarks/README.md``."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_ONEDNN_SUPPORT = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}

_BFLOAT16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""CPU features that multiply bfloat16, as named by :func:`torch.cpu.get_capabilities`; the last two are ARM's."""


def choose_device(name: str) -> torch.device:
    """Return the named device; ``auto`` is CUDA if available, else the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device={name}: not a device; use cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"model.device={name}: the engine runs on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"model.device={name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def worker_devices(name: str, workers: int | None) -> list[str]:
    """Return the device of each worker. More workers than GPUs share them.

    Raises:
        ConfigError: this machine has no such device.
    """
    device = choose_device(name)
    if str(device) == "cuda":  # without an index: all GPUs
        gpus = torch.cuda.device_count()
        return [f"cuda:{i % gpus}" for i in range(workers or gpus)]
    return [str(device)] * (workers or 1)


def choose_dtype(name: str, device: torch.device, checkpoint: str | None) -> torch.dtype:
    """Return the type of the arithmetic. ``auto`` is bfloat16 on a GPU. On a CPU it is the checkpoint's type where
    its products are fast, else float32: always for float16, and for bfloat16 on many CPUs."""
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    if checkpoint == "bfloat16" and fast_bfloat16():
        return torch.bfloat16
    if checkpoint in ("bfloat16", "float16"):
        _log.info("model.dtype=auto: computing in float32, because this CPU is slow at %s", checkpoint)
    return torch.float32


def choose_weight_dtype(
    dtype: torch.dtype, device: torch.device, stored: torch.dtype | None, parameters: int, free: int, *, adapted: bool
) -> torch.dtype:
    """Return the type in which weights are stored: ``dtype``, except on a CPU for large 16-bit models with arithmetic
    in float32, which keep the checkpoint's type. That is exact and halves the memory traffic.

    With an adapter merged, weights have more precision than the checkpoint and are stored in float32 if that fits.

    Args:
        dtype: of the arithmetic.
        stored: of all matrices in the checkpoint; None: they differ.
        parameters: number of parameters.
        free: free memory in bytes.
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
    """Raises ConfigError if ``weights`` exceed ``free`` bytes, before they are read."""
    if weights > free:
        raise ConfigError(
            f"model.path: the weights take {weights / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free; "
            "model.tensor_parallel=N divides them among N GPUs, and model.device=cpu helps where the machine's "
            "memory is larger"
        )


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN supports products of this 16-bit type here, emulated or not. If not, it refuses to pack such
    weights and torch falls back to a slow loop."""
    supported = getattr(torch.ops.mkldnn, _ONEDNN_SUPPORT[dtype], None)  # None if torch was built without oneDNN
    return supported is not None and bool(supported())


def fast_bfloat16() -> bool:
    """Whether products of bfloat16 are faster here than products of float32."""
    capabilities = torch.cpu.get_capabilities()
    return onednn_multiplies(torch.bfloat16) and any(capabilities.get(name) for name in _BFLOAT16_PRODUCTS)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which ``dtype`` is multiplied: float32 if the CPU cannot multiply 16 bits."""
    slow = device.type == "cpu" and dtype in _ONEDNN_SUPPORT and not onednn_multiplies(dtype)
    return torch.float32 if slow else dtype
