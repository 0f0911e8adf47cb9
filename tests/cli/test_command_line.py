"""The command line as a user meets it: quick answers, one line for a mistake, from anywhere, installed or not."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "wandb",
    "openai",
    "anthropic",
    "tiktoken",
    "genai_prices",
    "tokenizers",
)


def swe_infer(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swe_infer", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--cfg", "job"], 0),
        (["--cfg", "job", "model=gpt-4o", "dataset=swebench_oracle"], 0),
        (["decoding.tempratur=1"], 2),
        (["model=lama"], 2),
        (["decoding.temperature=warm"], 2),
        (["-m", "decoding.tempratur=1,2"], 2),
        (["model=gpt-4o", "provider=openai", "shard.index=0"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_answers_come_without_a_heavy_import(arguments: list[str], status: int, tmp_path: Path) -> None:
    result = swe_infer(*arguments, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == status, result.stderr
    modules = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    assert "hydra" in modules, "the import report is there"
    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)
    assert len(modules) < 650


@pytest.mark.parametrize(
    "arguments",
    [
        ["decoding.tempratur=1"],
        ["model=lama"],
        ["decoding.stop=[a"],
        ["dataset=jsonl", "dataset.path=missing.jsonl", "tracker=none"],
        ["model=llama", "model.path=missing", "tracker=none"],
        ["model=gpt-4o", "tracker=none"],
        ["model=gpt-4o", "decoding.n=0"],
        ["dataset=sample", "dataset.instance_ids=[nobody]", "tracker=none"],
        ["--resolve"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_2_and_leaves_nothing(arguments: list[str], tmp_path: Path) -> None:
    result = swe_infer(*arguments, cwd=tmp_path, OPENAI_API_KEY="")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_overrides_may_stand_on_both_sides_of_a_flag(tmp_path: Path) -> None:
    result = swe_infer("decoding.n=2", "--cfg", "job", "decoding.seed=7", "-p", "decoding", cwd=tmp_path)
    assert "'n': 2" in result.stdout
    assert "seed: 7" in result.stdout


def test_a_model_name_alone_means_an_api_model(tmp_path: Path) -> None:
    result = swe_infer(
        "model.name=my-tune", "provider=openai_compatible", "--cfg", "job", "-p", "model", cwd=tmp_path
    )
    assert "name: my-tune" in result.stdout


def test_runs_from_an_installed_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (tmp_path / "elsewhere").mkdir()
    code = "from swe_infer import config; print(config.conf_dir())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found == str(site / "swe_infer" / "conf")
    result = swe_infer("--cfg", "job", "-p", "model", cwd=tmp_path / "elsewhere", PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    assert "swe_infer.types.LlamaModel" in result.stdout
