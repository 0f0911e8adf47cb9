"""``from=RUN``: a run or a sweep that starts from the configuration of a recorded run."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from swe_infer.cli.arguments import hydra_arguments
from swe_infer.cli.composer import composer
from swe_infer.config import as_yaml, resolved
from swe_infer.errors import ConfigError
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.sweeps.command import Sweep


def run(sweep: Sweep, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run("swe_infer", *arguments, cwd=sweep.directory, env=sweep.environment)


def config_of(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((directory / "config.yaml").read_text())
    return loaded


def changes(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What the command said about the start."""
    return [line.partition(": ")[2] for line in result.stderr.splitlines() if line.startswith("from ")]


def test_a_run_starts_from_another_and_sweeps_and_other_models_do(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=2)
        recorded = ["decoding=sample", "decoding.temperature=0.5", "decoding.stop=[a\\nb]", "provider.timeout_s=77"]
        first = run(sweep, *sweep.base, *recorded, f"output_dir={tmp_path / 'first'}")
        assert first.returncode == 0, first.stderr
        config = config_of(tmp_path / "first")

        again = run(sweep, "from=first")
        assert (again.returncode, again.stdout) == (0, "first\n"), again.stderr
        assert changes(again) == ["nothing is changed"]
        assert len(server.log.asked()) == 2, "the same identity resumes the run"

        other = run(sweep, "from=first", "decoding.temperature=0.9", "dataset.limit=1", "sweep=label")
        assert other.returncode == 0, other.stderr
        assert changes(other) == ["dataset.limit: None → 1", "decoding.temperature: 0.5 → 0.9"]
        started = config_of(tmp_path / other.stdout.strip())
        assert started["decoding"] == {**config["decoding"], "temperature": 0.9}
        assert (started["provider"], started["from"]) == (config["provider"], "first")
        assert started["output_dir"] is None

        arguments = ("from=first", "decoding.temperature=0.5,0.9", "budget.max_usd=1")
        points = commands.run("swe_infer", "-m", *arguments, cwd=tmp_path, env=sweep.environment)
        assert points.returncode == 0, points.stderr
        assert "decoding.temperature: 0.5 → 0.5, 0.9" in changes(points)
        asked = Counter(exchange.body["temperature"] for exchange in server.log.asked())
        assert asked == {0.5: 2, 0.9: 2}, "no answer of the recorded run is requested again"

        starts = [hydra_arguments([f"from={tmp_path / 'first'}", f"model={model}"]) for model in ("gpt-4.1", "tiny")]
        with composer(None) as composing:
            api, local = (resolved(composing.compose(start).cfg) for start in starts)
        assert api["provider"] == config["provider"]
        limit = local["decoding"]["max_new_tokens"]
        assert limit == 256, "a model's own limit goes with the model"
        assert (local["provider"], local["decoding"]) == ({}, {**config["decoding"], "max_new_tokens": limit})

        estimate = run(sweep, "from=first", "model=claude-sonnet-4-5", "decoding.top_p=null", "dry_run=true")
        assert estimate.returncode == 0, estimate.stderr
        assert "provider: openai → anthropic" in changes(estimate), "another vendor's provider has its own address"


def test_a_strangers_configuration_chooses_no_class_and_no_address(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=1)
        assert run(sweep, *sweep.base, "output_dir=first").returncode == 0
        text = (tmp_path / "first" / "config.yaml").read_text()
        stranger = tmp_path / "stranger" / "config.yaml"
        stranger.parent.mkdir()
        address = f"base_url: {server.openai_url}"
        for old, new, said in (
            ("_target_: swe_infer.data.jsonl.JsonlDataset", "_target_: os.system", "dataset._target_="),
            ("name: gpt-4o", "name: ${oc.env:HOME}", "model.name: contains an interpolation"),
            (address, "base_url: https://collect.example/v1", "provider.base_url is https://collect.example/v1"),
            (address, "base_url: http://***@127.0.0.1/v1", "provider.base_url was recorded without its credential"),
            ("api_key_env: OPENAI_API_KEY", "api_key_env: WANDB_API_KEY", "provider.api_key_env is"),
            ("temperature: 0.0", "temperature: !!python/object:os.system 1", "contains YAML tags"),
        ):  # fmt: skip
            assert text.count(old) == 1, old
            stranger.write_text(text.replace(old, new))
            with pytest.raises(ConfigError, match=r"^from=\S+stranger|^\S+stranger/config") as refused:
                hydra_arguments([f"from={stranger.parent}", "decoding.temperature=1"])
            assert said in str(refused.value)
            assert "\n" not in str(refused.value)

        stranger.write_text(text.replace(address, "base_url: https://collect.example/v1"))
        given = run(sweep, "from=stranger", "decoding.temperature=1", f"provider.base_url={server.openai_url}")
        assert given.returncode == 0, given.stderr

        stranger.write_text(
            text.replace("model:\n", "model:\n  retired: 3\n").replace("dry_run:", "old_key: 1\ndry_run:")
        )
        gone = run(sweep, "from=stranger", "decoding.temperature=1")
        assert gone.returncode == 0, gone.stderr
        assert "ignored keys that this version does not have: model.retired, old_key" in gone.stderr

        typed = (
            ("model:\n", "model: 3\nold_model:\n", "model=3: must be a mapping"),
            ("pricing: null", "pricing: {_target_: os.system}", "cannot be taken from a recorded run"),
            ("stop: []", "stop: [{_target_: os.system}]", "cannot be taken from a recorded run"),
            ("_target_: swe_infer.api.retry.Retry", "_target_: os.system", "is not the class of the option"),
        )
        for old, new, said in typed:
            assert text.count(old) == 1, old
            stranger.write_text(text.replace(old, new))
            with pytest.raises(ConfigError, match=re.escape(said)):
                hydra_arguments([f"from={stranger.parent}"])

        for source in (str(tmp_path / "nowhere"), str(tmp_path), "wandb:one/two/groups/three"):
            with pytest.raises(ConfigError, match=re.escape(f"from={source}: ")):
                hydra_arguments([f"from={source}"])


@pytest.mark.parametrize(
    ("options", "old", "new", "refused_key"),
    [
        ([], "run_tests: true", "run_tests: unsafe", "dataset.run_tests"),
        ([], "sandbox: true", "sandbox: false", "evaluation.sandbox"),
        ([], "allow_pickle: false", "allow_pickle: 1", "model.allow_pickle"),
        (["evaluation=command", "evaluation.command=x"], "command: x", "command: reboot", "evaluation.command"),
        (["tracker=wandb"], "entity: null", "entity: stranger", "tracker.entity"),
        pytest.param(["model=gpt-4o", "provider=vertex"], "region: global", "region: elsewhere", "provider.region",
                     marks=pytest.mark.full),
        (["model=llama", "model.path=x", "provider=vllm"], "executable: vllm", "executable: ./vllm",
         "provider.executable"),
        (["model=gpt-4o", "provider=[openai,anthropic]"], "api_key_env: OPENAI_API_KEY", "api_key_env: HOME",
         "provider.first.api_key_env"),
        pytest.param(["model=gpt-4o", "runner=ray"], "address: null", "address: evil:6379", "runner.ray.address",
                     marks=pytest.mark.full),
        (["context=oracle", "prompt=style3"], "https://github.com/", "ext::sh -c ", "context.repository_url"),
    ],
)  # fmt: skip
def test_what_executes_code_or_names_a_server_or_a_credential_is_given_again(
    options: list[str], old: str, new: str, refused_key: str, tmp_path: Path
) -> None:
    with composer(None) as composing:
        plain = resolved(composing.compose(["tracker=none", *hydra_arguments(options)]).cfg)
    text = as_yaml(plain)
    assert text.count(old) == 1, text
    (tmp_path / "config.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        hydra_arguments([f"from={tmp_path}"])
    assert f": {refused_key} is " in str(refused.value)
    assert f"give {refused_key}=… on the command line" in str(refused.value)
    assert hydra_arguments([f"from={tmp_path}", f"{refused_key}=null"])


@pytest.mark.slow
def test_the_recorded_configuration_is_composed_again(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    own = tmp_path / "own"
    for name, content in (
        ("model/mine", "defaults: [gpt-4o, _self_]\ncontext_window: 5000\n"),
        (
            "experiment/mini",
            "# @package _global_\ndefaults:\n- override /model: gpt-4o-mini\ndecoding: {temperature: 0.0}",
        ),
    ):
        (own / name).parent.mkdir(parents=True)
        (own / f"{name}.yaml").write_text(content)
    plain_options: tuple[list[str], ...] = (
        [],
        ["model=claude-instant-1", "model.pricing=null", "shard.index=1", "shard.count=3", "budget.max_usd=0.5"],
        ["dataset=swebench_lite", "context=none", "model.name=new", "+model.extra_body={a:{b:[1,null]}}"],
    )
    for options in (
        *(plain_options if request.config.getoption("full") else ()),
        ["model=llama", "model.path=x", "model/attention=sdpa", "decoding=sample", 'decoding.stop=["a\'b"]'],
        ["model=gpt-4o", "provider=[openai,anthropic,azure_openai]", "++provider.third.timeout_s=7"],
        ["model=mine", "decoding.temperature=0.7", "provider.timeout_s=5", "objective=[cost_usd,-wall_s]"],
    ):
        folder = own if "model=mine" in options else None
        with composer(folder) as composing:
            plain = resolved(composing.compose([*hydra_arguments(options)]).cfg)
        (tmp_path / "config.yaml").write_text(as_yaml(plain))
        started = hydra_arguments([f"from={tmp_path}"], folder)
        with composer(folder) as composing:
            assert resolved(composing.compose(started).cfg) == {**plain, "from": str(tmp_path)}
    started = hydra_arguments([f"from={tmp_path}", "experiment=mini"], own)
    with composer(own) as composing:
        mini = resolved(composing.compose(started).cfg)
    assert (mini["model"]["name"], mini["decoding"]["temperature"]) == ("gpt-4o-mini", 0.0)
    assert mini["provider"]["timeout_s"] == 5, "the provider of both models is the same"


@pytest.mark.full
def test_a_search_and_workers_start_from_a_run(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `joblib` is not installed")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=1)
        assert run(sweep, *sweep.base, "output_dir=first").returncode == 0
        arguments = ("-m", "from=first", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra/launcher=joblib")
        found = run(sweep, *arguments, "decoding.max_new_tokens=range(20,30)")
        assert found.returncode == 0, found.stderr
        assert changes(found) == ["decoding.max_new_tokens: 2048 → 'range(20,30)'"]
        assert {e.body["max_completion_tokens"] for e in server.log.asked()} <= {2048, *range(20, 31)}
        both = run(sweep, *arguments, "model=gpt-4o,tiny")
        assert (both.returncode, both.stderr.count("\n")) == (2, 1)
        assert "model=gpt-4o and model=tiny need different parts of that run" in both.stderr
