"""What rows cost in a forward pass."""

from __future__ import annotations

__all__ = ["PassCost"]

_MEMORY = 0.98
_PRIOR_WEIGHT = 100.0
"""What the prior counts for, in squared rows: passes that differ by 10 rows outweigh it at once, and the scatter of a
busy machine's passes, which differ by one or two, does not."""
_LATE = 4.0
"""A pass that takes so many times the mean was held up by something else, and counts as no longer than that."""


class PassCost:
    """Learns what a forward pass costs as ``base + row * guessed rows``, from the passes that were run.

    Least squares over exponentially weighted passes, so that it follows load, batch and context, drawn towards a
    prior. The rows that sequences bring anyway are part of the base: a sequence costs more than its row.

    Args:
        row_share: what a row is held to cost, as a share of a mean pass, as long as passes do not tell.
    """

    def __init__(self, row_share: float = 0.01) -> None:
        self._prior = row_share
        self._weight = self._rows = self._seconds = self._rows2 = self._both = 0.0
        self.row_seconds = 0.0
        """What one more row adds; 0 before the first pass."""
        self.base_seconds = 0.0
        """What a pass without guessed rows takes; 0 before the first."""

    def record(self, rows: int, seconds: float) -> None:
        """A pass with so many guessed rows."""
        if self._weight > 8:
            seconds = min(seconds, _LATE * self._seconds / self._weight)
        self._weight = _MEMORY * self._weight + 1.0
        self._rows = _MEMORY * self._rows + rows
        self._seconds = _MEMORY * self._seconds + seconds
        self._rows2 = _MEMORY * self._rows2 + rows * rows
        self._both = _MEMORY * self._both + rows * seconds
        self._fit()

    def _fit(self) -> None:
        """Once for each pass: every sequence asks for the costs before the next one."""
        spread = self._rows2 - self._rows * self._rows / self._weight
        both = self._both - self._rows * self._seconds / self._weight
        prior = self._prior * self._seconds / self._weight
        self.row_seconds = max(0.0, (both + _PRIOR_WEIGHT * prior) / (spread + _PRIOR_WEIGHT))
        self.base_seconds = max(0.1 * self._seconds, self._seconds - self.row_seconds * self._rows) / self._weight

    def shares(self, draft_seconds: float) -> tuple[float, float]:
        """What one more row and ``draft_seconds`` of guessing cost, each as a share of a pass without guesses."""
        if self.base_seconds <= 0.0:
            return self._prior, 0.0
        return min(1.0, self.row_seconds / self.base_seconds), draft_seconds / self.base_seconds
