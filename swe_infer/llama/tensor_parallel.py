"""Tensor parallelism: one model in several processes, of which rank 0 leads.

The leader is an ordinary :class:`~swe_infer.llama.engine.Engine`: it schedules and samples. Before each step it sends
the :class:`.ModelInput` to the other ranks through pipes. Then all ranks run it on their part of the weights and of
the KV cache and all-reduce with ``torch.distributed`` (NCCL on GPUs, gloo on a CPU). A rank that ends unexpectedly
ends the run with a one-line error.

Only gloo has been tested. With NCCL, its own watchdog detects a rank that ends within a step.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.llama.child_process import start_child
from swe_infer.llama.config import LlamaConfig
from swe_infer.llama.hub import snapshot_directory
from swe_infer.llama.memory import DeviceMemory, cache_bytes
from swe_infer.llama.model import LlamaForCausalLM, ModelInput
from swe_infer.llama.peft import merge_adapter
from swe_infer.llama.placement import check_memory, choose_dtype, choose_weight_dtype
from swe_infer.llama.tp_rank import TPRank
from swe_infer.llama.weights import load_weights, stored_dtype
from swe_infer.types import LlamaModel

_TIMEOUT = timedelta(seconds=120)
"""Timeout for a rank that hangs. A step is far shorter."""

_PEER_LOST = 71
"""Exit code of a rank whose peer ended in the middle of a step."""


class RankDied(SweInferError):
    """A rank ended unexpectedly. Running the same command again answers the remaining requests."""


def check_tensor_parallel(model: LlamaModel, device: torch.device) -> None:
    """Raises ConfigError if the model cannot be divided, or not on this machine."""
    count = model.tensor_parallel
    if model.peft_path is not None:
        raise ConfigError(
            f"model.tensor_parallel={count}: an adapter is merged into whole weights only; merge model.peft_path "
            "into a checkpoint first"
        )
    if device.type == "cuda" and torch.cuda.device_count() < count:
        raise ConfigError(f"model.tensor_parallel={count}: this machine has {torch.cuda.device_count()} GPUs")
    if ":" in model.device:
        raise ConfigError(f"model.tensor_parallel={count}: model.device={model.device} names one device; write cuda")


def load_part(model: LlamaModel, directory: Path, config: LlamaConfig, shard: TPRank) -> LlamaForCausalLM:
    """Load one rank's weights from the checkpoint and merge the adapter. ``model.device`` is ``cpu`` or ``cuda`` with
    several ranks, else any device."""
    device = torch.device(model.device)
    if shard.count > 1 and device.type == "cuda":
        device = torch.device("cuda", shard.rank)
    dtype = choose_dtype(model.dtype, device, config.dtype)
    parameters, free = shard.parameters(config), DeviceMemory(device).free_bytes()
    stored = stored_dtype(directory, allow_pickle=model.allow_pickle)
    adapted = model.peft_path is not None
    weights = choose_weight_dtype(dtype, device, stored, parameters, free, adapted=adapted)
    check_memory(parameters * weights.itemsize, free, device)
    network = LlamaForCausalLM(
        config, device=device, dtype=dtype, weights=weights, attention=model.attention, shard=shard
    )
    load_weights(network, directory, allow_pickle=model.allow_pickle)
    if model.peft_path is not None:
        adapter = snapshot_directory(
            model.peft_path, "adapter_config.json", allow_pickle=model.allow_pickle, key="model.peft_path"
        )
        merge_adapter(network, adapter, allow_pickle=model.allow_pickle)
    network.pack()
    return network


class TensorParallelGroup:
    """The leader's handle of the other ranks, which start to load at once. A process leads one group at a time.

    Args:
        model: with ``device`` ``cpu`` or ``cuda``.
        directory: of the checkpoint.
    """

    def __init__(self, model: LlamaModel, directory: Path, config: LlamaConfig) -> None:
        self.shard = TPRank(0, model.tensor_parallel)
        self._device = model.device
        self._store = distributed.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, self.shard.count, is_master=True, wait_for_workers=False, timeout=_TIMEOUT
        )
        self._ranks: list[tuple[Connection, BaseProcess]] = []
        for rank in range(1, self.shard.count):
            ours, theirs = Pipe()
            part = TPRank(rank, self.shard.count)
            process = start_child(_serve_rank, theirs, model, directory, config, part, self._store.port)
            theirs.close()
            self._ranks.append((ours, process))

    def init_process_group(self) -> None:
        """Wait until all ranks have loaded, and connect them.

        Raises:
            CheckpointError, ConfigError: raised by a rank while loading.
            RankDied: a rank did not start.
        """
        for rank in range(1, self.shard.count):
            self._receive(rank)
        self.send("init_process_group")
        try:
            _init_process_group(self._store, self.shard, self._device)
        except RuntimeError as error:
            raise self.failure() from error

    def send(self, message: Any) -> None:
        """Send a message to every rank.

        Raises:
            RankDied: a rank has ended.
        """
        for pipe, _ in self._ranks:
            try:
                pipe.send(message)
            except OSError:
                raise self.failure() from None

    def failure(self) -> RankDied:
        """The error that names the rank that ended, if one did."""
        ended = wait([process.sentinel for _, process in self._ranks], timeout=5)
        for rank, (_, process) in enumerate(self._ranks, 1):
            if process.sentinel in ended:
                process.join(timeout=5)
            code = process.exitcode
            if code is not None and code != _PEER_LOST:
                return RankDied(
                    f"rank {rank} of the {self.shard.count} that hold the model ended with exit code {code}"
                )
        return RankDied(f"the {self.shard.count} ranks that hold the model lost each other")

    def receive_min(self, own: int) -> int:
        """Return the minimum of ``own`` and of the number that each other rank sends.

        Raises:
            ConfigError, RankDied: from a rank.
        """
        return min(own, *(int(self._receive(rank)) for rank in range(1, self.shard.count)))

    def _receive(self, rank: int) -> Any:
        try:
            answer = self._ranks[rank - 1][0].recv()
        except (EOFError, OSError):
            raise self.failure() from None
        if isinstance(answer, SweInferError):
            raise answer
        return answer

    def close(self) -> None:
        """Stop all ranks. The model cannot run afterwards."""
        for pipe, _ in self._ranks:
            pipe.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for _, process in self._ranks:
            process.join(timeout=5)
            process.kill()
            process.join()


def _init_process_group(store: Any, shard: TPRank, device: str) -> None:
    if device == "cuda":
        torch.cuda.set_device(shard.rank)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=store, rank=shard.rank, world_size=shard.count, timeout=_TIMEOUT
    )


def _serve_rank(
    pipe: Connection, model: LlamaModel, directory: Path, config: LlamaConfig, shard: TPRank, port: int
) -> None:
    """Entry point of the other ranks: load, connect, then run steps until the leader closes the pipe."""
    if model.device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // shard.count))
    try:
        network = load_part(model, directory, config, shard)
        pipe.send("loaded")
        pipe.recv()
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", port, shard.count, is_master=False, timeout=_TIMEOUT
        )
        _init_process_group(store, shard, model.device)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except SweInferError as error:
        pipe.send(error)
        return
    try:
        _worker_loop(pipe, network)
    except (EOFError, ConnectionResetError):
        return
    except distributed.DistError:
        sys.exit(_PEER_LOST)
    except RuntimeError as error:
        if "gloo" not in str(error) and "NCCL" not in str(error):
            raise
        sys.exit(_PEER_LOST)  # another rank has ended; the leader reports it


@torch.inference_mode()
def _worker_loop(pipe: Connection, network: LlamaForCausalLM) -> None:
    message = pipe.recv()
    if isinstance(message, ModelInput):
        largest = message
        pipe.send(cache_bytes(DeviceMemory(network.device), lambda: network.run(largest, network.new_cache(1))))
        message = pipe.recv()
    cache = network.new_cache(message)
    while True:
        message = pipe.recv()
        if isinstance(message, ModelInput):
            network.run(message, cache)
        else:
            cache.copy(*message)
