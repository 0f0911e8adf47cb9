"""One thread and no network for the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import make_checkpoint
from tests.support.threads import single_threaded


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain float32 checkpoint with grouped-query attention and a tokenizer."""
    return make_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["plain", "multi_head", "dynamic_rope"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that differ in heads and positions, for what must hold of each."""
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "multi_head": {"num_key_value_heads": 4, "head_dim": 24},
        "dynamic_rope": {"max_position_embeddings": 256, "rope_scaling": {"type": "dynamic", "factor": 8.0}},
    }
    return make_checkpoint(tmp_path_factory.mktemp(request.param), **variants[request.param])
