"""Runs of the command against servers that others wrote. A test is skipped if the server is not installed:

npm install --global @copilotkit/aimock        # the command llmock
uv tool install 'litellm[proxy]'               # the command litellm
uv tool install openwandb                      # the command openwandb
pip install 'transformers[serving]'            # beside swe_infer
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from swe_infer.run_directory.records import Record, read_records
from tests.support import commands
from tests.support.api_server import ApiServer, Fault

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "swe_infer" / "sample" / "tiny_llama"
TEXT = "<patch>\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n</patch>"
KEY = "sk-loopback-0123456789abcdef0123456789abcdef"
WANDB_KEY = "local" + 40 * "0"
"""The key that openwandb creates."""
_START_S = 300.0


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY, **variables}
    return commands.run("swe_infer", "evaluation=none", *arguments, cwd=cwd, env=environment)


def answered(name: str, *arguments: str, cwd: Path) -> tuple[list[Record], dict[str, Any], str]:
    """(records, summary, standard error) of a run on eight instances that completes."""
    result = run(f"output_dir={cwd / name}", "tracker=none", "dataset.limit=8", *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return *outcome(cwd / name), result.stderr


def outcome(directory: Path) -> tuple[list[Record], dict[str, Any]]:
    summary = json.loads((directory / "summary.json").read_text(), parse_float=Decimal)
    return list(read_records(directory / "records.jsonl")), summary


def command_of(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"the command {name} is not installed")
    return found


@contextmanager
def running(*command: str, ready: str, cwd: Path, **variables: str) -> Iterator[str]:
    """Starts a server, in whose arguments PORT is a free port, and yields its address once the path ``ready``
    answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = cwd / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [part.replace("PORT", port) for part in command], cwd=cwd, stdout=output, stderr=subprocess.STDOUT,
            env={**environment, "HOME": str(cwd), **variables}, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + _START_S
        while not _answers(f"http://127.0.0.1:{port}{ready}"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


# LiteLLM's proxy: the OpenAI and Anthropic APIs in front of mock models, with prices in its headers.

MODELS = {"gpt": "openai/gpt-4o", "claude": "anthropic/claude-sonnet-4-5"}


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program, directory = command_of("litellm"), tmp_path_factory.mktemp("litellm")
    models = [
        {"model_name": name, "litellm_params": {"model": model, "api_key": "none", "mock_response": TEXT}}
        for name, model in MODELS.items()
    ]
    (directory / "config.yaml").write_text(json.dumps({"model_list": models}))  # JSON is YAML
    with running(
        program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", "PORT", ready="/health/liveliness",
        cwd=directory, LITELLM_MASTER_KEY=KEY, LITELLM_LOCAL_MODEL_COST_MAP="True",
    ) as url:  # fmt: skip
        yield url


@pytest.mark.parametrize(
    ("provider", "stream", "states_cost"),
    [
        ("openai_compatible", "never", True),
        ("openai_compatible", "always", True),
        ("openai_responses", "never", True),
        # it answers a streamed message with JSON, and prices no mock message
        ("anthropic", "never", False),
        ("anthropic", "always", False),
    ],
)
def test_litellm_answers_and_prices_every_api(
    provider: str, stream: str, states_cost: bool, litellm: str, tmp_path: Path
) -> None:
    anthropic = provider == "anthropic"
    records, summary, _ = answered(
        "run", f"provider={provider}", f"provider.base_url={litellm}{'' if anthropic else '/v1'}",
        f"model.name={'claude' if anthropic else 'gpt'}", "model.pricing=unknown", f"provider.stream={stream}",
        f"provider.api_key_env={'ANTHROPIC' if anthropic else 'OPENAI'}_API_KEY", cwd=tmp_path,
    )  # fmt: skip
    assert [record["full_output"] for record in records] == [TEXT] * 8
    assert all(record["attempts"] == 1 for record in records)
    assert all((record["usage"] or {}).get("input_tokens") for record in records)
    assert not any(record.get("usage_estimated") for record in records)
    assert all((record["details"] or {}).get("request_id") for record in records)
    stated = [Decimal((record["details"] or {}).get("stated_cost_usd", "0")) for record in records]
    assert summary["cost_usd"] == (pytest.approx(sum(stated)) if states_cost else None)
    assert all(usd > 0 for usd in stated) is states_cost


@pytest.mark.parametrize(
    ("model", "key", "named"), [("unheard-of", KEY, "model.name=unheard-of"), ("gpt", "sk-wrong", "OPENAI_API_KEY")]
)
def test_litellm_s_refusals_stop_the_run_and_name_the_key(
    model: str, key: str, named: str, litellm: str, tmp_path: Path
) -> None:
    result = run(
        "output_dir=run", "tracker=none", "provider=openai_compatible", f"provider.base_url={litellm}/v1",
        f"model.name={model}", "model.pricing=unknown", "provider.api_key_env=OPENAI_API_KEY", cwd=tmp_path,
        OPENAI_API_KEY=key,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert key not in result.stderr


# @copilotkit/aimock: the vendors' APIs as their specifications say, and faults.


@contextmanager
def aimock(directory: Path, *options: str) -> Iterator[str]:
    fixture = {"match": {}, "response": {"content": TEXT}}
    (directory / "answers.json").write_text(json.dumps({"fixtures": [fixture]}))
    with running(
        command_of("llmock"), "--port", "PORT", "--fixtures", "answers.json", *options, ready="/health", cwd=directory
    ) as url:
        yield url


def test_aimock_answers_every_api_whole_and_streamed(tmp_path: Path) -> None:
    with aimock(tmp_path) as url:
        for provider, model in (
            ("openai", "gpt-4o"),
            ("openai_responses", "gpt-5.4"),
            ("anthropic", "claude-opus-5"),
        ):
            address = url if provider == "anthropic" else f"{url}/v1"
            for stream in ("never", "always"):
                records, summary, _ = answered(
                    f"{provider}_{stream}", f"model={model}", f"provider={provider}", f"provider.base_url={address}",
                    f"provider.stream={stream}", cwd=tmp_path,
                )  # fmt: skip
                assert [record["full_output"] for record in records] == [TEXT] * 8
                assert [record["finish_reason"] for record in records] == ["stop"] * 8
                # its counts of Responses and messages are zero
                assert all(bool(record.get("usage_estimated")) is (provider != "openai") for record in records)
                assert summary["cost_usd"] > 0
        records, _, errors = answered(
            "n", "model=gpt-4o", f"provider.base_url={url}/v1", "decoding=sample", "decoding.n=3", cwd=tmp_path
        )
        assert len(records) == 24
        assert errors.count("ignores n") == 1
        records, _, _ = answered(
            "batch", "model=gpt-4o", f"provider.base_url={url}/v1", "provider.mode=batch",
            "runner.batches.first_poll_s=0.1", cwd=tmp_path,
        )  # fmt: skip
        assert all(record["status"] == "completed" for record in records)


@pytest.mark.parametrize("stream", ["never", "always"])
def test_no_fault_of_aimock_costs_an_instance(stream: str, tmp_path: Path) -> None:
    faults = [f"--chaos-{fault}=0.1" for fault in ("drop", "malformed", "disconnect", "ratelimit")]
    with aimock(tmp_path, *(part for fault in faults for part in fault.split("="))) as url:
        result = run(
            "output_dir=run", "tracker=none", "model=gpt-4o", f"provider.base_url={url}/v1", "budget.max_usd=20",
            f"provider.stream={stream}", "runner.retry.backoff_s=0.05", cwd=tmp_path,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    records, summary = outcome(tmp_path / "run")
    assert summary["completed"] == 40
    assert summary["cost_usd"] == pytest.approx(sum(record["cost_usd"] or 0 for record in records))
    assert "requests per minute, as a refusal reports" not in result.stderr  # its refusals contradict themselves


# transformers serve


def test_the_engine_writes_what_transformers_serve_writes(tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'transformers[serving]'")
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    (model / "chat_template.jinja").write_text(
        '{{ bos_token }}{% for message in messages %}{{ message["content"] }}{% endfor %}'
    )
    shared = ["decoding.max_new_tokens=256", "dataset.limit=4"]
    own, _, _ = answered(
        "own", "model=llama", f"model.path={model}", "model.prompt_format=chat", "model.dtype=float32", *shared,
        cwd=tmp_path,
    )  # fmt: skip
    texts = {record["instance_id"]: record["full_output"] for record in own}
    offline: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    path = os.environ.get("PYTHONPATH", "")
    with running(
        sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1", "--port",
        "PORT", "--device", "cpu", "--dtype", "float32", ready="/health", cwd=tmp_path, PYTHONPATH=path, **offline,
    ) as url:  # fmt: skip
        for provider in ("openai_compatible", "openai_responses"):
            for stream in ("never", "always"):
                records, _, _ = answered(
                    f"{provider}_{stream}", f"provider={provider}", f"provider.base_url={url}/v1",
                    f"model.name={model}", "model.pricing=unknown", f"provider.stream={stream}",
                    "provider.max_concurrency=2", *shared, cwd=tmp_path,
                )  # fmt: skip
                assert {record["instance_id"]: record["full_output"] for record in records} == texts
                assert all((record["usage"] or {}).get("output_tokens") for record in records)


# openwandb


def test_openwandb_has_the_figures_of_the_summary(tmp_path: Path) -> None:
    with (
        ApiServer(faults=[Fault("cut", times=2)]) as server,
        running(
            command_of("openwandb"), "serve", "--host", "127.0.0.1", "--port", "PORT", "--data-dir", "data",
            ready="/",
            cwd=tmp_path,
        ) as url,
    ):  # fmt: skip
        result = run(
            "output_dir=run", "model=gpt-4o", f"provider.base_url={server.openai_url}", "tracker=wandb",
            "tracker.project=bugs", "runner.retry.backoff_s=0.01", cwd=tmp_path, WANDB_BASE_URL=url,
            WANDB_API_KEY=WANDB_KEY,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        records, summary = outcome(tmp_path / "run")
        (address,) = (line.split()[-1] for line in result.stderr.splitlines() if line.startswith("  tracker"))
        shown = _fetched(f"{url}/api/v2/runs/{address.rpartition('/')[2]}")["run"]
    assert shown["state"] == "finished"
    figures = json.loads(shown["summary_json"])
    assert len(records) == figures["completed"] == 40
    for name in ("cost_usd", "possibly_billed_usd"):
        assert figures[name] == pytest.approx(float(summary[name]))
        assert figures[name] > 0


def _fetched(url: str) -> dict[str, Any]:
    login = base64.b64encode(f"api:{WANDB_KEY}".encode()).decode()
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
