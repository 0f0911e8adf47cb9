"""Configuration: every option composes, and an invalid key is one line that names a valid one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf.errors import OmegaConfBaseException

from swe_infer import config
from swe_infer.cli.hydra_errors import one_line
from swe_infer.conf_files import node_of
from swe_infer.errors import ConfigError
from swe_infer.options import parameters_of
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Decoding
from tests.support import option_docs
from tests.support.options import CONF, OPTIONS, composed, composed_by_hydra, examples, option_composed


def error_of(*overrides: str) -> str:
    """The error message of a configuration."""
    try:
        config.build(composed(*overrides))
    except (HydraException, OmegaConfBaseException) as error:
        return one_line(error)
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{overrides} was accepted")


def fault_of_option(group: str, option: str) -> str | None:
    """The error from composing and building an option, if any."""
    choice = f"{group}={option}"
    try:
        experiment = config.build(option_composed(group, option))
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return f"{choice}: {type(error).__name__}: {error}"
    return None if experiment.runner.label and experiment.dataset.name else f"{choice}: something has no name"


@pytest.mark.slow
def test_an_option_of_each_kind_composes_and_its_parts_are_built(request: pytest.FixtureRequest) -> None:
    """With ``--all``, every option."""
    of_each_kind = [(group, option) for (group, *_), option in examples().items()]
    options = OPTIONS if request.config.getoption("full") else of_each_kind
    assert [fault for option in options if (fault := fault_of_option(*option))] == []


@pytest.mark.slow
@pytest.mark.full
def test_an_option_of_a_kind_composes_as_the_other_options_of_the_kind() -> None:
    """What the tests merge themselves, to save time, is what Hydra composes."""
    assert [option for option in OPTIONS if option_composed(*option) != composed_by_hydra(*option)] == []


def faults_of_keys(group: str, option: str) -> Iterator[str]:
    """The differences between the keys of an option's YAML file and the arguments of its class."""
    choice = f"{group}={option}"
    node = node_of(group, option)
    if "_target_" not in node:
        return  # an experiment, or an option that stands for none: it combines others and has no class of its own
    parameters = parameters_of(get_object(node["_target_"]))
    if differ := {str(key) for key in node if key != "_target_"} ^ set(parameters):
        yield f"{choice}: write each argument with its default, and no other key: {sorted(differ)}"
    if undescribed := [name for name, parameter in parameters.items() if parameter.option is None]:
        yield f"{choice}: describe each with an Option, which says what it affects: {undescribed}"


def test_every_key_of_a_yaml_is_an_argument_and_every_argument_a_key() -> None:
    assert [fault for option in OPTIONS for fault in faults_of_keys(*option)] == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["decoding.tempratur=1"], "decoding.tempratur: unknown key; did you mean decoding.temperature?"),
        (["+decoding.tempratur=1"], "decoding.tempratur: unknown key; did you mean temperature?"),
        (["decoding.temperature=warm"], 'decoding.temperature="warm": must be a number or null'),
        (["decoding.n=true"], "decoding.n=true: must be a whole number"),
        (["decoding.n=1.5"], "decoding.n=1.5: must be a whole number"),
        (["decoding.n='3'"], 'decoding.n="3": must be a whole number'),
        (["decoding.temperature=3"], "decoding.temperature=3.0: must be between 0 and 2"),
        (["decoding.stop=[a,3]"], "decoding.stop="),
        (["model=lama"], "model=lama: unknown option; did you mean llama?"),
        (["dataset=jsonl"], "dataset.path is missing: set dataset.path=…"),
        (["shard.index=0"], "shard.count is missing: a shard needs both shard.index and shard.count"),
        (["shard.count=2"], "shard.index is missing: a shard needs both shard.index and shard.count"),
        (["shard.index=2", "shard.count=2"], "shard.index=2: must be between 0 and 1"),
        (["budget.max_usd=-1"], "budget.max_usd=-1: must be a finite number of dollars, at least 0"),
        (["budget.max_usd=nan"], "budget.max_usd"),
        (["budget.max_usd='$20'"], 'budget.max_usd="$20": must be a number or null'),
        (["model=gpt-4o", "budget.max_usd='$20'"], 'budget.max_usd="$20": must be a number or null'),
        (["locks=none"], 'locks="none": must be os or single_writer'),
        (["model=gpt-4o", "runner.prompt_caching=on"], "must be one of auto, always, never"),
        (
            ["model=gpt-4o", "provider.refused_fields=seed"],
            'provider.refused_fields="seed": must be a list of strings',
        ),
        (["model=gpt-4o", "runner=llama"], "model: must be of LlamaModel, not ApiModel"),
        (["model=gpt4o"], "model=gpt4o: unknown option; did you mean gpt-4o, gpt-4 or"),
        (["model=sonnet"], "model=sonnet: unknown option; did you mean claude-3-5-sonnet,"),
        (["seed=3"], "seed: unknown key; did you mean decoding.seed?"),
        (["dry_run=maybe"], 'dry_run="maybe": must be true or false'),
        (
            ["feedback.turns=2"],
            "feedback.turns: unknown key of the chosen option; it belongs to feedback=apply_error",
        ),
        (["colour=red"], "colour: unknown key"),
        (["OPENAI_API_KEY=k"], "is set before the command: export OPENAI_API_KEY=…"),
        (["+colour=red"], "colour: unknown key"),
        (["runner=api"], "provider: none is chosen"),
        (["runner=api", "provider=openai"], "is a checkpoint, which provider=openai does not serve"),
        (["model=gpt-4o", "provider=none"], "provider: none is chosen"),
        (["tracker=neptune"], "tracker=neptune: unknown option"),
        (["model=api", "model.name=m", "provider=openai", "model.pricing=free"], 'model.pricing="free": must be'),
        (["model=api", "model.name=m", "provider=openai", "+model.pricing.input=1"], "model.pricing"),
        (["model=gpt-4o", "+model.pricing.input_per_mtok=1"], "or null; output_per_mtok is missing"),
        (["model=gpt-4o", "model.pricing.input_per_mtok=1"], "is added with +model.pricing.input_per_mtok=VALUE"),
        (
            ["model=gpt-4o", "model.pricing.input_per_mtok=1"],
            "model.pricing.input_per_mtok: is not set yet; a new key of a mapping is added with +model.pricing.input",
        ),
        (
            ["feedback=apply_error"],
            "feedback=apply_error: a further turn needs a chat model; set model.prompt_format=chat",
        ),
        (
            ["feedback=apply_error", "model=claude-2"],
            "feedback=apply_error: a further turn needs a chat model; provider=anthropic_text sends claude-2 a",
        ),
        (
            [
                "feedback=apply_error",
                "model=llama",
                "model.path=folder",
                "model.prompt_format=raw",
                "runner=api",
                "provider=vllm",
            ],
            "feedback=apply_error: a further turn needs a chat model; set model.prompt_format=chat",
        ),
        (["feedback=apply_error", "model=gpt-4o", "feedback.turns=0"], "feedback.turns=0: must be between 1 and 16"),
        (
            ["model=api", "model.name=m", "model.retires=soon"],
            "model.retires=soon: must be a date such as 2026-11-30",
        ),
        (["~decoding"], "decoding._target_ is missing"),
        (["feedback=aply_error"], "feedback=aply_error: unknown option; did you mean apply_error?"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(overrides: list[str], said: str) -> None:
    message = error_of(*overrides)
    assert said in message
    assert "input should be a finite" in message or "input should" not in message  # pydantic says the type again
    assert "\n" not in message


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Modules of the user's own, with mistakes."""
    (tmp_path / "own_classes.py").write_text(
        "from __future__ import annotations\nimport swe_infer.selection.base\nvalue = 3\n"
        "class Rule:\n    name = 'rule'\n"
        "class Raises:\n    def __init__(self):\n        raise RuntimeError('no GPU')\n"
        "class Unreadable:\n    def __init__(self, value: Missing):\n        pass\n"
    )
    (tmp_path / "own_syntax.py").write_text("def (\n")
    (tmp_path / "own_import.py").write_text("import no_such_package\n")
    (tmp_path / "own_error.py").write_text("\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("key", "target", "said"),
    [
        (
            "provider",
            "own_missing.Provider",
            "there is no module own_missing: add its folder to PYTHONPATH, or",
        ),
        (
            "dataset",
            "own_missing.sub.Rows",
            "there is no module own_missing: add its folder to PYTHONPATH, or",
        ),
        ("dataset", "own_classes.Rulle", "the module own_classes has no class Rulle; did you mean Rule?"),
        ("context", "own_syntax.Context", "cannot be imported (SyntaxError: invalid syntax (own_syntax.py, line 1))"),
        (
            "prompt",
            "own_import.Prompt",
            "(ModuleNotFoundError: No module named 'no_such_package'; ",
        ),
        ("selection", "own_error.Rule", "own_error.py, line 2)"),
        ("selection", "own_classes", "is of type module; must be a class"),
        ("selection", "own_classes.value", "is of type int; must be a class"),
        ("selection", "Rule", "must be the name of a class with its module"),
        ("selection", ".Rule", "must be the name of a class with its module"),
        (
            "selection",
            "own_classes.Rule",
            "implement swe_infer.selection.base.SelectionRule; missing: choose",
        ),
        ("context", "own_classes.Rule", "must be a subclass of swe_infer.context.base.Context"),
        ("selection", "own_classes.Raises", "its constructor raised RuntimeError: no GPU; "),
        (
            "selection",
            "own_classes.Unreadable",
            "its parameters cannot be read (NameError: name 'Missing'",
        ),
        ("decoding.drafter", "own_classes.Rule", "must be of DrafterFactory, not Rule; missing: create"),
    ],
)
def test_a_class_of_the_users_own_that_cannot_be_used_is_one_line(
    module: Path, key: str, target: str, said: str
) -> None:
    if key == "provider":  # the default model has none
        message = error_of("model=gpt-4o", f"provider._target_={target}")
    else:
        message = error_of(f"{key}={{_target_:'{target}'}}")
    assert message.startswith(key)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "provider"),
    [("claude-sonnet-6-0", "anthropic"), ("claude-sonnet-5-5", "anthropic"), ("deepseek-flash", "deepseek")],
)
def test_a_name_has_the_rules_of_its_family_where_no_preset_is_chosen(name: str, provider: str) -> None:
    runner = config.build(composed("model=api", f"model.name={name}", f"provider={provider}")).runner
    with pytest.raises(
        ConfigError, match=rf"decoding.temperature=0.0: the model {name} does not support temperature"
    ):
        runner.check(dry_run=True)


def test_runner_and_group_share_one_object() -> None:
    experiment = config.build(composed("decoding.n=3"))
    assert experiment.runner.decoding == Decoding(max_new_tokens=experiment.runner.decoding.max_new_tokens, n=3)


def test_dollars_are_exact_in_any_notation() -> None:
    for text in ("0.1", "'0.1'", "1e-1"):
        assert config.build(composed(f"budget.max_usd={text}")).budget.max_usd == Decimal("0.1")


def test_a_model_chooses_its_provider_and_runner_and_each_can_be_overridden() -> None:
    cfg = composed("model=gpt-4o")
    assert cfg.runner._target_ == "swe_infer.runners.api.ApiRunner"
    assert config.build(cfg).runner.label == "gpt-4o"
    azure = composed("model=gpt-4o", "provider=azure_openai", "provider.base_url=https://x.openai.azure.com")
    assert azure.provider._target_ != cfg.provider._target_


def identity_of(*overrides: str) -> str:
    return config.digest(config.resolved(composed(*overrides)))


@pytest.mark.parametrize(
    "override",
    ["decoding.temperature=0.5", "decoding.top_p=0.9", "decoding.seed=1", "decoding.n=2", "decoding.max_new_tokens=9",
     "dataset.text_column=problem", "model.dtype=bfloat16", "shard={index: 0, count: 2}", "decoding.stop=[x]"],
)  # fmt: skip
def test_every_key_that_decides_answers_changes_the_identity(override: str) -> None:
    key = override.partition("=")[0]
    prefix = "+" if key == "shard" else ""
    assert identity_of(prefix * 2 + override) != identity_of()


@pytest.mark.parametrize(
    "override",
    ["budget.max_usd=5", "tracker=none", "output_dir=x", "dry_run=true", "model.device=cpu", "decoding.drafter=none",
     "dataset.limit=3", "dataset.instance_ids=[a]", "dataset.min_tokens=1", "dataset.max_tokens=9",
     "dataset.run_tests=false"],
)  # fmt: skip
def test_coverage_cost_speed_and_tracking_do_not_change_the_identity(override: str) -> None:
    assert identity_of(override) == identity_of()


def test_every_vendor_has_the_same_values_of_stream_and_none_is_part_of_the_identity() -> None:
    providers = ("openai", "openai_compatible", "openai_responses", "azure_openai", "anthropic", "bedrock", "vertex")
    long = {"max_tokens": 20_000, "max_output_tokens": 20_000}
    for provider in providers:
        chosen = ["model=gpt-4o", "model.pricing=unknown", f"provider={provider}", "decoding.temperature=null"]
        chosen += ["provider.base_url=http://localhost:1"]
        values = ("auto", "always", "never", "true", "false")  # the last two are those of version 0.2
        built: list[Any] = []
        identities = set()
        cfg = composed(*chosen).copy()
        for value in values:
            cfg.provider.stream = yaml.safe_load(value)
            runner = config.build(cfg).runner
            assert isinstance(runner, ApiRunner)
            built.append(runner.provider)
            identities.add(config.digest(config.resolved(cfg)))
        assert [one.streams(long) for one in built] == [True, True, False, True, False], provider
        assert len(identities) == 1
    assert "provider.stream" in error_of("model=gpt-4o", "provider.stream=sometimes")


def test_no_address_is_part_of_the_identity() -> None:
    for chosen, override in (
        (["model=gpt-4o"], "provider.base_url=http://elsewhere:8000/v1"),
        (["model=gpt-4o", "provider=azure_openai"], "provider.base_url=https://x.openai.azure.com"),
        (["model=claude-sonnet-4-5", "provider=bedrock"], "provider.region=eu-west-1"),
        (["model=gpt-4o", "provider=deployments"], "provider.second.base_url=https://x.openai.azure.com"),
        (["model=gpt-4o", "provider=deployments"], "provider.first.max_concurrency=1"),
    ):
        assert identity_of(*chosen, override) == identity_of(*chosen), override
    assert identity_of("model=gpt-4o", "provider=azure_openai") != identity_of("model=gpt-4o")


def test_jobs_with_the_same_identity_have_different_names() -> None:
    plains = [config.resolved(composed("model=gpt-4o", f"provider.base_url=http://{a}/v1")) for a in ("u:pw@a", "b")]
    parts = [config.job_name_parts(plain, ["provider.base_url", "decoding.temperature"]) for plain in plains]
    assert parts[0] != parts[1]
    assert "pw" not in str(parts)
    plain = config.resolved(composed("dataset.limit=4"))
    assert config.job_name_parts(plain, ["dataset.limit"]) == ("limit=4",)
    assert config.job_name_parts(plain, ["experiment"], ["+experiment=one"]) == ("experiment=one",)
    shard = config.resolved(composed("shard.index=0", "shard.count=2"))
    name = config.run_name(shard, "model", "data", ("limit=4",))
    unsharded = config.unsharded(shard)
    assert config.unsharded_name(name, shard) == config.run_name(unsharded, "model", "data", ("limit=4",))


def test_names_are_safe_for_a_file_system_and_differ_for_points_of_a_sweep() -> None:
    names = {
        config.run_name(config.resolved(composed(f"decoding.top_p={p}")), "owner/model:x", "../data set")
        for p in ("0.9", "0.95")
    }
    assert len(names) == 2
    assert all("/" not in name and " " not in name and not name.startswith(".") for name in names)


def test_passwords_in_urls_are_not_stored() -> None:
    cfg = composed("model=gpt-4o", "provider.base_url=https://user:secret@host/v1")
    assert "secret" not in str(config.resolved(cfg))
    assert "host/v1" in str(config.resolved(cfg))


def test_the_configuration_folder_is_found() -> None:
    assert (CONF / "config.yaml").is_file()
    assert isinstance(CONF, Path)
    assert ApiModel(name="m").label == "m"


def test_the_comments_of_the_yaml_files_and_the_reference_page_are_those_of_the_options() -> None:
    """``python -m tests.support.option_docs`` updates them."""
    files = [str(path) for path in option_docs.option_files()]
    stale = [file for file in files if (text := Path(file).read_text()) != option_docs.commented(text)]
    assert stale == []
    assert option_docs.PAGE.read_text() == option_docs.page()


def test_a_changed_description_replaces_the_old_one_in_a_yaml_file() -> None:
    text = (CONF / "runner" / "api.yaml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("  # ")]  # descriptions too long for their line
    assert comments
    for old in (["  # An old description."], []):
        stale = [new for line in text.splitlines() for new in (old if line in comments else [line])]
        assert option_docs.commented("\n".join(stale)) == text
    header = "# A file about the runner.\n# With two lines.\n"
    assert option_docs.commented(f"{header}{text}") == f"{header}{text}"


def test_one_name_has_one_effect_in_all_classes_of_a_group() -> None:
    effects: dict[tuple[str, str], set[str]] = {}
    for path in option_docs.option_files():
        group = path.relative_to(CONF).parts[0]
        target = yaml.safe_load(path.read_text()).get("_target_")
        for parameter in parameters_of(get_object(target)).values() if target else ():
            assert parameter.option is not None, (path, parameter.name)
            effects.setdefault((group, parameter.name), set()).add(parameter.option.effect)
    assert {key: found for key, found in effects.items() if len(found) > 1} == {}


def test_a_run_imports_the_classes_of_its_own_options_alone() -> None:
    code = """if True:
        import sys
        from swe_infer import config
        from swe_infer.cli.run import composed_run
        overrides = ["model=gpt-4o", "provider.max_concurrency=8", "dataset=jsonl", "dataset.path=rows.jsonl"]
        with composed_run(overrides) as cfg:
            config.build(cfg)
            config.digest(config.resolved(cfg))
        groups = {"swe_infer.providers.anthropic_messages", "swe_infer.context.oracle", "swe_infer.data.benchmark"}
        print(groups & sys.modules.keys(), "swe_infer.data.jsonl" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONF.parent)
    assert done.stdout == "set() True\n"
