"""Where a model runs and in which type: device, dtype, and whether it fits."""

from __future__ import annotations

import torch

from swe_infer.errors import ConfigError

__all__ = ["check_room", "choose_device", "choose_dtype", "worker_devices"]

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
    """The type of that name; ``auto`` takes bfloat16 on a GPU and the checkpoint's own on a CPU.

    A checkpoint in float16 runs in float32 on a CPU, which has no fast half-precision products.
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if checkpoint == "bfloat16" else torch.float32


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
