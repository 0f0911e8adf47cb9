"""Mistral 7B (Jiang et al., 2023), Codestral, Devstral: a window in every layer, where one is stated."""

from __future__ import annotations

from swe_infer.llama.families.base import Parts, Reader


def parts(read: Reader) -> Parts:
    return {"windows": read.windows(default=4096)}
