"""Steps at fixed addresses equal ordinary steps. The attention here reads only the plan's tensors, as a captured
kernel would; capturing is tested in ``test_gpu.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.attention.base import AttentionShape
    from swe_infer.llama.graphs import MAX_QUERIES, ROWS, DecodeGraphs, StaticStep
    from swe_infer.llama.kv_cache import KVCache
    from swe_infer.llama.model import LlamaForCausalLM, ModelInput
    from tests.llama.helpers import load, random_prompt
    from tests.llama.scenes import PlainPaged

LIMIT = 1024


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def model(checkpoint: Path) -> LlamaForCausalLM:
    model = load(checkpoint)
    shape = model.backend.shape
    model.backend = PlainPaged(AttentionShape(shape.heads, shape.kv_heads, shape.head_dim, shape.device, shape.dtype))
    return model


def cache_of(model: LlamaForCausalLM, starts: list[int], seed: int) -> tuple[KVCache, list[list[int]]]:
    """A cache with the first ``starts`` tokens of each sequence, in scattered blocks, and space for more."""
    cache = model.new_cache(64)
    order = (torch.randperm(63, generator=torch.Generator().manual_seed(seed)) + 1).tolist()
    tables = [[order.pop() for _ in range((start + MAX_QUERIES) // 256 + 1)] for start in starts]
    for index, (start, table) in enumerate(zip(starts, tables, strict=True)):
        if start:
            model.run(ModelInput(random_prompt(start, index), [0], [start], [table], [0]), cache)
    return cache, tables


def model_input_of(starts: list[int], counts: list[int], tables: list[list[int]], seed: int) -> ModelInput:
    rows = sum(counts)
    return ModelInput(random_prompt(rows, seed), starts, counts, tables, list(range(rows)))


@pytest.mark.parametrize(
    ("starts", "counts", "rows"),
    [
        ([5], [1], 8),
        ([300, 7, 256, 255, 511], [1] * 5, 8),
        ([9, 300, 40, 77, 12, 600, 3, 255], [1] * 8, 8),
        ([9, 300, 40], [1, 33, 4], 48),
        ([500], [64], 64),
        ([0, 250], [2, 7], 16),
        ([30, 260], [1, 2], 64),
    ],
    ids=["one", "few", "full", "drafts", "no_padding", "a_first_token", "much_padding"],
)
def test_a_static_step_equals_an_ordinary_one(
    model: LlamaForCausalLM, starts: list[int], counts: list[int], rows: int
) -> None:
    cache, tables = cache_of(model, starts, 1)
    static = StaticStep(model, rows, 4, len(counts) == sum(counts), LIMIT - 1)
    for seed in (50, 51):  # the second step finds stale data in the buffers
        model_input = model_input_of(starts, counts, tables, seed)
        expected = model.run(model_input, cache)
        static.fill(model_input)
        logits_RV = torch.empty(rows + 8, model.config.vocab_size)
        found = static.forward(cache, logits_RV)
        assert found.shape[0] == rows
        assert found.data_ptr() == logits_RV.data_ptr(), "the buffer that all graphs share"
        torch.testing.assert_close(found[: sum(counts)], expected, atol=1e-4, rtol=0)


def test_stale_buffers_do_not_affect_the_next_step(model: LlamaForCausalLM) -> None:
    cache, tables = cache_of(model, [600, 500, 400, 300, 200, 20], 2)
    static = StaticStep(model, 32, 4, False, LIMIT - 1)
    static.fill(model_input_of([600, 500, 400, 300], [8, 8, 8, 8], tables[:4], 60))
    static.forward(cache)
    model_input = model_input_of([200, 20], [3, 1], tables[4:], 61)
    static.fill(model_input)
    torch.testing.assert_close(static.forward(cache)[:4], model.run(model_input, cache), atol=1e-4, rtol=0)


def test_padding_rows_write_only_to_the_scratch_block(model: LlamaForCausalLM) -> None:
    cache, tables = cache_of(model, [10], 3)
    before = cache.keys[0].clone()
    for single in (True, False):
        static = StaticStep(model, 24, 2, single, LIMIT - 1)
        static.fill(model_input_of([10], [1], tables, 70))
        static.forward(cache)
    changed = (cache.keys[0] != before).flatten(2).any(-1)
    assert changed[tables[0][0]].nonzero().flatten().tolist() == [10]
    assert set(changed.any(-1).nonzero().flatten().tolist()) <= {0, tables[0][0]}


def test_steps_without_a_graph_use_the_ordinary_path(model: LlamaForCausalLM) -> None:
    graphs = DecodeGraphs(model, model.new_cache(2), LIMIT)
    block = [[1]]
    assert graphs.logits(ModelInput([3] * 9, [0], [9], block, [8])) is None, "a prompt's last chunk"
    assert graphs.logits(ModelInput([3] * 65, [0], [65], block, list(range(65)))) is None, (
        "too many rows of one sequence"
    )
    many = ROWS[-1] + 1
    assert graphs.logits(model_input_of([0] * many, [1] * many, block * many, 1)) is None


def test_a_cpu_has_no_graphs(model: LlamaForCausalLM) -> None:
    assert DecodeGraphs.create(model, model.new_cache(2), LIMIT) is None
