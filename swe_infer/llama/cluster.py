"""Options of a Ray cluster that runs engines. Imports neither Ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from swe_infer.errors import ConfigError
from swe_infer.options import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """Runs each engine as an actor of a Ray cluster."""

    address: Annotated[
        str | None,
        Option("HOST:6379 or auto; null: RAY_ADDRESS, a cluster on this machine, or a new one.", "address"),
    ] = None
    gpus: Annotated[
        float | None,
        Option("GPUs per engine, less than 1 to share one; null: model.tensor_parallel, if there are GPUs.", "speed"),
    ] = None
    cpus: Annotated[float, Option("CPUs per engine; without a GPU also its number of threads.", "speed")] = 1.0

    def __post_init__(self) -> None:
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus))):
            raise ConfigError(
                f"runner.ray.gpus={self.gpus}: must be a whole number, a part of one GPU, 0 for none, or null"
            )
        if not self.cpus > 0:
            raise ConfigError(f"runner.ray.cpus={self.cpus}: must be above 0")

    def check(self) -> None:
        """Raises ConfigError where Ray is not installed."""
        if find_spec("ray") is None:
            raise ConfigError("runner=ray: needs an extra that is not installed; pip install 'swe_infer[ray]'")
