"""Loads the weights of Hugging Face checkpoints into :class:`LlamaForCausalLM`.

Maps the tensor names of a checkpoint to our fused parameters, for adapters too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from swe_infer.errors import CheckpointError
from swe_infer.llama.config import LlamaConfig, read_json
from swe_infer.llama.model import Layer, LlamaForCausalLM
from swe_infer.llama.safetensors import SafetensorsFile, TensorEntry
from swe_infer.llama.tp_rank import TPRank
from swe_infer.text import first_line


class TensorSource(Protocol):
    """Named tensors of a checkpoint in any file format."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str, target: Tensor, part: tuple[slice, slice] | None = None) -> None:
        """Read into ``target``. ``part``: rows and columns of a matrix, or of a vector as one column; None: all.

        Raises:
            CheckpointError: the tensor has another shape, or values that are not finite.
        """
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor of the checkpoint, and where it goes.

    Args:
        name: of the tensor.
        shape: of the whole tensor; a vector has one column.
        rows, columns: of the part.
        target: a view of one of our parameters.
    """

    name: str
    shape: tuple[int, int]
    rows: slice
    columns: slice
    target: Tensor

    def read(self, source: TensorSource, name: str, directory: Path) -> None:
        """Read this part of the tensor ``name``. Raises CheckpointError as :meth:`TensorSource.read`."""
        if self.target.numel() == math.prod(self.shape):
            source.read(name, self.target)
            return
        if (*source.shape(name), 1)[:2] != self.shape:
            expected = list(self.shape)[: self.target.ndim]
            raise CheckpointError(
                f"{directory}: tensor {name} has shape {list(source.shape(name))}, expected {expected}"
            )
        source.read(name, self.target, (self.rows, self.columns))


def load_weights(model: LlamaForCausalLM, directory: Path, *, allow_pickle: bool) -> None:
    """Load every parameter of ``model`` from a checkpoint directory.

    Raises:
        CheckpointError: there are no weights or only pickled ones, or a tensor is missing, truncated, of another
            shape, or not finite; the error names file and tensor.
    """
    source = open_tensors(directory, "model.safetensors", "pytorch_model.bin", allow_pickle=allow_pickle)
    names = source.names()
    for piece in pieces(model):
        if piece.name not in names:
            raise CheckpointError(f"{directory}: tensor {piece.name} is missing from the checkpoint")
        piece.read(source, piece.name, directory)


def stored_dtype(directory: Path, *, allow_pickle: bool) -> torch.dtype | None:
    """Return the type of all matrices of a checkpoint, or None if they differ. Reads only headers.

    Raises:
        CheckpointError: see :func:`open_tensors`.
    """
    source = open_tensors(directory, "model.safetensors", "pytorch_model.bin", allow_pickle=allow_pickle)
    found = {source.dtype(name) for name in source.names() if len(source.shape(name)) > 1}
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
            yield Piece(f"{prefix}{name}.weight", shape, slice(0, outputs), columns, product.weight.data)
            if product.bias is not None:
                yield _whole(f"{prefix}{name}.bias", product.bias)


def _whole(name: str, parameter: Tensor) -> Piece:
    rows, columns = (*parameter.shape, 1)[:2]
    return Piece(name, (rows, columns), slice(0, rows), slice(0, columns), parameter.data)


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
    columns, target = (*parameter.shape, 1)[1], parameter.data
    for name, total, first, rows in segments:
        part = slice(first, first + rows)
        yield Piece(f"{prefix}{name}.{kind}", (total, columns), part, slice(0, columns), target[:rows])
        target = target[rows:]


def open_tensors(directory: Path, safe_name: str, pickle_name: str, *, allow_pickle: bool) -> TensorSource:
    """Open the tensors of a directory: one safetensors file, several with an index, or pickled ones if allowed."""
    files = _files(directory, safe_name)
    if files:
        return _SafeTensors(files)
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
    return _PickledTensors(files)


def _files(directory: Path, name: str) -> list[Path]:
    index = directory / f"{name}.index.json"
    if not index.is_file():
        return [directory / name] if (directory / name).is_file() else []
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    files = [directory / Path(str(file)).name for file in dict.fromkeys(weight_map.values())]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{directory}: {', '.join(missing)} named by {index.name} is missing")
    return files


class _SafeTensors:
    def __init__(self, files: list[Path]) -> None:
        self.tensors: dict[str, tuple[SafetensorsFile, TensorEntry]] = {}
        for path in files:
            file = SafetensorsFile(path)
            self.tensors.update({name: (file, entry) for name, entry in file.entries.items()})

    def names(self) -> set[str]:
        return set(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name][1].dtype

    def read(self, name: str, target: Tensor, part: tuple[slice, slice] | None = None) -> None:
        file, entry = self.tensors[name]
        if part is None:
            file.read_into(entry, target)
        else:
            file.read_part(entry, target, *part)


class _PickledTensors:
    """``pytorch_model.bin``, read with ``weights_only``, which is safer than a plain unpickler but not safe."""

    def __init__(self, files: list[Path]) -> None:
        self.tensors: dict[str, tuple[Path, Tensor]] = {}
        for path in files:
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # torch raises many types for damaged files
                raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
            self.tensors.update({name: (path, tensor) for name, tensor in loaded.items()})

    def names(self) -> set[str]:
        return set(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name][1].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name][1].dtype

    def read(self, name: str, target: Tensor, part: tuple[slice, slice] | None = None) -> None:
        path, tensor = self.tensors[name]
        if part is not None:
            tensor = tensor.view(len(tensor), -1)[part]
            target = target.view(tensor.shape)
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, expected {list(target.shape)}"
            )
        if not all(bool(edge.isfinite()) for edge in tensor.aminmax()):
            raise CheckpointError(f"{path}: tensor {name} has values that are not finite")
        target.copy_(tensor)
