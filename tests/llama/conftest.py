"""One thread and no network for the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    from tests.support.threads import single_threaded

    with single_threaded():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain float32 checkpoint with grouped-query attention and a tokenizer."""
    from tests.support.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["plain", pytest.param("multi_head", marks=pytest.mark.full), "dynamic_rope"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints with different heads and positions, for properties that hold for each."""
    from tests.support.checkpoints import make_variant

    return make_variant(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The type that a test names: ``parametrize("dtype", ["float32"], indirect=True)``."""
    import torch

    found: torch.dtype = getattr(torch, request.param)
    return found


stored = dtype
"""The type of a checkpoint's weights, named in the same way."""
