"""Reads tensors of safetensors files directly into existing memory.

The ``safetensors`` package maps the file and returns copies. Reading into a parameter's own memory avoids a second
copy of the weights. Format: https://github.com/huggingface/safetensors#format (an 8-byte little-endian header length,
a JSON header, then the data).
"""

from __future__ import annotations

import ctypes
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from swe_infer.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_MAX_HEADER = 100_000_000
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor's dtype, shape and byte range ``start:stop`` in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """The header of one file, checked against the file size.

    Raises:
        CheckpointError: the file is not a safetensors file, is truncated, or has inconsistent entries.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with path.open("rb") as file:
                self.entries = self._read_header(file)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def _read_header(self, file: BinaryIO) -> dict[str, TensorEntry]:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER
        if length > min(_MAX_HEADER, self.size - 8):
            raise CheckpointError(f"{self.path} is not a safetensors file, or is cut short")
        try:
            header = json.loads(file.read(length))
            del header["__metadata__"]
        except KeyError:
            pass
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path} has a damaged header") from error
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path} has a damaged header")
        return {name: self._entry(name, raw, 8 + length) for name, raw in header.items()}

    def _entry(self, name: str, raw: object, base: int) -> TensorEntry:
        try:
            dtype, shape, (start, stop) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]  # type: ignore[index]
            known = _DTYPES.get(dtype)
            numel = math.prod(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: tensor {name} has a damaged entry") from error
        if known is None:
            raise CheckpointError(f"{self.path}: tensor {name} has type {dtype}, which is not a floating-point type")
        if stop - start != numel * known.itemsize or start < 0:
            raise CheckpointError(f"{self.path}: tensor {name} has a damaged entry")
        if base + stop > self.size:
            raise CheckpointError(
                f"{self.path} is cut short: tensor {name} should end at byte {base + stop}, "
                f"the file ends at {self.size}"
            )
        return TensorEntry(name, known, shape, base + start, base + stop)

    def read_into(self, entry: TensorEntry, target: Tensor) -> None:
        """Read a tensor into ``target`` (same shape, any dtype and device) with at most 16 MiB of buffer.

        Raises:
            CheckpointError: the file cannot be read or contains non-finite values.
        """
        if entry.shape != tuple(target.shape):
            raise CheckpointError(
                f"{self.path}: tensor {entry.name} has shape {list(entry.shape)}, expected {list(target.shape)}"
            )
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(entry.start)
                if target.is_contiguous() and target.dtype == entry.dtype and target.device.type == "cpu":
                    self._read_directly(file, entry, target)
                else:
                    self._read_converting(file, entry, target)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error

    def read_part(self, entry: TensorEntry, target: Tensor, rows: slice, columns: slice) -> None:
        """Read a part of a matrix, or of a vector (rows only), into ``target``, at most 16 MiB at a time.

        Raises:
            CheckpointError: as :meth:`read_into`, or the part is outside the tensor.
        """
        height, width = (*entry.shape, 1)[:2] if len(entry.shape) < 3 else (0, 0)
        if rows.stop > height or columns.stop > width:
            raise CheckpointError(
                f"{self.path}: tensor {entry.name} has shape {list(entry.shape)}, "
                f"expected at least {[rows.stop, columns.stop]}"
            )
        target_RC = target.view(rows.stop - rows.start, columns.stop - columns.start)
        step = max(1, _CHUNK // (entry.dtype.itemsize * width))
        buffer_RC = torch.empty(min(step, len(target_RC)), width, dtype=entry.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(entry.start + rows.start * width * entry.dtype.itemsize)
                for start in range(0, len(target_RC), step):
                    piece_RC = buffer_RC[: len(target_RC) - start]
                    memory = (ctypes.c_char * (piece_RC.numel() * piece_RC.itemsize)).from_address(
                        piece_RC.data_ptr()
                    )
                    self._fill(file, memoryview(memory).cast("B"), entry)
                    self._check(entry, piece_RC)
                    target_RC[start : start + len(piece_RC)].copy_(piece_RC[:, columns])
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error

    def _read_directly(self, file: BinaryIO, entry: TensorEntry, target: Tensor) -> None:
        memory = (ctypes.c_char * (entry.stop - entry.start)).from_address(target.data_ptr())
        self._fill(file, memoryview(memory).cast("B"), entry)
        self._check(entry, target)

    def _read_converting(self, file: BinaryIO, entry: TensorEntry, target: Tensor) -> None:
        if not target.is_contiguous():
            raise ValueError("the target must be contiguous")
        flat = target.view(-1)
        step = _CHUNK // entry.dtype.itemsize
        buffer = torch.empty(min(step, flat.numel()), dtype=entry.dtype, pin_memory=target.device.type == "cuda")
        for start in range(0, flat.numel(), step):
            piece = buffer[: flat.numel() - start]
            memory = (ctypes.c_char * (piece.numel() * piece.itemsize)).from_address(piece.data_ptr())
            self._fill(file, memoryview(memory).cast("B"), entry)
            self._check(entry, piece)
            flat[start : start + piece.numel()].copy_(piece)

    def _fill(self, file: BinaryIO, memory: memoryview, entry: TensorEntry) -> None:
        done = 0
        while done < len(memory):
            count = file.readinto(memory[done:])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"{self.path} is cut short within tensor {entry.name}")
            done += count

    def _check(self, entry: TensorEntry, values: Tensor) -> None:
        if values.numel() and not all(bool(edge.isfinite()) for edge in values.aminmax()):
            raise CheckpointError(f"{self.path}: tensor {entry.name} has values that are not finite")
