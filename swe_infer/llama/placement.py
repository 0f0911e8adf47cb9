"""Where a model runs and in which type: device, dtype, and whether it fits."""

from __future__ import annotations

import logging

import torch

from swe_infer.errors import ConfigError
from swe_infer.llama.processor import fast_bfloat16

__all__ = ["check_room", "choose_device", "choose_dtype", "choose_weight_dtype", "worker_devices"]

_log = logging.getLogger(__name__)

_SMALL = 250_000_000
"""Parameters of a model whose weights are kept in float32 for arithmetic in float32: it takes a gigabyte at most, and
converting matrices of this size costs more than reading them costs. Larger ones are faster in 16 bits; measured in
``benchmarks/README.md``."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def check_room(weights: int, free: int, device: torch.device) -> None:
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
