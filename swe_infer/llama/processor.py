"""What this machine's CPU multiplies, and how fast, as torch and oneDNN report it.

``ONEDNN_MAX_CPU_ISA`` limits what oneDNN reports, so a slower processor's paths can be run on a faster one.
"""

from __future__ import annotations

import torch

__all__ = ["fast_bfloat16", "onednn_multiplies", "product_dtype"]

_ONEDNN_SUPPORT = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}

_BFLOAT16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Instructions that multiply bfloat16, in the words of :func:`torch.cpu.get_capabilities`; the last two are ARM's."""


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
