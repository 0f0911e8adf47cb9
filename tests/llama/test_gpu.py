"""The engine on a GPU: kernels, graphs, and agreement with the CPU and with transformers. Skipped without one."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import ConfigError
from swe_infer.types import AttentionChoice

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional

    from swe_infer.llama.engine import Engine
    from swe_infer.llama.rope import rotate
    from tests.llama.helpers import ask, engine_of, generate, random_prompt
    from tests.support.checkpoints import first_difference, greedy_tokens, make_checkpoint, reference

pytestmark = pytest.mark.gpu

DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture(scope="module", autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def large_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grouped-query attention with heads of 64, which flash-attention kernels support."""
    return make_checkpoint(
        tmp_path_factory.mktemp("gpu"),
        hidden_size=256,
        intermediate_size=512,
        head_dim=64,
        num_hidden_layers=4,
        initializer_range=0.08,  # as in trained models: larger weights amplify rounding
    )


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Ignore deprecation warnings of other torch versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def kernels() -> Any:
    pytest.importorskip("triton")
    return importlib.import_module("swe_infer.llama.kernels")


def same(found: Tensor, expected: Tensor) -> None:
    """Equal up to the last bit."""
    tolerance = 2 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
@pytest.mark.parametrize("size", [96, 256, 4096, 5120])
@pytest.mark.parametrize("added", [False, True])
def test_the_norm_kernel_is_the_plain_norm(dtype: torch.dtype, size: int, added: bool) -> None:
    x, delta, weight = torch.randn(3, 7, size, device="cuda", dtype=dtype).unbind(0)
    total, normed = kernels().add_rms_norm(x, delta if added else None, weight[0], 1e-5)
    expected = x + delta if added else x
    wide = expected.float()
    assert torch.equal(total, expected)
    same(normed, weight[0] * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
@pytest.mark.parametrize(("heads", "head_dim"), [(6, 32), (10, 64), (40, 128), (12, 80)])
def test_the_rotation_kernel_is_the_plain_rotation(dtype: torch.dtype, heads: int, head_dim: int) -> None:
    qkv = torch.randn(5, heads + 4, head_dim, device="cuda", dtype=dtype)
    cos, sin = torch.randn(2, 5, 1, head_dim, device="cuda", dtype=dtype).unbind(0)
    same(kernels().rotate(qkv[:, :heads], cos, sin), rotate(qkv[:, :heads], cos, sin))


@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
@pytest.mark.parametrize("size", [96, 1024, 14336])
def test_the_activation_kernel_is_the_plain_activation(dtype: torch.dtype, size: int) -> None:
    both = torch.randn(5, 2 * size, device="cuda", dtype=dtype)
    gate, up = both.chunk(2, dim=-1)
    same(kernels().silu_mul(both), functional.silu(gate) * up)


def paged_engine(directory: Path, **options: Any) -> Engine:
    engine = engine_of(directory, device="cuda", dtype="bfloat16", **options)
    if engine.graphs is None:
        pytest.skip("no paged attention kernel is installed here")
    return engine


def mixed_requests() -> list[Any]:
    return [
        ask(n, random_prompt(30 + 61 * n, n), 20 + 3 * n, temperature=0.7 * (n % 2), top_p=0.9, seed=n)
        for n in range(9)
    ]


def test_logits_in_float32_equal_those_of_the_cpu(large_heads: Path) -> None:
    ids = torch.tensor([random_prompt(300, 1), random_prompt(300, 2)])
    ours = engine_of(large_heads, device="cuda", dtype="float32").model(ids.cuda())
    torch.testing.assert_close(
        ours.cpu(), engine_of(large_heads, device="cpu", dtype="float32").model(ids), atol=1e-4, rtol=0
    )


def test_greedy_answers_in_float32_equal_those_of_the_cpu(large_heads: Path) -> None:
    requests = [ask(n, random_prompt(40 + 97 * n, n), 60) for n in range(6)]
    theirs = generate(engine_of(large_heads, device="cpu", dtype="float32"), requests)
    ours = generate(engine_of(large_heads, device="cuda", dtype="float32"), requests)
    assert {key: answer.token_ids for key, answer in ours.items()} == {
        key: answer.token_ids for key, answer in theirs.items()
    }


def test_graphs_do_not_change_outputs(large_heads: Path) -> None:
    with_graphs = paged_engine(large_heads)
    without = paged_engine(large_heads)
    without.graphs = None
    ours, theirs = generate(with_graphs, mixed_requests()), generate(without, mixed_requests())
    assert with_graphs.graphs is not None
    assert with_graphs.graphs.graph_count > 0
    same_tokens = [ours[key].token_ids == theirs[key].token_ids for key in theirs]
    assert sum(same_tokens) >= len(same_tokens) - 1, "a near-tie may be decided differently with other shapes"


def test_a_decode_step_synchronises_once(large_heads: Path) -> None:
    engine = paged_engine(large_heads)
    for request in [ask(n, random_prompt(50, n), 40) for n in range(4)]:
        engine.add_request(request)
    for _ in range(8):  # one of them captures the graph
        engine.step()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in seen if "synchroniz" in str(warning.message)]
    assert len(waits) == 1, [str(warning.message) for warning in waits]
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before < 10, "only the sampler's own tensors"


@pytest.mark.parametrize("backends", [("flash_attn",), ("varlen",), ("sdpa",)], ids=lambda names: names[0])
def test_greedy_tokens_in_bfloat16_are_those_of_transformers_up_to_a_near_tie(
    large_heads: Path, backends: tuple[str, ...]
) -> None:
    try:
        engine = engine_of(large_heads, device="cuda", dtype="bfloat16", attention=AttentionChoice(backends=backends))
    except ConfigError as error:
        pytest.skip(str(error))
    model, exact = (reference(large_heads).to("cuda", dtype) for dtype in (torch.bfloat16, torch.float64))
    requests = [ask(n, random_prompt(100 + 50 * n, 40 + n), 64) for n in range(8)]
    answers = generate(engine, requests)
    for request in requests:
        theirs = greedy_tokens(model, request.prompt_ids, 64)
        found = first_difference(request.prompt_ids, answers[str(request.key)].token_ids, theirs, model, exact)
        assert found is None or found.near_tie, f"request {request.key}: {found}"
