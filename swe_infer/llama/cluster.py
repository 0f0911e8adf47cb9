"""The Ray cluster that runs engines: its options, and how to connect to it. Imports Ray on first use, never torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from swe_infer.errors import ConfigError
from swe_infer.options import Option
from swe_infer.ray_connection import connect_to_ray
from swe_infer.types import LlamaModel


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

    def connect(self) -> None:
        """Connect this process. Raises ConfigError if no cluster responds."""
        key = "runner.ray.address"
        connect_to_ray(key if self.address is None else f"{key}={self.address}", self.address)

    def gpus_per_engine(self, model: LlamaModel) -> float:
        """:attr:`gpus`, or what suits the model and the cluster."""
        if self.gpus is not None:
            return self.gpus
        return float(model.tensor_parallel) if model.device != "cpu" and any(_of_nodes("GPU")) else 0.0

    def engines_that_fit(self, gpus: float) -> int:
        """Number of engines that the nodes can run: by their GPUs and CPUs, or one for each node without GPUs."""
        most = [int(count / self.cpus) for count in _of_nodes("CPU")]
        return sum(min(n, int(count / gpus) if gpus else 1) for n, count in zip(most, _of_nodes("GPU"), strict=True))


def _of_nodes(resource: str) -> list[float]:
    """The amount of a resource on each node."""
    import ray

    return [node["Resources"].get(resource, 0.0) for node in ray.nodes() if node["Alive"]]
