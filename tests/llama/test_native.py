"""The compiled kernels against their definitions, for every instruction set that this machine has, and their
compilation."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from tests.llama.test_attention import LAYOUTS
from tests.support.selection import combinations

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional

    from swe_infer.llama.attention.base import AttentionShape
    from swe_infer.llama.attention.native import Backend
    from swe_infer.llama.native import build
    from swe_infer.llama.native.build import compiled
    from swe_infer.llama.native.kernels import Kernels, load_kernels
    from swe_infer.llama.rope import rotate
    from tests.llama.helpers import load, random_prompt
    from tests.llama.scenes import TOLERANCE, Scene
    from tests.support.checkpoints import make_checkpoint

    WithWeights: TypeAlias = tuple[Kernels, Callable[..., Tensor]]


VARIANTS = [(dtype, limit) for dtype in ("float32", "bfloat16") for limit in ("amx", "avx512", "avx2")]
VARIANTS.insert(3, ("float32", "wide"))
"""Types and instruction sets; ``wide``: code for 512 bits, lowered by the compiler to what the processor has."""


def found_or_skipped(dtype: torch.dtype, limit: str = "amx") -> Kernels:
    if limit == "wide":
        if isinstance(least := load_kernels(dtype, "avx2"), str):
            pytest.skip(least)
        machine = ["-march=x86-64-v3"] if platform.machine() == "x86_64" else []
        return Kernels(compiled("wide", *machine, "-O1", "-Wno-psabi", "-DLANES=16"), dtype)
    found = load_kernels(dtype, limit)
    if isinstance(found, str):
        pytest.skip(found)
    limits = ("avx2", "avx512", "amx")
    if any(loaded_from(dtype, lesser) == found.compiled._name for lesser in limits[: limits.index(limit)]):
        pytest.skip(f"this processor has no kernels of its own for {limit}")
    return found


def loaded_from(dtype: torch.dtype, limit: str) -> str:
    kernels = load_kernels(dtype, limit)
    return kernels if isinstance(kernels, str) else kernels.compiled._name


@pytest.fixture(params=VARIANTS, ids=["_".join(variant) for variant in VARIANTS])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    dtype, limit = request.param
    return found_or_skipped(getattr(torch, dtype), limit)


NARROW = [(*VARIANTS[n], precision) for n in range(4) for precision in ("bfloat16", "float16")]
WEIGHTS = [*NARROW, *[(dtype, limit, dtype) for dtype, limit in VARIANTS]]


@pytest.fixture(
    params=[pytest.param(one, marks=[pytest.mark.full] * (one[1:] == ("wide", "float16"))) for one in WEIGHTS],
    ids=["_".join(weights) for weights in WEIGHTS],
)
def with_weights(request: pytest.FixtureRequest) -> WithWeights:
    """Kernels, and a generator of weights, which may have the precision of another type."""
    name, limit, precision = request.param
    dtype = getattr(torch, name)
    found = found_or_skipped(dtype, limit)

    def weight(*shape: int, seed: int = 1) -> Tensor:
        return drawn(found, *shape, seed=seed).to(getattr(torch, precision)).to(dtype)

    return found, weight


def drawn(kernels: Kernels, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(kernels.dtype)


def assert_rounded(found: Tensor, exact: Tensor, kernels: Kernels, units: float = 1.01) -> None:
    """Equal to the exact values within ``units`` units in the last place; 128 times as many in float32, where sums
    round too."""
    unit = torch.finfo(kernels.dtype).eps * (128 if kernels.dtype == torch.float32 else 1)
    torch.testing.assert_close(found.double(), exact, rtol=units * unit, atol=units * unit / 4)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), combinations([1, 8, 33, 600], [32, 800], [1, 32, 47, 400]))
def test_linear_is_a_product_and_a_bias(with_weights: WithWeights, rows: int, inputs: int, outputs: int) -> None:
    kernels, weight = with_weights
    x_TI, weight_OI = drawn(kernels, rows, inputs), weight(outputs, inputs)
    bias_O = drawn(kernels, outputs)
    packed = kernels.pack(weight_OI)
    exact = x_TI.double() @ weight_OI.double().T
    scale = inputs**0.5
    assert_rounded(kernels.linear(x_TI, packed, None).double() / scale, exact / scale, kernels)
    assert_rounded(kernels.linear(x_TI, packed, bias_O).double() / scale, (exact + bias_O.double()) / scale, kernels)


def test_a_gated_product_is_silu_of_the_first_half_times_the_second(
    with_weights: WithWeights,
) -> None:
    kernels, weight = with_weights
    x_TI, weight_OI = drawn(kernels, 50, 96), weight(128, 96) / 8
    both_TO = (x_TI.double() @ weight_OI.double().T).to(kernels.dtype)
    gated = kernels.linear(x_TI, kernels.pack(weight_OI, gated=True), None)
    assert gated.shape == (50, 64)
    assert_rounded(gated, functional.silu(both_TO[:, :64].double()) * both_TO[:, 64:].double(), kernels, units=4)
    bias_O = drawn(kernels, 128, seed=3)
    both_TO = (x_TI.double() @ weight_OI.double().T + bias_O.double()).to(kernels.dtype)
    gated = kernels.linear(x_TI, kernels.pack(weight_OI, gated=True), bias_O)
    assert_rounded(gated, functional.silu(both_TO[:, :64].double()) * both_TO[:, 64:].double(), kernels, units=4)


def test_a_row_of_a_product_has_the_same_bits_in_every_batch(
    with_weights: WithWeights,
) -> None:
    kernels, weight = with_weights
    x_TI, packed = drawn(kernels, 600, 800), kernels.pack(weight(400, 800))
    whole = kernels.linear(x_TI, packed, None)
    for rows in (1, 2, 7, 16, 17, 32, 33, 500):
        assert torch.equal(kernels.linear(x_TI[:rows], packed, None), whole[:rows]), rows


def test_weights_that_16_bits_represent_exactly_use_half_the_memory(
    with_weights: WithWeights,
) -> None:
    kernels, weight = with_weights
    weight_OI = weight(64, 96)
    weight_OI[0, :4] = torch.tensor([0.0, 2**-14, -1.5, 2**-3])
    fits = [t for t in (torch.bfloat16, torch.float16) if torch.equal(weight_OI.to(t).to(weight_OI.dtype), weight_OI)]
    assert kernels.pack(weight_OI).data.dtype == [*fits, torch.float32][0]
    for value in (2**-24, 65504.0, 65536.0, 2**-25, 1 + 2**-10, 1 + 2**-7, 2**-133):
        weight_OI[63, 95] = value
        kept = kernels.unpack(kernels.pack(weight_OI), torch.tensor([63]))
        assert torch.equal(kept, weight_OI[63:])
    weight_OI[63, 95] = 1 + 2**-20
    assert kernels.pack(weight_OI).data.dtype == kernels.dtype


def test_narrow_products_are_as_exact_as_those_of_torch(
    with_weights: WithWeights,
) -> None:
    """Three bfloat16 numbers represent any float."""
    kernels, weight = with_weights
    x_TI, weight_OI = drawn(kernels, 100, 512), weight(200, 512)
    x_TI *= torch.logspace(-20, 20, 100)[:, None]
    exact = x_TI.double() @ weight_OI.double().T
    size = exact.square().mean(1, keepdim=True).sqrt()

    def error(found: Tensor) -> float:
        return ((found.double() - exact) / size).square().mean().sqrt().item()

    assert error(kernels.linear(x_TI, kernels.pack(weight_OI), None)) < 1.5 * error(x_TI @ weight_OI.T)


def test_an_embedding_is_read_from_a_packed_weight(with_weights: WithWeights) -> None:
    kernels, weight = with_weights
    weight_OI, ids_T = weight(47, 64), torch.tensor([0, 46, 31, 32, 3, 3])
    assert torch.equal(kernels.unpack(kernels.pack(weight_OI), ids_T), weight_OI[ids_T])


@pytest.mark.parametrize("size", [20, 64, 770])
@pytest.mark.parametrize("rows", [1, 40])
def test_norm_of_a_sum(kernels: Kernels, rows: int, size: int) -> None:
    x_TE, delta_TE, weight_E = (
        drawn(kernels, rows, size),
        drawn(kernels, rows, size, seed=1),
        drawn(kernels, size, seed=2),
    )
    total_TE, normed_TE = kernels.add_rms_norm(x_TE, delta_TE, weight_E, 1e-5)
    assert torch.equal(total_TE, x_TE + delta_TE)
    wide_TE = total_TE.double()
    exact = wide_TE * torch.rsqrt(wide_TE.square().mean(-1, keepdim=True) + 1e-5) * weight_E.double()
    assert_rounded(normed_TE, exact, kernels, units=2)
    alone_TE, again_TE = kernels.add_rms_norm(total_TE, None, weight_E, 1e-5)
    assert torch.equal(alone_TE, total_TE)
    assert torch.equal(again_TE, normed_TE)


@pytest.mark.parametrize("head_dim", [16, 20, 64, 128])
def test_rotation_is_that_of_the_plain_operations(kernels: Kernels, head_dim: int) -> None:
    x_THD = drawn(kernels, 30, 7, head_dim)[:, :5]  # some of each token's heads
    cos_T1D, sin_T1D = drawn(kernels, 30, 1, head_dim, seed=1), drawn(kernels, 30, 1, head_dim, seed=2)
    assert_rounded(
        kernels.rotate(x_THD, cos_T1D, sin_T1D), rotate(x_THD, cos_T1D, sin_T1D).double(), kernels, units=2
    )


def test_gates_may_be_large_numbers(kernels: Kernels) -> None:
    gate_T = torch.tensor([-3e38, -200.0, -88.0, 0.0, 88.0, 200.0, 3e38]).to(kernels.dtype)
    x_TI = torch.zeros(len(gate_T), 32).to(kernels.dtype)
    x_TI[:, 0], x_TI[:, 1] = gate_T, 1
    weight_OI = torch.zeros(32, 32).to(kernels.dtype)
    weight_OI[0, 0] = weight_OI[16, 1] = 1
    found = kernels.linear(x_TI, kernels.pack(weight_OI, gated=True), None)
    torch.testing.assert_close(found[:, 0], functional.silu(gate_T.float()).to(kernels.dtype), atol=1e-30, rtol=0.01)


HEADS = {"multi_head": (4, 4), "grouped": (6, 2), "many": (71, 1)}
DEFAULT = {("multi_head", 32), ("multi_head", 96), ("multi_head", 256), ("grouped", 96), ("many", 32)}


@pytest.mark.parametrize(
    ("heads", "head_dim"),
    [
        pytest.param(heads, size, id=f"{name}-{size}", marks=[pytest.mark.full] * ((name, size) not in DEFAULT))
        for name, heads in HEADS.items()
        for size in (32, 96, 256)
    ],
)
def test_attention_of_every_head_size(kernels: Kernels, heads: tuple[int, int], head_dim: int) -> None:
    backend = Backend(AttentionShape(*heads, head_dim, torch.device("cpu"), kernels.dtype), kernels)
    scene = Scene(backend, LAYOUTS["decoding_and_chunks"])
    out_THD = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, backend.plan(scene.layout))
    tolerance = TOLERANCE[kernels.dtype]
    torch.testing.assert_close(out_THD.double(), scene.expected(), atol=tolerance, rtol=tolerance)


def test_attention_accepts_scores_of_any_size(kernels: Kernels) -> None:
    """One key outweighs the others by more than a float can represent."""
    backend = Backend(AttentionShape(2, 2, 32, torch.device("cpu"), kernels.dtype), kernels)
    scene = Scene(backend, [(200, 200)])
    scene.q_THD *= 1e4
    out_THD = backend.attend(scene.q_THD, scene.k_pool, scene.v_pool, backend.plan(scene.layout))
    scene.sequences = [(scene.q_THD, *scene.sequences[0][1:])]
    torch.testing.assert_close(out_THD.double(), scene.expected(), atol=0.02, rtol=0.02)


@pytest.fixture
def available() -> None:
    found_or_skipped(torch.float32)


SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"head_dim": 32},
    "biases": {"head_dim": 32, "attention_bias": True, "mlp_bias": True},
    "tied": {"head_dim": 64, "tie_word_embeddings": True},
}


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")],
    ids=["float32", "narrow", "bfloat16"],
    indirect=True,
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_layers_in_one_call_are_the_layers_one_by_one(
    shape: dict[str, Any], dtype: torch.dtype, stored: torch.dtype, tmp_path: Path
) -> None:
    """A window that is longer than the prompts disables the one-call path. Rounding errors equal those of torch's
    operations."""
    directory = make_checkpoint(tmp_path / "together", dtype=stored, **shape)
    apart = tmp_path / "apart"
    shutil.copytree(directory, apart)
    config = json.loads((directory / "config.json").read_text())
    (apart / "config.json").write_text(json.dumps({**config, "model_type": "mistral", "sliding_window": 1000}))
    ids_BL = torch.tensor([random_prompt(140, 1), random_prompt(140, 2)])
    logits = []
    for path in (directory, apart):
        model = load(path, dtype)
        model.pack()
        logits.append(model(ids_BL))
    assert torch.equal(*logits)
    wide = torch.float32 if dtype == torch.bfloat16 else torch.float64
    exact_BLV, plain_BLV = load(directory, wide)(ids_BL), load(directory, dtype)(ids_BL)
    error, usual = ((found_BLV - exact_BLV).square().mean().sqrt() for found_BLV in (logits[0], plain_BLV))
    assert error < 1.2 * usual


AVX512 = ["-march=x86-64-v4"]
AMX = [*AVX512, "-mamx-tile", "-mamx-bf16"]
BFLOAT16 = ["-mavx512bf16", "-DBFLOAT16"]
CHECKS: dict[str, tuple[str, list[str], list[str]]] = {
    # compiler, flags, and the emulator that runs the program
    "neon": ("aarch64-linux-gnu-g++", ["-static"], ["qemu-aarch64"]),
    "avx2": ("g++", ["-march=x86-64-v3"], []),
    "avx512": ("g++", AVX512, []),
    "amx": ("g++", AMX, []),
    "avx512_bfloat16": ("g++", [*AVX512, *BFLOAT16], []),
    "amx_bfloat16": ("g++", [*AMX, *BFLOAT16], []),
    "sanitized": ("g++", ["-march=x86-64-v3", "-g", "-fsanitize=address,undefined"], []),
    "sanitized_wide": ("g++", ["-march=x86-64-v3", "-DLANES=16", "-g", "-fsanitize=address,undefined"], []),
}


def checked(name: str, folder: Path) -> str:
    """Compile and run ``check_kernels.cpp``, and return the hash of the results of each kernel."""
    compiler, flags, emulator = CHECKS[name]
    for needed in (compiler, *emulator):
        if shutil.which(needed) is None:
            pytest.skip(f"needs {needed}")
    if not emulator:
        limit = next((limit for limit in ("avx512", "amx") if name.startswith(limit)), "avx2")
        found_or_skipped(torch.bfloat16 if name.endswith("bfloat16") else torch.float32, limit)
    kernels = Path(build.__file__).parent
    source = Path(__file__).with_name("check_kernels.cpp")
    program = folder / name
    common = ["-std=c++17", "-O1", "-ffp-contract=off", "-fopenmp", "-Wno-psabi", f"-I{kernels}"]
    subprocess.run([compiler, *common, *flags, source, "-o", program], check=True, capture_output=True, timeout=300)
    environment = {**os.environ, "UBSAN_OPTIONS": "halt_on_error=1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [*emulator, program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full
def test_kernels_for_arm_agree_with_their_definitions(tmp_path: Path) -> None:
    """In an emulator."""
    checked("neon", tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", ["neon", "sanitized", "sanitized_wide", "avx512", "amx"])
def test_results_are_the_same_bits_on_every_processor_and_under_sanitizers(name: str, tmp_path: Path) -> None:
    found, expected = checked(name, tmp_path).splitlines(), checked("avx2", tmp_path).splitlines()
    if name == "amx":  # sums the parts of the activations one after the other
        found, expected = ([line for line in lines if "of type 1" not in line] for lines in (found, expected))
    assert found == expected


@pytest.mark.full
@pytest.mark.parametrize("name", ["avx512_bfloat16", "amx_bfloat16"])
def test_kernels_in_bfloat16_agree_with_their_definitions(name: str, tmp_path: Path) -> None:
    checked(name, tmp_path)
