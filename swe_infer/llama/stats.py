"""Statistics of an engine, and how those of several engines are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SUMMED = frozenset(
    (
        *("running", "waiting", "prompt_tokens_per_s", "output_tokens_per_s", "kv_cache_gb", "preemptions"),
        *("forward_passes", "drafted_tokens", "accepted_tokens"),
    )
)


@dataclass(slots=True)
class EngineStats:
    """Counts since the engine was created or last reset. ``busy_s`` is the time in ``Engine.step``; ``draft_s`` is
    the part of it spent on drafting."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    busy_s: float = 0.0
    prefill_rows: int = 0
    decode_rows: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_s: float = 0.0
    preemptions_before: int = 0

    def figures(self) -> dict[str, float]:
        """Rates over the busy time, shares, and raw counts."""
        busy = max(self.busy_s, 1e-9)
        return {
            "prompt_tokens_per_s": round(self.prefill_rows / busy, 1),
            "output_tokens_per_s": round(self.output_tokens / busy, 2),
            "cache_hit_rate": round(self.cached_tokens / self.prompt_tokens, 4) if self.prompt_tokens else 0.0,
            "mean_batch_rows": round((self.prefill_rows + self.decode_rows) / max(1, self.steps), 2),
            "forward_passes": self.steps,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "drafting_share": round(self.draft_s / busy, 4),
        }


def merged_figures(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the figures of several engines: sums of counts and rates, means of shares."""
    merged: dict[str, float] = {}
    for key in parts[0] if parts else ():
        total = sum(figures[key] for figures in parts)
        merged[key] = round(total if key in _SUMMED else total / len(parts), 4)
    return merged
