"""Checkpoints from a Hugging Face hub stand-in on loopback, each in a separate process, because huggingface_hub reads
its address once on import."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import commands
from tests.support.hub import Hub, serve_hub

ASK = """
import json, sys, threading
from swe_infer.runners.llama import LlamaRunner
from swe_infer.types import Decoding, LlamaModel, Prompt, Request
runner = LlamaRunner(model=LlamaModel(path=sys.argv[1]), decoding=Decoding(max_new_tokens=5), kv_cache_gb=0.01)
from swe_infer.errors import SweInferError
try:
    runner.check()
    print("window", runner.context_window)
    if len(sys.argv) > 2:
        outcomes = []
        runner.generate([Request("a", 0, Prompt(None, "def f"), runner.decoding)], lambda r, o: outcomes.append(o),
                   threading.Event())
        print("label", runner.label, "tokens", outcomes[0].usage.output_tokens)
except SweInferError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    pickled = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
    other = {"config.json": json.dumps({"architectures": ["GPT2LMHeadModel"]}).encode()}
    repositories = {
        "models/org/llama": files,
        "models/org/pickled": {**pickled, "pytorch_model.bin": b"never read"},
        "models/org/gpt2": other,
    }
    with serve_hub(repositories) as served:
        yield served


def ask(hub: Hub, home: Path, *arguments: str, **environment: str) -> str:
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
    done = commands.run("-c", ASK, *arguments, cwd=Path.cwd(), env=os.environ | settings, packages=commands.LOCAL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_checkpoint_comes_from_the_hub_and_later_from_its_cache(hub: Hub, tmp_path: Path) -> None:
    said = ask(hub, tmp_path, "org/llama", "run")
    assert said == "window 1024\nlabel llama tokens 5\n"
    assert any("model.safetensors" in request for request in hub.requests)
    count = len(hub.requests)
    assert ask(hub, tmp_path, "org/llama", "run", HF_HUB_OFFLINE="1") == said
    assert len(hub.requests) == count


def test_the_check_downloads_no_weights(hub: Hub, tmp_path: Path) -> None:
    assert ask(hub, tmp_path, "org/llama") == "window 1024\n"
    assert not any("resolve" in request and "safetensors" in request for request in hub.requests)


def test_an_unknown_architecture_on_the_hub_is_refused_by_the_check(hub: Hub, tmp_path: Path) -> None:
    assert "CheckpointError" in (said := ask(hub, tmp_path, "org/gpt2"))
    assert "unknown architecture (GPT2LMHeadModel)" in said


def test_pickled_weights_on_the_hub_are_neither_fetched_nor_loaded(hub: Hub, tmp_path: Path) -> None:
    assert "model.allow_pickle=true" in ask(hub, tmp_path, "org/pickled", "run")
    assert not any("pytorch_model.bin" in request for request in hub.requests)


def test_a_missing_repository_is_a_one_line_error(hub: Hub, tmp_path: Path) -> None:
    said = ask(hub, tmp_path, "org/nowhere")
    assert said.startswith("CheckpointError model.path=org/nowhere: there is no such directory, and the Hugging Face")
    assert said.count("\n") == 1


def test_without_network_and_cache_it_is_a_one_line_error(hub: Hub, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "hub", ignore_errors=True)
    said = ask(hub, tmp_path, "org/llama", HF_HUB_OFFLINE="1")
    assert said.startswith("CheckpointError model.path=org/llama")
    assert said.count("\n") == 1
