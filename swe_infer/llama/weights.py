"""Loads the weights of Hugging Face checkpoints into :class:`LlamaForCausalLM`.

Maps the tensor names of a checkpoint to our fused parameters, for adapters too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from swe_infer.errors import CheckpointError
from swe_infer.llama.config import LlamaConfig, read_json
from swe_infer.llama.model import Layer, LlamaForCausalLM
from swe_infer.llama.tp_rank import TPRank
from swe_infer.text import first_line

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 24
"""Bytes of a file that are mapped at a time: pages of a mapped file count as this process's memory."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file of a checkpoint.

    Args:
        loaded: from a pickle; None: to be read from the safetensors file ``path``.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    loaded: Tensor | None = None

    def read(self, target: Tensor, shape: Sequence[int] | None = None, part: tuple[slice, ...] | None = None) -> None:
        """Copy the tensor, or a part of it, into ``target``, whose type and device may differ.

        Args:
            shape: that the whole tensor must have; None: that of ``target``.
            part: rows, and columns of a matrix; None: all.

        Raises:
            CheckpointError: the tensor has another shape, or values that are not finite in the type of ``target``,
                or it cannot be read.
        """
        expected = tuple(target.shape if shape is None else shape)
        self.check_shape(expected)
        rows, *columns = part or (slice(0, expected[0]),)
        step = max(1, _CHUNK // (self.dtype.itemsize * max(1, math.prod(expected[1:]))))
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            chunk = target[start - rows.start : stop - rows.start]
            chunk.copy_(self._slice((slice(start, stop), *columns)))
            if chunk.numel() and not all(bool(edge.isfinite()) for edge in chunk.aminmax()):
                name = str(target.dtype).removeprefix("torch.")
                raise CheckpointError(f"{self.path}: tensor {self.name} has values that are not finite in {name}")

    def check_shape(self, expected: tuple[int, ...]) -> None:
        """Raises CheckpointError if the tensor has another shape."""
        if self.shape != expected:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has shape {list(self.shape)}, expected {list(expected)}"
            )

    def _slice(self, part: tuple[slice, ...]) -> Tensor:
        if self.loaded is not None:
            return self.loaded[part]
        with _safetensors(self.path) as file:
            found: Tensor = file.get_slice(self.name)[part]
        return found


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor of the checkpoint, and where it goes.

    Args:
        name: of the tensor.
        shape: of the whole tensor.
        part: rows, and columns if not all.
        target: a view of one of our parameters.
    """

    name: str
    shape: tuple[int, ...]
    part: tuple[slice, ...]
    target: Tensor


def load_weights(model: LlamaForCausalLM, directory: Path, *, allow_pickle: bool) -> None:
    """Load every parameter of ``model`` from a checkpoint directory.

    Raises:
        CheckpointError: there are no weights or only pickled ones, or a tensor is missing, truncated, of another
            shape, or not finite; the error names file and tensor.
    """
    tensors = open_tensors(directory, "model.safetensors", "pytorch_model.bin", allow_pickle=allow_pickle)
    for piece in pieces(model):
        if piece.name not in tensors:
            raise CheckpointError(f"{directory}: tensor {piece.name} is missing from the checkpoint")
        tensors[piece.name].read(piece.target, piece.shape, piece.part)


def stored_dtype(directory: Path, *, allow_pickle: bool) -> torch.dtype | None:
    """Return the type of all matrices of a checkpoint, or None if they differ. Reads only headers.

    Raises:
        CheckpointError: see :func:`open_tensors`.
    """
    tensors = open_tensors(directory, "model.safetensors", "pytorch_model.bin", allow_pickle=allow_pickle)
    found = {tensor.dtype for tensor in tensors.values() if len(tensor.shape) > 1}
    return found.pop() if len(found) == 1 else None


def pieces(model: LlamaForCausalLM) -> Iterator[Piece]:
    """The parts of the checkpoint's tensors that make up our parameters."""
    config, shard, names = model.config, model.shard, model.config.names
    yield _whole(f"{names.embeddings}.weight", model.embed_tokens)
    yield _whole(f"{names.final_norm}.weight", model.norm.weight)
    if not config.tie_word_embeddings and shard.rank == 0:
        yield _whole(f"{names.lm_head}.weight", model.lm_head.weight)
    heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    qkv = _rows(names.qkv, ((names.q, heads), (names.k, kv), (names.v, kv)), config, shard)
    gate_up = _rows(
        names.gate_up, ((names.gate, config.intermediate_size), (names.up, config.intermediate_size)), config, shard
    )
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        prefix, attention = names.layer.format(index), layer.self_attn
        yield _whole(f"{prefix}{names.attention_norm}.weight", layer.attention_norm.weight)
        yield _whole(f"{prefix}{names.mlp_norm}.weight", layer.mlp_norm.weight)
        for norm, name, size in ((attention.q_norm, names.q_norm, heads), (attention.k_norm, names.k_norm, kv)):
            if norm is not None and config.qk_norm == "head":
                yield _whole(f"{prefix}{name}.weight", norm.weight)
            elif norm is not None:
                yield from _of_rows(prefix, _rows(None, ((name, size),), config, shard), norm.weight, "weight")
        for segments, product in ((qkv, attention.qkv_proj), (gate_up, layer.mlp.gate_up_proj)):
            yield from _of_rows(prefix, segments, product.weight, "weight")
            if product.bias is not None:
                yield from _of_rows(prefix, segments, product.bias, "bias")
        for name, product in ((names.o, attention.o_proj), (names.down, layer.mlp.down_proj)):
            outputs, own = product.weight.shape
            columns = slice(shard.rank * own, (shard.rank + 1) * own)
            shape = (outputs, own * shard.count)
            yield Piece(f"{prefix}{name}.weight", shape, (slice(0, outputs), columns), product.weight.data)
            if product.bias is not None:
                yield _whole(f"{prefix}{name}.bias", product.bias)


def _whole(name: str, parameter: Tensor) -> Piece:
    return Piece(name, tuple(parameter.shape), (slice(0, len(parameter)),), parameter.data)


def _rows(
    fused: str | None, parts: Sequence[tuple[str, int]], config: LlamaConfig, shard: TPRank
) -> list[tuple[str, int, int, int]]:
    """Where the rows of this rank's projection come from, in order: a tensor, its number of rows, the first row, and
    the number of rows.

    Args:
        fused: the tensor with the rows of all ``parts``; None: each has its own.
        parts: names and numbers of rows.
    """
    total, first = sum(size for _, size in parts), 0
    found = []
    for name, size in parts:
        own = shard.divide(size)
        if fused is None:
            found.append((name, size, shard.rank * own, own))
        elif not config.names.grouped_qkv:
            found.append((fused, total, first + shard.rank * own, own))
        else:
            groups = config.num_key_value_heads
            for group in range(shard.rank * shard.divide(groups), (shard.rank + 1) * shard.divide(groups)):
                found.append((fused, total, (group * total + first) // groups, size // groups))
        first += size
    return found


def _of_rows(
    prefix: str, segments: Sequence[tuple[str, int, int, int]], parameter: Tensor, kind: str
) -> Iterator[Piece]:
    """The pieces of a parameter that consists of ``segments`` of rows."""
    target = parameter.data
    for name, total, first, rows in segments:
        part = (slice(first, first + rows),)
        yield Piece(f"{prefix}{name}.{kind}", (total, *parameter.shape[1:]), part, target[:rows])
        target = target[rows:]


def open_tensors(directory: Path, safe_name: str, pickle_name: str, *, allow_pickle: bool) -> dict[str, StoredTensor]:
    """The tensors of a directory by name: from one safetensors file, several with an index, or pickles if allowed.

    Raises:
        CheckpointError: there is no file or only pickles, or a file is damaged or has a tensor of another type.
    """
    files = _files(directory, safe_name)
    if files:
        return {tensor.name: tensor for path in files for tensor in _stored(path)}
    files = _files(directory, pickle_name)
    if not files:
        hint = (
            ""
            if allow_pickle
            else "; if its weights are pickled, model.allow_pickle=true loads them (they can run code)"
        )
        raise CheckpointError(f"{directory} has neither {safe_name} nor its index{hint}")
    if not allow_pickle:
        raise CheckpointError(
            f"{directory} has only pickled weights ({files[0].name}), which can run code when they are loaded; "
            "set model.allow_pickle=true if you trust their source"
        )
    return {tensor.name: tensor for path in files for tensor in _unpickled(path)}


def _files(directory: Path, name: str) -> list[Path]:
    index = directory / f"{name}.index.json"
    if not index.is_file():
        return [directory / name] if (directory / name).is_file() else []
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    files = [directory / Path(file).name for file in dict.fromkeys(map(str, weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{directory}: {', '.join(missing)} named by {index.name} is missing")
    return files


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is cut short ({first_line(error)})") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _stored(path: Path) -> Iterator[StoredTensor]:
    with _safetensors(path) as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            entry = file.get_slice(name)
            dtype = _DTYPES.get(entry.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{path}: tensor {name} has type {entry.get_dtype()}; known are {', '.join(_DTYPES)}"
                )
            yield StoredTensor(path, name, tuple(entry.get_shape()), dtype)


def _unpickled(path: Path) -> Iterator[StoredTensor]:
    """The tensors of a pickle, read with ``weights_only``, which is safer than a plain unpickler but not safe."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for name, tensor in loaded.items():
            yield StoredTensor(path, name, tuple(tensor.shape), tensor.dtype, tensor)
    except Exception as error:  # torch raises many types for damaged files
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
