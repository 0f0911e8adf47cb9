"""The objective of a search: a figure of a run's summary, and whether to minimize or maximize it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from swe_infer.conf_files import suggestion
from swe_infer.errors import ConfigError
from swe_infer.run_directory.figures import EVALUATED_FIGURES, FIGURES, Direction, is_figure
from swe_infer.run_directory.layout import SUMMARY

_DIRECTIONS: dict[str, Direction] = {
    "min": "minimize",
    "minimize": "minimize",
    "max": "maximize",
    "maximize": "maximize",
}


@dataclass(frozen=True, slots=True)
class Objective:
    """One figure to optimize.

    Args:
        name: its dotted name, such as ``resolved_rate`` or ``usage.output_tokens``.
        direction: None if the figure has no natural direction and none was given.
    """

    name: str
    direction: Direction | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``FIGURE`` (in its natural direction), ``FIGURE:min``, ``FIGURE:max`` or ``-FIGURE`` (minimized).

        Raises:
            ConfigError: there is no such figure or direction.
        """
        name, colon, direction = text.strip().partition(":")
        negative = name.startswith("-")
        name = name.removeprefix("-")
        if not is_figure(name):
            raise ConfigError(f"objective={text}: not a figure of {SUMMARY}{suggestion(name, FIGURES)}")
        if not colon:
            return cls(name, "minimize" if negative else FIGURES.get(name))
        if negative or direction not in _DIRECTIONS:
            raise ConfigError(f"objective={text}: write {name}:min or {name}:max")
        return cls(name, _DIRECTIONS[direction])

    @property
    def needs_evaluation(self) -> bool:
        """Whether only an evaluated run has the figure."""
        return self.name in EVALUATED_FIGURES

    def __str__(self) -> str:
        return self.name if self.direction is None else f"{self.name}:{self.direction[:3]}"
