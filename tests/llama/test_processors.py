"""A bfloat16 checkpoint on CPUs with and without AVX-512 and AMX, each imitated in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import ConfigError
from swe_infer.runners.llama import LlamaRunner
from swe_infer.types import Decoding, LlamaModel
from tests.support.processors import PROCESSORS, features

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.placement import choose_weight_dtype
    from tests.llama.processor_report import LOGITS_OF, NEW_TOKENS, PROMPTS
    from tests.support.checkpoints import make_checkpoint, reference

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bfloat16"), dtype=torch.bfloat16, head_dim=32)


@dataclass(frozen=True, slots=True)
class Expected:
    """Results of transformers: greedy tokens in float32, and the last token's logits of one prompt in each type."""

    tokens: list[list[int]]
    logits: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def expected(directory: Path) -> Expected:
    model = reference(directory)
    model.generation_config.eos_token_id = None
    tokens = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        answer = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
        tokens.append(answer[0, len(prompt) :].tolist())
    logits = {}
    for dtype in ("float32", "bfloat16", "float16"):
        with torch.no_grad():
            typed = model.to(getattr(torch, dtype))
            logits[dtype] = typed(torch.tensor([PROMPTS[LOGITS_OF]])).logits[0, -1].float()
    return Expected(tokens, logits)


def report_of(name: str, directory: Path) -> dict[str, Any]:
    missing = PROCESSORS[name].missing()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(missing)}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.llama.processor_report", str(directory)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **PROCESSORS[name].environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**report, "log": done.stderr}


def check_answers(answers: dict[str, Any], expected: Expected) -> None:
    """In float32 outputs equal those of transformers, alone and in a batch; 16 bits lose no more precision than
    there."""
    exact = expected.logits["float32"]
    assert answers["float32_over_bfloat16"]["weights"] == "bfloat16"
    for asked, answer in answers.items():
        dtype = answer["dtype"]
        assert asked == "auto" or asked.startswith(dtype)
        error = (torch.tensor(answer["logits"]) - exact).std()
        if dtype == "float32":
            assert answer["together"] == answer["alone"] == expected.tokens
            assert error < 1e-3
        else:
            assert error < 1.5 * (expected.logits[dtype] - exact).std(), asked


@pytest.mark.parametrize("name", ["no_kernels", "avx2"])
def test_without_avx512(directory: Path, expected: Expected, name: str) -> None:
    report = report_of(name, directory)
    assert report["capability"] == "AVX2"
    assert report["answers"]["auto"]["dtype"] == "float32"
    assert report["log"].count("model.dtype=auto: computing in float32") == 1
    reasons = dict.fromkeys(("float32", "bfloat16"), "turned off by SWE_INFER_NATIVE_KERNELS=off")
    if name == "avx2":
        reasons = {"bfloat16": "bfloat16 needs a processor with AVX-512 BF16"}
    if "float32" in report["no_kernels"].keys() - reasons.keys():
        pytest.skip(f"the rest needs compiled kernels: {report['no_kernels']['float32']}")
    assert report["no_kernels"] == reasons
    for reason in set(reasons.values()):
        assert (
            f"WARNING:swe_infer.llama.native.kernels:no compiled kernels, so torch's slower operations run: {reason}"
            in report["log"]
        )
    for answer in report["answers"].values():
        assert answer["attention"] == ("sdpa" if answer["dtype"] in ("float16", *reasons) else "native")
    check_answers(report["answers"], expected)


@pytest.mark.parametrize("name", ["avx512", "amx"])
def test_with_avx512(directory: Path, expected: Expected, name: str) -> None:
    report = report_of(name, directory)
    assert report["capability"] == "AVX512"
    check_answers(report["answers"], expected)
    fast = "avx512_bf16" in features()
    assert report["answers"]["auto"]["dtype"] == ("bfloat16" if fast else "float32")
    if "float32" in report["no_kernels"]:
        pytest.skip(f"the rest needs compiled kernels: {report['no_kernels']['float32']}")
    assert report["answers"]["float32"]["attention"] == "native"
    assert report["answers"]["bfloat16"]["attention"] == ("native" if fast else "sdpa")


def test_an_unknown_limit_of_the_kernels_is_refused_before_anything_is_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWE_INFER_NATIVE_KERNELS", "sse")
    with pytest.raises(ConfigError, match="SWE_INFER_NATIVE_KERNELS=sse: must be off, avx2, avx512 or amx"):
        LlamaRunner(model=LlamaModel(path=str(checkpoint)), decoding=Decoding()).check()


@pytest.mark.parametrize(
    ("dtype", "device", "stored", "parameters", "adapted", "kept"),
    [
        ("float32", "cpu", "bfloat16", 10**9, False, "bfloat16"),
        ("float32", "cpu", "float16", 10**9, False, "float16"),
        ("float32", "cpu", None, 10**9, False, "float32"),
        ("float32", "cpu", "float32", 10**9, False, "float32"),
        ("float32", "cpu", "bfloat16", 10**8, False, "float32"),
        ("float32", "cuda", "bfloat16", 10**9, False, "float32"),
        ("bfloat16", "cpu", "float16", 10**9, False, "bfloat16"),
        ("float32", "cpu", "bfloat16", 10**9, True, "float32"),
        ("float32", "cpu", "bfloat16", 7 * 10**9, True, "bfloat16"),
    ],
)
def test_weights_are_kept_in_16_bits_where_nothing_is_lost(
    dtype: str,
    device: str,
    stored: str | None,
    parameters: int,
    adapted: bool,
    kept: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    types: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    found = choose_weight_dtype(
        types[dtype], torch.device(device), types[stored] if stored else None, parameters, 20 * 10**9, adapted=adapted
    )
    assert found == types[kept]
    warned = any(line.startswith("model.peft_path: merged in bfloat16") for line in caplog.messages)
    assert warned == (adapted and kept == "bfloat16")
