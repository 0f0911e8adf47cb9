"""Where on a Ray cluster engines run. Light to import: neither Ray nor torch comes in."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from swe_infer.errors import ConfigError

__all__ = ["RayCluster"]


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Engines as actors of a Ray cluster.

    Args:
        address: ``HOST:6379`` or ``auto``; None: the one that ``RAY_ADDRESS`` names or that runs on this machine, or
            else a cluster of this machine alone, for this process.
        gpus: that each engine takes, below 1 for engines that share one; None: one for each part of the model where
            the cluster has GPUs, none where it has not.
        cpus: that each engine takes; without a GPU also the threads that it computes with.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: float = 1.0

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
