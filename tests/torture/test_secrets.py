"""Plants secrets everywhere a user may have some, then searches all outputs of runs for them."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import urllib.parse
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "OPENAI_API_KEY": "sk-proj-Planted0OpenAI1Key",
    "OPENAI_ORG_ID": "org-Planted0Organisation",
    "OPENAI_PROJECT_ID": "proj_Planted0Project",
    "AZURE_OPENAI_API_KEY": "Planted0Azure1Key2",
    "ANTHROPIC_API_KEY": "sk-ant-Planted0Anthropic1Key",
    "WANDB_API_KEY": "Planted0Wandb0" * 3,
    "HF_TOKEN": "hf_Planted0Hub1Token",
}
PASSWORDS = ["Planted1Proxy1aQ7zK2m", "Planted2Address1xW9vB4n", "Planted3Query1hT5cR8p"]


def environment(address: str, home: Path, **more: str) -> dict[str, str]:
    """Every variable with a secret, including the URL with its password."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("PROXY")}
    home.mkdir(exist_ok=True)
    return {
        **kept,
        **KEYS,
        "HTTP_PROXY": f"http://user:{PASSWORDS[0]}@127.0.0.1:9",
        "HTTPS_PROXY": f"http://user:{PASSWORDS[0]}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
        "PLANTED_ADDRESS": address,
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "TMPDIR": str(home),
        **more,
    }


def with_secrets(url: str) -> str:
    return f"{url.replace('://', f'://user:{PASSWORDS[1]}@')}?api-key={PASSWORDS[2]}"


def arguments(data: Path, directory: Path, *more: str) -> list[str]:
    return [
        "provider.base_url=${oc.env:PLANTED_ADDRESS}", "dataset=jsonl", f"dataset.path={data}", "hydra.verbose=true",
        "decoding.max_new_tokens=256", f"output_dir={directory}", "runner.retry.tries=2",
        "runner.retry.backoff_s=0.05", *more,
    ]  # fmt: skip


def run(*arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return commands.run("swe_infer", *arguments, cwd=cwd, env=env)


def leaks(where: Path, *outputs: bytes | str) -> Iterator[str]:
    """Which secret is where, also in base64, in URL escapes, and in the compressed parts of a page."""
    texts = {str(path.relative_to(where)): path.read_bytes() for path in where.rglob("*") if path.is_file()}
    texts |= {f"output {n}": o if isinstance(o, bytes) else o.encode() for n, o in enumerate(outputs)}
    for name, text in list(texts.items()):
        for number, packed in enumerate(re.findall(rb'<script type="text/plain"[^>]*>([A-Za-z0-9+/=]+)<', text)):
            texts[f"{name}, part {number}"] = zlib.decompress(base64.b64decode(packed))
    for secret in (*KEYS.values(), *PASSWORDS):
        shapes = [secret, urllib.parse.quote(secret), secret[:14], secret[-8:]]
        shapes += [
            base64.b64encode(secret.encode()).decode()[:-4],
            base64.b64encode(f"user:{secret}".encode()).decode(),
        ]
        for name, text in texts.items():
            if any(shape.encode() in text for shape in shapes):
                yield f"{secret} is in {name}"


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_instances(tmp_path_factory.mktemp("data") / "instances.jsonl", 3)


def command_lines() -> bytes:
    """Of all processes, which every user of the machine can read."""
    found = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found += path.read_bytes()
    return found


def test_a_run_that_succeeds_leaves_no_secret_and_neither_does_its_comparison(data: Path, tmp_path: Path) -> None:
    with ApiServer(latency_s=0.3) as server:
        env = environment(server.openai_url.replace("://", f"://user:{PASSWORDS[1]}@"), tmp_path / "home")
        process = commands.start(
            "swe_infer", *arguments(data, tmp_path / "run", "model=gpt-4o", "tracker.mode=offline"),
            cwd=tmp_path, env=env, start_new_session=True,
        )  # fmt: skip
        while not server.in_flight and process.poll() is None:
            pass
        listed = command_lines()
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    compared = commands.run("swe_infer.compare", "run", "--html", "page.html", cwd=tmp_path, env=env)
    assert compared.returncode == 0, compared.stderr
    assert list((tmp_path / "run" / "wandb").rglob("*.wandb"))
    assert list(leaks(tmp_path, output, errors, listed, compared.stdout, compared.stderr)) == []


@pytest.mark.parametrize("launcher", [pytest.param("joblib", marks=pytest.mark.full), "submitit_local"])
def test_a_launchers_pickles_contain_no_secret(launcher: str, data: Path, tmp_path: Path) -> None:
    plugin = f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher"
    pytest.importorskip(plugin, reason="the extra is not installed")
    with ApiServer() as server:
        env = environment(server.openai_url.replace("://", f"://user:{PASSWORDS[1]}@"), tmp_path / "home")
        sweep = ["-m", f"hydra/launcher={launcher}", "model=gpt-4o", "tracker=none", "dataset.limit=1"]
        result = run(*sweep, *arguments(data, tmp_path / "sweep"), cwd=tmp_path, env=env)
        assert result.returncode == 0, result.stderr[-2000:]
        assert len(server.log.answers()) == 1
    pickles = list(tmp_path.rglob("*.pkl"))
    assert bool(pickles) == (launcher == "submitit_local")
    assert all(b"PLANTED_ADDRESS" in path.read_bytes() for path in pickles if "submitted" in path.name)
    assert list(leaks(tmp_path, result.stdout, result.stderr)) == []


@pytest.mark.parametrize(
    ("group", "fault"),
    [("model=claude-sonnet-4-5", "auth"), ("azure", "key in the address")],
)  # fmt: skip
def test_a_run_that_fails_leaves_no_secret(group: str, fault: str, data: Path, tmp_path: Path) -> None:
    with ApiServer(strict=False) as server:
        server.script(*[fault] * 20 if group != "azure" else [])  # type: ignore[arg-type]
        if group == "azure":
            address, chosen = with_secrets(server.azure_url), ["model=gpt-4o", "provider=azure_openai"]
        else:
            url = server.openai_url if "gpt" in group else server.anthropic_url
            address, chosen = url.replace("://", f"://user:{PASSWORDS[1]}@"), [group]
        env = environment(address, tmp_path / "home")
        result = run(*arguments(data, tmp_path / "run", *chosen, "tracker=none"), cwd=tmp_path, env=env)
    assert result.returncode == 2, result.stderr[-2000:]
    assert list(leaks(tmp_path, result.stdout, result.stderr)) == []
    assert bool(server.log.asked()) == (group != "azure"), "an address with a key in it is refused"


def test_an_unreachable_proxy_is_reported_without_its_password(data: Path, tmp_path: Path) -> None:
    env = environment("http://example.invalid/v1", tmp_path / "home", NO_PROXY="")
    arguments_ = arguments(data, tmp_path / "run", "model=gpt-4o", "tracker=none", "dataset.limit=1")
    result = run(*arguments_, cwd=tmp_path, env=env)
    assert result.returncode == 1, result.stderr[-2000:]
    assert list(leaks(tmp_path, result.stdout, result.stderr)) == []


@pytest.mark.parametrize(
    "override",
    ["provider.base_url=[https://user:{}@host]"],
)
def test_an_invalid_override_is_reported_without_its_password(override: str, tmp_path: Path) -> None:
    env = environment("", tmp_path / "home")
    result = run("model=gpt-4o", override.format(PASSWORDS[1]), cwd=tmp_path, env=env)
    assert result.returncode == 2, result.stderr
    assert "error: " in result.stderr
    assert list(leaks(tmp_path, result.stdout, result.stderr)) == []
