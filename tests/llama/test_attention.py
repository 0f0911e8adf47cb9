"""One contract for all attention backends; each module of the package is tested where it can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import swe_infer.llama.attention
from swe_infer.errors import ConfigError
from swe_infer.types import AttentionChoice
from tests.support.selection import combinations

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.attention.base import AttentionShape, Layout, choose_backend
    from swe_infer.llama.attention.native import prefix_groups
    from tests.llama.scenes import DEVICE, TOLERANCE, Scene, make_backend, shared_scene

FOLDER = Path(swe_infer.llama.attention.__file__).parent
BACKENDS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "base"))
DTYPES = ["float32", "bfloat16"]
HEADS = {"multi_head": (4, 4), "grouped": (6, 2), "multi_query": (8, 1)}
"""Heads of queries, and of keys and values."""

LAYOUTS: dict[str, list[tuple[int, int]]] = {
    # (query rows, keys) of each sequence
    "one_token": [(1, 1)],
    "whole_prompts_of_unequal_length": [(5, 5), (300, 300), (1, 1), (257, 257)],
    "chunks_of_prompts": [(100, 350), (256, 512), (7, 263), (2, 700)],
    "decoding": [(1, 1), (1, 31), (1, 256), (1, 257), (1, 600)],
    "decoding_and_chunks": [(1, 40), (130, 400), (1, 513), (64, 64), (1, 300)],
    "drafts": [(5, 300), (3, 290), (8, 310), (1, 280), (33, 600), (17, 767), (6, 258), (64, 700), (2, 2), (7, 520)],
}


@pytest.fixture
def on_a_cpu() -> None:
    if DEVICE.type != "cpu":
        pytest.skip("promised on a CPU")


@pytest.mark.parametrize(
    ("name", "layout", "heads", "dtype"), combinations(BACKENDS, LAYOUTS, HEADS, DTYPES), indirect=["dtype"]
)
def test_backend_agrees_with_float64(name: str, layout: str, heads: str, dtype: torch.dtype) -> None:
    backend = make_backend(name, dtype, *HEADS[heads], 64)
    scene = Scene(backend, LAYOUTS[layout])
    out_THD = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, backend.plan(scene.layout))
    torch.testing.assert_close(out_THD.cpu().double(), scene.expected(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["sdpa", "native"])
def test_numbers_that_are_not_finite_stay_in_their_sequence(name: str, value: float, dtype: torch.dtype) -> None:
    """An earlier sequence may have left them in the rest of a block."""
    backend = make_backend(name, dtype, 6, 2, 64)
    scene, size = Scene(backend, [(1, 45), (7, 77), (1, 130)]), backend.block_size
    plan = backend.plan(scene.layout)
    before = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, plan)
    lengths = (*scene.layout.key_lens, 0)
    for table, length in zip([*scene.tables, [0]], lengths, strict=True):  # block 0 belongs to none
        places = torch.tensor([table[p // size] * size + p % size for p in range(length, len(table) * size)])
        stale = torch.full((len(places), 2, 64), value, dtype=dtype)
        backend.write(scene.k_pool, scene.v_pool, stale, stale, backend.slots(places))
    assert torch.equal(backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, plan), before)
    scene.q_THD[0] = torch.nan
    after = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, plan)
    assert after[0].isnan().all()
    assert torch.equal(after[1:], before[1:])


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("window", [1, 40, 128, 300])
@pytest.mark.parametrize("name", ["sdpa", "native"])
def test_windows_agree_with_float64_and_with_any_chunking(name: str, window: int) -> None:
    backend = make_backend(name, torch.float32, 6, 2, 64)
    for lengths in (LAYOUTS["decoding_and_chunks"], [(700, 700)]):
        scene = Scene(backend, lengths)
        whole = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, backend.plan(scene.layout), window)
        torch.testing.assert_close(whole.double(), scene.expected(window), atol=2e-6, rtol=2e-6)
    start = 0
    for count in (13, 1, 2, 250, 434):
        layout = Layout([count], [start + count], scene.tables)
        q_THD = scene.q_THD[start : start + count]
        part = backend.attend(q_THD, scene.k_pool, scene.v_pool, backend.plan(layout), window)
        assert torch.equal(part, whole[start : start + count]), (start, count)
        start += count


@pytest.mark.parametrize("name", BACKENDS)
def test_padding_rows_are_zero(name: str) -> None:
    backend = make_backend(name, torch.bfloat16, 4, 2, 64)
    scene = Scene(backend, [(3, 10)])
    q_THD = torch.cat([scene.q_THD, torch.ones_like(scene.q_THD)])
    out_THD = backend.attend(q_THD, scene.k_pool, scene.v_pool, backend.plan(scene.layout))
    assert out_THD.shape == q_THD.shape
    assert not out_THD[3:].any()


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)], ids=["multi_head", "grouped", "multi_query"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("sdpa", "float32"), ("native", "float32"), ("native", "bfloat16")], indirect=["dtype"]
)
def test_rows_have_the_same_bits_with_any_chunking(name: str, dtype: torch.dtype, heads: tuple[int, int]) -> None:
    backend = make_backend(name, dtype, *heads, 64)
    scene = Scene(backend, [(700, 700)])
    whole = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, backend.plan(scene.layout))
    for cuts in ([1] * 20, [300, 400], [13, 1, 2, 250, 434], [256, 256, 188], [699, 1]):
        start = 0
        for count in cuts:
            layout = Layout([count], [start + count], scene.tables)
            part = backend.attend(
                scene.q_THD[start : start + count], scene.k_pool, scene.v_pool, backend.plan(layout)
            )
            assert torch.equal(part, whole[start : start + count]), (cuts, start, count)
            start += count


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)], ids=["multi_head", "grouped", "multi_query"])
@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
def test_native_rows_have_the_same_bits_with_any_shared_prefix(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    backend = make_backend("native", dtype, *heads, 64)
    scene, layout = shared_scene(backend, {600: [1, 40, 8, 70], 96: [1, 2, 33], 1100: [5, 6], 300: [9]})
    plan = backend.plan(layout)
    assert (plan.units[:, 1] > 1).any()
    assert len(plan.segments) > len(plan.tokens)
    together = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, plan)
    for place, (length, table) in enumerate(zip(layout.key_lens, layout.block_tables, strict=True)):
        q_THD = scene.q_THD[place : place + 1]
        alone = backend.attend(q_THD, scene.k_pool, scene.v_pool, backend.plan(Layout([1], [length], [table])))
        assert torch.equal(together[place], alone[0]), (place, length)


@pytest.mark.parametrize(
    ("tables", "groups"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6]], [((0, 1, 2), 3)]),
        ([[1, 2, 3, 4], [7, 8], [1, 2, 3, 5, 9]], [((0, 2), 3), ((1,), 0)]),
        ([[1, 2, 3, 4, 5, 6], [1, 7, 8, 9, 10]], [((0,), 0), ((1,), 0)]),
        ([[1, 2]], [((0,), 0)]),
        ([[1], [1]], [((0,), 0), ((1,), 0)]),
        ([[1, 2, 3 + n] for n in range(6)], [((0, 1, 2, 3), 2), ((4, 5), 2)]),
        ([], []),
    ],
    ids=["one", "two", "a_short_beginning_is_not_worth_it", "alone", "being_written", "too_many", "none"],
)
def test_groups_contain_sequences_that_share_most_blocks(
    tables: list[list[int]], groups: list[tuple[tuple[int, ...], int]]
) -> None:
    assert [(group.members, group.blocks) for group in prefix_groups(tables, most=4)] == groups


def test_the_first_backend_that_works_is_chosen() -> None:
    shape = AttentionShape(4, 2, 64, torch.device("cpu"), torch.float32)
    chosen = choose_backend(AttentionChoice(backends=("flash_attn", "varlen", "sdpa")), shape)
    assert type(chosen).__module__.endswith(".sdpa")


def test_unavailable_backends_are_listed_with_reasons() -> None:
    shape = AttentionShape(4, 2, 64, torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match=r"flash_attn: needs a CUDA device.*varlen: needs a CUDA device"):
        choose_backend(AttentionChoice(backends=("flash_attn", "varlen")), shape)


def test_an_unknown_backend_is_a_configuration_error() -> None:
    shape = AttentionShape(4, 2, 64, torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match=f"unknown backend xformers; there are {', '.join(BACKENDS)}"):
        choose_backend(AttentionChoice(backends=("xformers", "sdpa")), shape)
