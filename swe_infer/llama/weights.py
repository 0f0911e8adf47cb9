"""Loads the weights of Hugging Face checkpoints into :class:`LlamaForCausalLM`.

Maps the tensor names of a checkpoint to our fused parameters, for adapters too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from swe_infer.errors import CheckpointError
from swe_infer.llama.config import LlamaConfig, read_json
from swe_infer.llama.model import LlamaForCausalLM
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


def load_weights(model: LlamaForCausalLM, directory: Path, *, allow_pickle: bool) -> None:
    """Load every parameter of ``model`` from a checkpoint directory.

    Raises:
        CheckpointError: there are no weights or only pickled ones, or a tensor is missing, truncated, of another
            shape, or not finite; the error names file and tensor.
    """
    source = open_tensors(directory, "model.safetensors", "pytorch_model.bin", allow_pickle=allow_pickle)
    names = source.names()
    shard = model.shard
    for name, view in parameter_views(model).items():
        if name in names and shard.count > 1 and (axis := _divided(name)) is not None:
            full_shape = (*source.shape(name), 1)[:2]
            if view.numel() * shard.count != full_shape[0] * full_shape[1]:
                raise CheckpointError(
                    f"{directory}: tensor {name} has shape {list(source.shape(name))}, of which a part of "
                    f"{shard.count} does not have the shape {list(view.shape)}"
                )
            parts = [slice(0, size) for size in full_shape]
            size = shard.divide(full_shape[axis])
            parts[axis] = slice(shard.rank * size, (shard.rank + 1) * size)
            source.read_part(name, view, *parts)
        elif name in names:
            source.read_into(name, view)
        elif name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        else:
            raise CheckpointError(f"{directory}: tensor {name} is missing from the checkpoint")


def stored_dtype(directory: Path, *, allow_pickle: bool) -> torch.dtype | None:
    """Return the type of all matrices of a checkpoint, or None if they differ. Reads only headers.

    Raises:
        CheckpointError: see :func:`open_tensors`.
    """
    source = open_tensors(directory, "model.safetensors", "pytorch_model.bin", allow_pickle=allow_pickle)
    found = {source.dtype(name) for name in source.names() if len(source.shape(name)) > 1}
    return found.pop() if len(found) == 1 else None


def _divided(name: str) -> int | None:
    """The axis along which ranks divide a tensor of the checkpoint; None: each rank has all of it."""
    module, kind = name.rsplit(".", 2)[-2:]
    if module in ("o_proj", "down_proj"):
        return 1 if kind == "weight" else None
    return 0 if module in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") else None


def parameter_views(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """Map the checkpoint's tensor names to views of our parameters."""
    config = model.config
    views = {"model.embed_tokens.weight": model.embed_tokens.data, "model.norm.weight": model.norm.weight.data}
    for index in range(config.num_hidden_layers):
        layer = model.layers[index]
        prefix = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            views[f"{prefix}.{norm}.weight"] = getattr(layer, norm).weight.data
        for block, name, rows in _fused_rows(config, model.shard):
            linear = getattr(getattr(layer, block), name)
            for kind in ("weight", "bias"):
                parameter = getattr(linear, kind)
                if parameter is None:
                    continue
                start = 0
                for part, count in rows:
                    views[f"{prefix}.{block}.{part}.{kind}"] = parameter.data[start : start + count]
                    start += count
    if not config.tie_word_embeddings and model.shard.rank == 0:
        views["lm_head.weight"] = model.lm_head.weight.data
    return views


def _fused_rows(config: LlamaConfig, shard: TPRank) -> Iterator[tuple[str, str, tuple[tuple[str, int], ...]]]:
    """Our projections, and the checkpoint's projections that are fused in them, with their rows."""
    heads = shard.divide(config.num_attention_heads) * config.head_dim
    kv = shard.divide(config.num_key_value_heads) * config.head_dim
    yield "self_attn", "qkv_proj", (("q_proj", heads), ("k_proj", kv), ("v_proj", kv))
    yield "self_attn", "o_proj", (("o_proj", config.hidden_size),)
    inner = shard.divide(config.intermediate_size)
    yield "mlp", "gate_up_proj", (("gate_proj", inner), ("up_proj", inner))
    yield "mlp", "down_proj", (("down_proj", config.hidden_size),)


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
