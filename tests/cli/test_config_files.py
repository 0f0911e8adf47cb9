from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from swe_infer.cli.composer import composer
from swe_infer.cli.config_files import cache_config_files
from swe_infer.cli.config_loader import CachedLoader
from swe_infer.cli.run import composed_run
from swe_infer.conf_files import ROOT, conf_dir, file_of, groups
from swe_infer.errors import ConfigError
from tests.support.steps import calls_of


def test_an_unchanged_file_is_parsed_once() -> None:
    with composer(None) as composing:
        first = composing.compose(["model=gpt-4o", "decoding.temperature=0.5"])
        again = []
        parsed = calls_of(
            yaml.load.__code__, lambda: again.append(composing.compose(["model=gpt-4o", "decoding.temperature=0.5"]))
        )
        other = composing.compose(["model=gpt-4o"])
    assert parsed == 0
    assert again[0] == first
    assert other.cfg.decoding.temperature == 0.0


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    option = tmp_path / "decoding" / "mine.yaml"
    option.parent.mkdir()
    option.write_text("defaults: [greedy]\ntemperature: 0.3\n")
    kept = option.stat()

    def temperature() -> float:
        with composer(tmp_path) as composing:
            return float(composing.compose(["decoding=mine"]).cfg.decoding.temperature)

    assert temperature() == 0.3
    option.write_text("defaults: [greedy]\ntemperature: 0.4\n")
    assert temperature() == 0.4
    other = tmp_path / "other"
    other.write_text("defaults: [greedy]\ntemperature: 0.5\n")
    os.utime(other, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    other.replace(option)
    assert temperature() == 0.5
    for content, place in ((b"n: 1\nn:\t2", ", line 2"), (b"stop: [\xe9]", ""), (b"n: ${", ""), (b"3", "")):
        option.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(f"{option}{place}: cannot be read (")):
            temperature()
    option.unlink()
    with pytest.raises(HydraException, match="decoding/mine"):
        temperature()
    option.write_text("defaults: [greedy]\ntemperature: 0.6\n")
    assert temperature() == 0.6


def test_an_invalid_defaults_list_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "decoding").mkdir()
    (tmp_path / "decoding" / "mine.yaml").write_text("defaults: {a: b}\n")
    with pytest.raises(ConfigError, match="must be a list"), composed_run(["decoding=mine"], tmp_path):
        pass


def test_a_variable_that_is_not_set_is_a_config_error(tmp_path: Path) -> None:
    named = pytest.raises(ConfigError, match="the environment variable UNSET_NAME is not set")
    for folder in (None, tmp_path):  # with a folder of the user, Hydra's own loader composes
        with named, composed_run(["hydra.job.env_copy=[UNSET_NAME]"], folder):
            pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.full] * (mode != RunMode.RUN)) for mode in RunMode]
)
def test_the_cached_loader_gives_what_hydra_composes(mode: RunMode, tmp_path: Path) -> None:
    shutil.copytree(conf_dir(), conf := tmp_path / "conf")
    path = create_config_search_path(str(conf))
    swept = ["decoding.top_p=0.1,0.2", "decoding=greedy,sample"]
    with composer(None):
        cached, hydra = CachedLoader(path), ConfigLoaderImpl(path)
        for overrides in (
            ["model=gpt-4o", "tracker=none", "decoding.stop=[a]", "decoding.stop=[b]"],
            ["decoding.seed=1", "tracker=none", "model=gpt-4o", "hydra.job.name=x", "+runner.extra={a: 1}"],
            ["hydra.job.config_name=x", "hydra.runtime.cwd=x", "hydra.job.override_dirname=x"],
            ["hydra/launcher=joblib", "model=gpt-4o", *(swept if mode == RunMode.MULTIRUN else [])],
            ["hydra.job.env_copy=[HOME]", "hydra.verbose=true", "decoding.n=${decoding.seed}"],
        ):
            expected = OmegaConf.to_yaml(hydra.load_configuration("config", overrides, mode))
            for _ in range(2):
                assert OmegaConf.to_yaml(cached.load_configuration("config", overrides, mode)) == expected
        if mode == RunMode.RUN:
            with pytest.raises(HydraException, match="sweep"):
                cached.load_configuration("config", ["model=gpt-4o", *swept], mode)
        tracker = conf / "tracker" / "none.yaml"
        tracker.write_text(tracker.read_text() + "added: 1\n")
        assert cached.load_configuration("config", ["model=gpt-4o", "tracker=none"], mode).tracker.added == 1


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.full)])
def test_libyaml_gives_what_omegaconf_reads(every: bool) -> None:
    first = [file_of("", ROOT), *(file_of(group, options[0]) for group, options in groups().items())]
    files = sorted(conf_dir().rglob("*.yaml")) if every else first
    with composer(None):
        repository = GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]
        source = next(source for source in repository.get_sources() if source.provider == "main")
        for file in files:
            result = source.load_config(str(file.relative_to(conf_dir())))
            expected = OmegaConf.load(file)
            assert result.config == expected
            assert OmegaConf.to_yaml(result.config) == OmegaConf.to_yaml(expected)
            assert result.header["package"] == ("_global_" if "@package _global_" in file.read_text() else None)


def test_processes_of_launchers_accept_the_state_of_hydra() -> None:
    cache_config_files()
    code = (
        "import pickle, sys; from hydra.core.singleton import Singleton;"
        "Singleton.set_state(pickle.load(sys.stdin.buffer))"
    )
    state = cloudpickle.dumps(Singleton.get_state())
    done = subprocess.run([sys.executable, "-c", code], input=state, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
