"""One contract for all attention backends: each file of the folder is tested, where the machine can run it."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import swe_infer.llama.attention
from swe_infer.errors import ConfigError
from swe_infer.llama.attention.base import AttentionBackend, AttentionShape, Layout, choose_backend
from swe_infer.llama.shared_prefix import prefix_groups
from swe_infer.types import AttentionChoice

FOLDER = Path(swe_infer.llama.attention.__file__).parent
BACKENDS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "base"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}

LAYOUTS: dict[str, list[tuple[int, int]]] = {
    # (query rows, keys) of each sequence
    "one_token": [(1, 1)],
    "whole_prompts_of_unequal_length": [(5, 5), (300, 300), (1, 1), (257, 257)],
    "chunks_of_prompts": [(100, 350), (256, 512), (7, 263), (2, 700)],
    "decoding": [(1, 1), (1, 31), (1, 256), (1, 257), (1, 600)],
    "decoding_and_chunks": [(1, 40), (130, 400), (1, 513), (64, 64), (1, 300)],
    "guesses": [(5, 300), (3, 290), (8, 310), (1, 280), (33, 600), (17, 767), (6, 258), (64, 700), (2, 2), (7, 520)],
}


def make_backend(name: str, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> AttentionBackend[Any]:
    shape = AttentionShape(heads, kv_heads, head_dim, DEVICE, dtype)
    backend = importlib.import_module(f"swe_infer.llama.attention.{name}").Backend
    reason = backend.why_not(shape)
    if reason is not None:
        pytest.skip(reason)
    made: AttentionBackend[Any] = backend(shape)
    return made


class Scene:
    """Random queries, and keys and values scattered over a paged cache whose other places hold large garbage."""

    def __init__(self, backend: AttentionBackend[Any], lengths: list[tuple[int, int]], seed: int = 0) -> None:
        shape, size = backend.shape, backend.block_size
        torch.manual_seed(seed)
        counts = [-(-keys // size) for _, keys in lengths]
        numbers = (torch.randperm(sum(counts)) + 1).tolist()
        self.tables = [[numbers.pop() for _ in range(count)] for count in counts]
        pool = backend.pool_shape(1 + sum(counts))
        self.k_pool = torch.full(pool, 1e4, dtype=shape.dtype, device=DEVICE)
        self.v_pool = torch.full(pool, -1e4, dtype=shape.dtype, device=DEVICE)
        self.sequences = []
        rows = []
        for (queries, keys), table in zip(lengths, self.tables, strict=True):
            q_RHD = torch.randn(queries, shape.heads, shape.head_dim)
            k_LKD, v_LKD = torch.randn(2, keys, shape.kv_heads, shape.head_dim).to(shape.dtype).unbind(0)
            slots = backend.slots(torch.tensor([table[p // size] * size + p % size for p in range(keys)]).to(DEVICE))
            backend.write(self.k_pool, self.v_pool, k_LKD.to(DEVICE), v_LKD.to(DEVICE), slots)
            rows.append(q_RHD.to(shape.dtype))
            self.sequences.append((rows[-1], k_LKD, v_LKD))
        self.q_THD = torch.cat(rows).to(DEVICE)
        self.layout = Layout([q for q, _ in lengths], [k for _, k in lengths], self.tables)

    def expected(self) -> Tensor:
        return torch.cat([exact_attention(*sequence) for sequence in self.sequences])


def exact_attention(q_RHD: Tensor, k_LKD: Tensor, v_LKD: Tensor) -> Tensor:
    """The definition, in float64."""
    rows, heads, head_dim = q_RHD.shape
    group = heads // k_LKD.shape[1]
    k_LHD, v_LHD = (x.double().repeat_interleave(group, dim=1) for x in (k_LKD, v_LKD))
    scores_HRL = torch.einsum("rhd,lhd->hrl", q_RHD.double(), k_LHD) / math.sqrt(head_dim)
    keys = len(k_LKD)
    hidden_RL = torch.arange(keys)[None] > torch.arange(keys - rows, keys)[:, None]
    weights_HRL = scores_HRL.masked_fill(hidden_RL, -math.inf).softmax(-1)
    return torch.einsum("hrl,lhd->rhd", weights_HRL, v_LHD)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)], ids=["multi_head", "grouped", "multi_query"])
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", BACKENDS)
def test_backend_agrees_with_float64(
    name: str, lengths: list[tuple[int, int]], heads: tuple[int, int], dtype: torch.dtype
) -> None:
    backend = make_backend(name, dtype, *heads, 64)
    scene = Scene(backend, lengths)
    out_THD = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, backend.plan(scene.layout))
    torch.testing.assert_close(out_THD.cpu().double(), scene.expected(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_beyond_the_layout_come_back_as_zeros(name: str) -> None:
    backend = make_backend(name, torch.bfloat16, 4, 2, 64)
    scene = Scene(backend, [(3, 10)])
    q_THD = torch.cat([scene.q_THD, torch.ones_like(scene.q_THD)])
    out_THD = backend.attend(q_THD, scene.k_pool, scene.v_pool, backend.plan(scene.layout))
    assert out_THD.shape == q_THD.shape
    assert not out_THD[3:].any()


@pytest.mark.skipif(DEVICE.type != "cpu", reason="promised on a CPU")
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)], ids=["multi_head", "grouped", "multi_query"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("sdpa", torch.float32), ("native", torch.float32), ("native", torch.bfloat16)]
)
def test_rows_have_the_same_bits_however_a_sequence_is_cut(
    name: str, dtype: torch.dtype, heads: tuple[int, int]
) -> None:
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


def shared_scene(backend: AttentionBackend[Any], prompts: dict[int, list[int]]) -> tuple[Scene, Layout]:
    """Decoding samples: for each prompt length, the lengths of the outputs that share its full blocks."""
    size = backend.block_size
    whole = Scene(backend, [(1, prompt + max(outputs)) for prompt, outputs in prompts.items() for _ in outputs])
    lens, tables, first = [], [], 0
    for prompt, outputs in prompts.items():
        shared = whole.tables[first][: prompt // size]
        for place, output in enumerate(outputs):
            lens.append(prompt + output)
            own = whole.tables[first + place][len(shared) : -(-lens[-1] // size)]
            tables.append(shared + own)
        first += len(outputs)
    return whole, Layout([1] * len(lens), lens, tables)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="promised on a CPU")
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)], ids=["multi_head", "grouped", "multi_query"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_rows_have_the_same_bits_whoever_shares_their_prompt(
    dtype: torch.dtype, heads: tuple[int, int]
) -> None:
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
def test_groups_are_of_sequences_that_share_most_of_their_blocks(
    tables: list[list[int]], groups: list[tuple[tuple[int, ...], int]]
) -> None:
    assert [(group.members, group.blocks) for group in prefix_groups(tables, most=4)] == groups


def test_the_first_backend_that_works_is_chosen() -> None:
    shape = AttentionShape(4, 2, 64, torch.device("cpu"), torch.float32)
    chosen = choose_backend(AttentionChoice(("flash_attn", "varlen", "sdpa")), shape)
    assert type(chosen).__module__.endswith(".sdpa")


def test_a_choice_that_cannot_work_says_why() -> None:
    shape = AttentionShape(4, 2, 64, torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match=r"flash_attn: needs a CUDA device.*varlen: needs a CUDA device"):
        choose_backend(AttentionChoice(("flash_attn", "varlen")), shape)


def test_an_unknown_backend_is_a_configuration_error() -> None:
    shape = AttentionShape(4, 2, 64, torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match=r"unknown backend xformers; there are flash_attn, native, sdpa, varlen"):
        choose_backend(AttentionChoice(("xformers", "sdpa")), shape)
