"""Limits on instruction sets for child processes. torch, oneDNN, MKL and our kernels read them from the environment
when they are loaded."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PROCESSORS", "Processor"]


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor to emulate.

    Args:
        needs: CPU flags that this machine must have, in Linux's names.
        environment: environment variables with the limits.
    """

    needs: frozenset[str]
    environment: dict[str, str]

    def missing(self) -> list[str]:
        """The flags that this machine lacks."""
        return sorted(self.needs - features())


def features() -> frozenset[str]:
    """The CPU flags of this machine; empty except on Linux on x86-64."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return frozenset()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())


def _limits(onednn: str, torch: str, mkl: str, kernels: str) -> dict[str, str]:
    return {
        "ONEDNN_MAX_CPU_ISA": onednn,
        "ATEN_CPU_CAPABILITY": torch,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "SWE_INFER_NATIVE_KERNELS": kernels,
    }


_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})

PROCESSORS = {
    "no_kernels": Processor(frozenset({"avx2"}), _limits("AVX2", "avx2", "AVX2", "off")),
    "avx2": Processor(frozenset({"avx2", "fma", "f16c"}), _limits("AVX2", "avx2", "AVX2", "avx2")),
    "avx512": Processor(_AVX512, _limits("AVX512_CORE_BF16", "avx512", "AVX512", "avx512")),
    "amx": Processor(_AVX512 | {"amx_tile", "amx_bf16"}, _limits("ALL", "avx512", "AVX512", "amx")),
}
