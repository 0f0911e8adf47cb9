"""``provider=vllm``: its server starts, answers, is missed when it dies, and is never left behind.

The faults are shown by a stand-in for the program, a real process with a child of its own. What vLLM itself makes of
the flags, the protocol and the bundled model is tested where ``SWE_INFER_VLLM`` names a real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from swe_infer.errors import ConfigError, ProviderFatal
from swe_infer.providers.vllm import VLLM
from swe_infer.types import ApiModel, Decoding, LlamaModel, Prompt, Request
from tests.support import commands
from tests.support.instances import write_instances

ROOT = Path(__file__).resolve().parent.parent.parent
STAND_IN = ROOT / "tests" / "support" / "vllm_stand_in.py"
REAL = os.environ.get("SWE_INFER_VLLM")
MODEL = LlamaModel(path="some/checkpoint", context_window=4096)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in as an executable; it serves unless ``VLLM_STAND_IN`` is set otherwise."""
    path = tmp_path / "vllm"
    path.write_text(f"#!{sys.executable}\n" + STAND_IN.read_text())
    path.chmod(0o755)
    monkeypatch.setenv("VLLM_STAND_IN", "serves")
    monkeypatch.setenv("VLLM_STAND_IN_NOTES", str(tmp_path))
    return path


def opened(program: Path, model: ApiModel | LlamaModel = MODEL, **keys: Any) -> VLLM:
    """The provider after its server was up and has been stopped."""
    provider = VLLM(executable=str(program), **keys)
    served = provider.served(model)
    provider.keep_log(program.parent / "run")

    async def life() -> None:
        provider.check(served, Decoding())
        provider.check_access()
        await provider.open()
        await provider.close()

    asyncio.run(life())
    return provider


def alive(notes: Path) -> list[int]:
    """The processes of the server that still run."""
    pids = map(int, (notes / "pids").read_text().split())
    return [pid for pid in pids if "\nState:\tZ" not in status_of(pid) and status_of(pid)]


def status_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def until_gone(notes: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while alive(notes):
        assert time.monotonic() < deadline, f"left behind: {alive(notes)}"
        time.sleep(0.05)


def command(program: Path, *arguments: str) -> list[str]:
    data = write_instances(program.parent / "instances.jsonl", 12)
    return [
        "swe_infer", "model=llama", "model.path=some/checkpoint", "model.prompt_format=raw", "provider=vllm",
        f"provider.executable={program}", "tracker=none", "dataset=jsonl", f"dataset.path={data}",
        f"output_dir={program.parent / 'run'}", *arguments,
    ]  # fmt: skip


def start(program: Path, *arguments: str) -> commands.Command:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return commands.start(*command(program, *arguments), cwd=Path.cwd(), env=environment)


def test_the_server_gets_its_flags_and_no_key(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    opened(program, tensor_parallel_size=4, pipeline_parallel_size=2, extra_args=("--enforce-eager",))
    until_gone(program.parent)
    arguments = json.loads((program.parent / "arguments.json").read_text())
    port = arguments[arguments.index("--port") + 1]
    assert arguments == [
        "serve", "some/checkpoint", "--host", "127.0.0.1", "--port", port, "--tensor-parallel-size", "4",
        "--pipeline-parallel-size", "2", "--dtype", "auto", "--load-format", "safetensors",
        "--max-model-len", "4096", "--enforce-eager",
    ]  # fmt: skip
    assert "sk-planted" not in (program.parent / "environment.json").read_text()


def test_the_parts_of_a_layer_are_the_model_s_unless_the_provider_says_otherwise() -> None:
    model = LlamaModel(path="some/checkpoint", tensor_parallel=4, allow_pickle=True)
    for stated, wanted in ((None, "4"), (2, "2")):
        provider = VLLM(tensor_parallel_size=stated)
        provider.served(model)
        command = provider.command(8000)
        assert command[command.index("--tensor-parallel-size") + 1] == wanted
        assert "--load-format" not in command


def test_thinking_of_a_checkpoint_reaches_the_chat_template() -> None:
    request = Request("a__b-1", 0, Prompt(None, "u"), Decoding())
    cases: tuple[tuple[Literal["off", "adaptive"] | bool | None, bool | None], ...]
    cases = ((None, None), ("off", False), ("adaptive", True), (False, False))
    for thinking, expected in cases:
        provider = VLLM()
        served = provider.served(LlamaModel(path="some/Qwen3-8B", prompt_format="chat", thinking=thinking))
        provider.check(served, Decoding())
        body = provider.body(request, served)
        assert body.get("chat_template_kwargs", {}).get("enable_thinking") == expected


def test_a_model_is_never_an_option_of_the_server() -> None:
    with pytest.raises(ConfigError, match=r"model\.path=--trust-remote-code: begins with a hyphen"):
        VLLM().served(LlamaModel(path="--trust-remote-code"))
    with pytest.raises(ConfigError, match=r"model\.name=-x: begins with a hyphen"):
        VLLM().served(ApiModel(name="-x"))


def test_an_early_death_is_one_line_with_the_last_words_of_the_log(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_STAND_IN", "dies")
    with pytest.raises(ProviderFatal) as caught:
        opened(program)
    log = program.parent / "run" / "vllm.log"
    assert str(caught.value) == (
        "provider=vllm: the server ended with exit status 3 before it was ready: "
        f"ValueError: the KV cache does not fit (its log: {log})"
    )
    assert "loading the weights" in log.read_text()
    until_gone(program.parent)


def test_a_server_that_is_not_ready_in_time_is_ended(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_STAND_IN", "hangs")
    with pytest.raises(
        ProviderFatal, match=r"not ready in time \(provider\.ready_timeout_s=1\): loading the weights"
    ):
        opened(program, ready_timeout_s=1.0)
    until_gone(program.parent)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"executable": "no-such-vllm"}, r"provider\.executable=no-such-vllm: there is no such program"),
        ({"tensor_parallel_size": 0}, r"provider\.tensor_parallel_size=0: must be at least 1"),
        ({"max_model_len": 1}, r"provider\.max_model_len=1: must be at least 2 tokens"),
        ({"ready_timeout_s": 0.0}, r"provider\.ready_timeout_s=0\.0: must be"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_started(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        VLLM(**keys).check_access()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_path": "x"}, r"model\.peft_path: provider=vllm loads no adapter"),
        ({"device": "cuda:1"}, r"model\.dev"),
        ({"template_date": "2026-01-31"}, r"model\.template_date: vLLM's templates read the clock"),
        ({"prompt_format": "raw", "thinking": "off"}, r"model\.thinking: only a chat template can use it"),
    ],
)
def test_what_only_our_own_engine_does_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        VLLM().served(LlamaModel(path="some/checkpoint", **changes))


def test_a_raw_checkpoint_is_asked_for_completions_of_the_whole_text_at_no_cost(program: Path) -> None:
    done = commands.run(*command(program), cwd=Path.cwd(), env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    until_gone(program.parent)
    asked = [json.loads(line) for line in (program.parent / "requests.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (program.parent / "instances.jsonl").read_text().splitlines()]
    assert {body["path"] for body in asked} == {"/v1/completions"}
    assert {body["prompt"] for body in asked} == {row["text"] for row in rows}
    assert all(body["model"] == "some/checkpoint" and "messages" not in body for body in asked)
    run = Path(done.stdout.splitlines()[-1])
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["completed"], summary["cost_usd"]) == (12, 0)
    assert json.loads((run / "predictions.jsonl").read_text().splitlines()[0])["model_name_or_path"] == "checkpoint"
    assert "loading the weights" in (run / "vllm.log").read_text()


def test_a_model_of_any_name_is_asked_in_chat_at_no_cost(program: Path) -> None:
    model = ApiModel(name="owner/chat-model")
    provider = VLLM(executable=str(program))
    served = provider.served(model)
    assert served.pricing is not None
    assert provider.path(served) == "/chat/completions"


def test_a_server_that_dies_ends_the_run_and_what_was_answered_is_kept(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_STAND_IN", "quits")
    process = start(program, "provider.max_concurrency=1")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "provider=vllm: the server ended with exit status 4: RuntimeError: the engine is dead" in errors
    assert "Traceback" not in errors
    assert json.loads((program.parent / "run" / "summary.json").read_text())["completed"] == 3
    until_gone(program.parent)


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGINT, "serves"),
        pytest.param(signal.SIGINT, "hangs", marks=pytest.mark.full),
        pytest.param(signal.SIGTERM, "hangs", marks=pytest.mark.full),
        (signal.SIGKILL, "serves"),
    ],
)
def test_no_process_is_left_behind_whatever_ends_the_run(
    program: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, stage: str
) -> None:
    monkeypatch.setenv("VLLM_STAND_IN", stage)
    monkeypatch.setenv("VLLM_STAND_IN_LATENCY", "0.3")
    process = start(program, "provider.max_concurrency=1")
    waited_for = program.parent / ("arguments.json" if stage == "hangs" else "requests.jsonl")
    while not waited_for.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), errors
    until_gone(program.parent)


@pytest.mark.skipif(REAL is None, reason="SWE_INFER_VLLM names no vllm program")
def test_greedy_tokens_of_the_bundled_model_equal_our_engine_s(tmp_path: Path) -> None:
    outputs = []
    for name, extra in (("vllm", ["provider=vllm", f"provider.executable={REAL}"]), ("llama", [])):
        run = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-m", "swe_infer", "tracker=none", "dataset.limit=8", f"output_dir={run}", *extra],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
        outputs.append({r["instance_id"]: (r["full_output"], r["usage"]["output_tokens"]) for r in records})
    assert len(outputs[0]) == 8
    assert outputs[0] == outputs[1]
