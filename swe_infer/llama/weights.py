"""Loads the weights of Hugging Face checkpoints into :class:`LlamaForCausalLM`.

Maps the tensor names of a checkpoint to our fused parameters, for adapters too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from swe_infer.errors import CheckpointError
from swe_infer.llama.config import LlamaConfig, read_json
from swe_infer.llama.model import Layer, Linear, LlamaForCausalLM
from swe_infer.llama.safetensors import SafetensorsFile, TensorEntry
from swe_infer.llama.tp_rank import TPRank
from swe_infer.text import first_line


class TensorSource(Protocol):
    """Named tensors of a checkpoint in any file format."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read_into(self, name: str, target: Tensor) -> None:
        """Read into ``target``. Raises CheckpointError on another shape or non-finite values."""
        ...

    def read_part(self, name: str, target: Tensor, rows: slice, columns: slice) -> None:
        """Read a part of a matrix, or of a vector with ``columns`` ``slice(0, 1)``, into ``target``."""
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

    @property
    def is_whole(self) -> bool:
        return (self.rows, self.columns) == (slice(0, self.shape[0]), slice(0, self.shape[1]))


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
        if piece.is_whole:
            source.read_into(piece.name, piece.target)
            continue
        shape = (*source.shape(piece.name), 1)[:2]
        if shape != piece.shape:
            raise CheckpointError(
                f"{directory}: tensor {piece.name} has shape {list(source.shape(piece.name))}, of which a part of "
                f"{model.shard.count} does not have the shape {list(piece.target.shape)}"
            )
        source.read_part(piece.name, piece.target, piece.rows, piece.columns)


def stored_dtype(directory: Path, *, allow_pickle: bool) -> torch.dtype | None:
    """Return the type of all matrices of a checkpoint, or None if they differ. Reads only headers.

    Raises:
        CheckpointError: see :func:`open_tensors`.
    """
    source = open_tensors(directory, "model.safetensors", "pytorch_model.bin", allow_pickle=allow_pickle)
    found = {source.dtype(name) for name in source.names() if len(source.shape(name)) > 1}
    return found.pop() if len(found) == 1 else None


def parameter_views(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """Map the checkpoint's tensor names to views of our parameters, if each is a view of one parameter."""
    return {piece.name: piece.target for piece in pieces(model) if piece.is_whole}


def pieces(model: LlamaForCausalLM) -> Iterator[Piece]:
    """The parts of the checkpoint's tensors that make up our parameters."""
    config, shard, names = model.config, model.shard, model.config.names
    yield _whole(f"{names.embeddings}.weight", model.embed_tokens)
    yield _whole(f"{names.final_norm}.weight", model.norm.weight)
    if not config.tie_word_embeddings and shard.rank == 0:
        yield _whole(f"{names.lm_head}.weight", model.lm_head.weight)
    heads, kv, inner = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
        config.intermediate_size,
    )
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        prefix, attention = names.layer.format(index), layer.self_attn
        yield _whole(f"{prefix}{names.attention_norm}.weight", layer.attention_norm.weight)
        yield _whole(f"{prefix}{names.mlp_norm}.weight", layer.mlp_norm.weight)
        for norm, name, size in ((attention.q_norm, names.q_norm, heads), (attention.k_norm, names.k_norm, kv)):
            if norm is not None:
                part = _part(0, size, shard) if config.qk_norm == "projection" else slice(0, config.head_dim)
                full = size if config.qk_norm == "projection" else config.head_dim
                yield Piece(f"{prefix}{name}.weight", (full, 1), part, slice(0, 1), norm.weight.data)
        qkv, gate_up = ((names.q, heads), (names.k, kv), (names.v, kv)), ((names.gate, inner), (names.up, inner))
        if names.grouped_qkv and names.qkv is not None:
            yield from _by_group(f"{prefix}{names.qkv}", attention.qkv_proj, config, shard)
        else:
            yield from _by_row(prefix, names.qkv, qkv, attention.qkv_proj, shard)
        yield from _by_row(prefix, names.gate_up, gate_up, layer.mlp.gate_up_proj, shard)
        for name, product, columns in ((names.o, attention.o_proj, heads), (names.down, layer.mlp.down_proj, inner)):
            full_shape = (config.hidden_size, columns)
            part = _part(0, columns, shard)
            yield Piece(f"{prefix}{name}.weight", full_shape, slice(0, full_shape[0]), part, product.weight.data)
            if product.bias is not None:
                yield _whole(f"{prefix}{name}.bias", product.bias)


def _whole(name: str, parameter: Tensor) -> Piece:
    rows, columns = (*parameter.shape, 1)[:2]
    return Piece(name, (rows, columns), slice(0, rows), slice(0, columns), parameter.data)


def _part(start: int, size: int, shard: TPRank) -> slice:
    """This rank's part of ``size`` rows or columns from ``start`` on."""
    own = shard.divide(size)
    return slice(start + shard.rank * own, start + (shard.rank + 1) * own)


def _by_row(
    prefix: str, fused: str | None, parts: Sequence[tuple[str, int]], product: Linear, shard: TPRank
) -> Iterator[Piece]:
    """The pieces of projections that are divided by rows, from a tensor each or from one that is ``fused``."""
    total = sum(size for _, size in parts)
    for kind, parameter in (("weight", product.weight), ("bias", product.bias)):
        if parameter is None:
            continue
        columns = parameter.shape[1] if kind == "weight" else 1
        if fused is not None and shard.count == 1:
            yield _whole(f"{prefix}{fused}.{kind}", parameter)
            continue
        first = start = 0
        for name, size in parts:
            source, full, offset = (fused, total, first) if fused is not None else (name, size, 0)
            part, own = _part(offset, size, shard), shard.divide(size)
            target = parameter.data[start : start + own]
            yield Piece(f"{prefix}{source}.{kind}", (full, columns), part, slice(0, columns), target)
            first, start = first + size, start + own


def _by_group(name: str, product: Linear, config: LlamaConfig, shard: TPRank) -> Iterator[Piece]:
    """The pieces of a projection whose rows are ordered by key-value head: its queries, its key, its value."""
    dim, groups = config.head_dim, config.num_key_value_heads
    queries, own = config.num_attention_heads // groups * dim, shard.divide(groups)
    full = groups * (queries + 2 * dim)
    for kind, parameter in (("weight", product.weight), ("bias", product.bias)):
        if parameter is None:
            continue
        columns = parameter.shape[1] if kind == "weight" else 1
        for group in range(own):
            start = (shard.rank * own + group) * (queries + 2 * dim)
            targets = (
                (group * queries, queries),
                (own * queries + group * dim, dim),
                (own * (queries + dim) + group * dim, dim),
            )
            for at, size in targets:
                target = parameter.data[at : at + size]
                yield Piece(f"{name}.{kind}", (full, columns), slice(start, start + size), slice(0, columns), target)
                start += size


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

    def read_into(self, name: str, target: Tensor) -> None:
        file, entry = self.tensors[name]
        file.read_into(entry, target)

    def read_part(self, name: str, target: Tensor, rows: slice, columns: slice) -> None:
        file, entry = self.tensors[name]
        file.read_part(entry, target, rows, columns)


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

    def read_into(self, name: str, target: Tensor) -> None:
        path, tensor = self.tensors[name]
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, expected {list(target.shape)}"
            )
        if not all(bool(edge.isfinite()) for edge in tensor.aminmax()):
            raise CheckpointError(f"{path}: tensor {name} has values that are not finite")
        target.copy_(tensor)

    def read_part(self, name: str, target: Tensor, rows: slice, columns: slice) -> None:
        path, tensor = self.tensors[name]
        part_RC = tensor.view(len(tensor), -1)[rows, columns]
        if not all(bool(edge.isfinite()) for edge in part_RC.aminmax()):
            raise CheckpointError(f"{path}: tensor {name} has values that are not finite")
        target.view(part_RC.shape).copy_(part_RC)
