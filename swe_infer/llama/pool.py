"""Keeps an engine between runs. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swe_infer.types import LlamaModel

if TYPE_CHECKING:
    from swe_infer.llama.data_parallel import DataParallelEngine
    from swe_infer.llama.engine import Engine, EngineOptions


class EnginePool:
    """Keeps the last engine, so that the runs of a sweep load a model once and share its prefix cache.

    It holds one engine at a time.
    """

    def __init__(self) -> None:
        self._key: tuple[LlamaModel, EngineOptions] | None = None
        self._engine: Engine | DataParallelEngine | None = None

    def get(self, model: LlamaModel, options: EngineOptions) -> Engine | DataParallelEngine:
        """Return the engine for ``model``, loading it if necessary. Several engines behave as one.

        Raises the errors of ``Engine.load``.
        """
        key = (model, options)
        if self._engine is None or self._key != key or not self._engine.usable:
            self.close()
            self._engine = _load(model, options)
            self._key = key
        return self._engine

    def close(self) -> None:
        """Close the engine and its processes."""
        engine, self._engine, self._key = self._engine, None, None
        if engine is not None:
            engine.close()


def _load(model: LlamaModel, options: EngineOptions) -> Engine | DataParallelEngine:
    if options.cluster is not None:
        from swe_infer.llama.ray_worker import ray_engines

        return ray_engines(options.cluster, model, options)
    from swe_infer.llama.placement import worker_devices

    devices = worker_devices(model.device, 1 if model.tensor_parallel > 1 else options.workers)
    if len(devices) == 1:
        from swe_infer.llama.engine import Engine

        return Engine.load(model, options)
    from swe_infer.llama.process_worker import process_engines

    return process_engines(model, options, devices)
