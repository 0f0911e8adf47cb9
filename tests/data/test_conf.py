"""The YAML files of the ``dataset`` group, and the bundled sample."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_class

from swe_infer.conf_files import node_of
from swe_infer.data.sample import SampleDataset

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "dataset"
OPTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
def test_the_keys_of_each_option_are_the_arguments_of_its_class(option: str) -> None:
    config = node_of("dataset", option)
    target = get_class(config.pop("_target_"))
    parameters = inspect.signature(target).parameters
    assert set(config) == set(parameters)
    required = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    assert {key for key, value in config.items() if value == "???"} <= required
    for name in set(parameters) - required:
        if option in ("hub", "jsonl", "disk", "parquet", "sample"):
            assert config[name] == parameters[name].default


PROMPTED = [option for option in OPTIONS if "- hub\n" in (FOLDER / f"{option}.yaml").read_text()]
BENCHMARKS = [option for option in OPTIONS if "benchmark: " in (FOLDER / f"{option}.yaml").read_text()]


@pytest.mark.parametrize("option", PROMPTED)
def test_presets_name_published_datasets_and_their_test_split(option: str) -> None:
    config = node_of("dataset", option)
    owner, _, name = config["name"].partition("/")
    assert name.lower().replace("swe-bench", "swebench") == option
    assert config["split"] == "test"
    # The first publisher's datasets contain prompts, the second's the rows from which they were made.
    assert {"princeton-nlp": "text", "SWE-bench": None}[owner] == config["text_column"]
    assert "hub" in yaml.safe_load((FOLDER / f"{option}.yaml").read_text())["defaults"]


def test_presets_of_benchmarks_are_pinned() -> None:
    presets = {option: node_of("dataset", option) for option in BENCHMARKS if option != "benchmark"}
    assert len(presets) > 10
    assert [
        option
        for option, config in presets.items()
        if not re.fullmatch("[0-9a-f]{40}", str(config["revision"])) or config["text_column"] is not None
    ] == []


def test_the_bundled_sample_opens() -> None:
    rows = SampleDataset().open()
    assert len(rows) >= 8
    for index in range(len(rows)):
        instance = rows[index]
        assert rows.fault(index) is None
        assert instance.prompt.text
        assert instance.metadata["patch"]
