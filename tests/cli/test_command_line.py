"""The command line: light imports, one line per error, any working directory, installed or not."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from swe_infer import __version__
from swe_infer.cli.help import help_text
from swe_infer.cli.start import check_arguments
from swe_infer.errors import ConfigError
from tests.support import commands
from tests.support.api_server import ApiServer

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
OVERRIDES = ("swe_infer.__main__", "swe_infer.prompts.__main__")
"""Commands that take overrides."""


def swe_infer(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", "swe_infer", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def forked(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("swe_infer", *arguments, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)})


def imported(result: subprocess.CompletedProcess[str]) -> set[str]:
    """The modules that a command with PYTHONPROFILEIMPORTTIME=1 imported."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip() for line in lines}
    assert "swe_infer" in modules, "the import report is there"
    return modules


@pytest.mark.parametrize(
    ("arguments", "status", "most"),
    [
        pytest.param(["--cfg", "job", "model=gpt-4o", "dataset=swebench_oracle"], 0, 450, marks=pytest.mark.full),
        pytest.param(["decoding.tempratur=1"], 2, 450, marks=pytest.mark.full),
        pytest.param(["-m", "decoding.tempratur=1,2"], 2, 450, marks=pytest.mark.full),
        (["model=gpt-4o", "provider=openai", "shard.index=0"], 2, 560),
        pytest.param(["dataset=jsonl", "tracker=none"], 2, 450, marks=pytest.mark.full),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_answers_come_without_a_heavy_import(arguments: list[str], status: int, most: int, tmp_path: Path) -> None:
    result = swe_infer(*arguments, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == status, result.stderr
    modules = imported(result)
    assert "hydra" in modules
    assert not {name.partition(".")[0] for name in modules} & {*HEAVY, "pydantic"}
    assert not modules & {"swe_infer.runners.run", "swe_infer.patches.pipeline", "swe_infer.cli.sweep_report"}
    assert len(modules) < most


@pytest.mark.parametrize(
    ("arguments", "most", "said"),
    [
        (["--version"], 130, [f"swe_infer {__version__}"]),
        (["--help"], 180, ["provider (none)", "budget.max_usd=X", "swe-infer -m decoding=sample"]),
        (
            ["-h", "provider"],
            180,
            ["  vllm  ", "== provider/openai.yaml ==", "# Maximum number of concurrent requests."],
        ),
        pytest.param(
            ["--help", "model=gpt-4o"],
            180,
            ["name: gpt-4o", "== model/api.yaml ==", "# Dollars per million tokens"],
            marks=pytest.mark.full,
        ),
        pytest.param(["--cfg", "job", "--help"], 180, ["Groups, with their defaults:"], marks=pytest.mark.full),
        pytest.param(
            ["--help", "budget.max_usd"], 180, ["max_usd: null # Maximum cost of this run"], marks=pytest.mark.full
        ),
        pytest.param(
            ["--config-dir", "own", "--help", "model"],
            180,
            ["  mine  ", "  A model of my own."],
            marks=pytest.mark.full,
        ),
        (
            ["--help", "model"],
            180,
            ["provider=deepseek:\n  deepseek-chat ", "Retires 2026-07-24.\n  deepseek-flash ", "\nlocal models:\n"],
        ),
        pytest.param(["--help", "model=mine", "--config-dir=own"], 180, ["name: my-tune"], marks=pytest.mark.full),
        pytest.param(["--help", "hydra/launcher"], 180, ["== hydra/launcher/ray.yaml =="], marks=pytest.mark.full),
        pytest.param(["-sc", "install=bash"], 180, ["complete "], marks=pytest.mark.full),
        (["-sc", "query=bash"], 300, ["provider.mode=batch\nprovider.mode=live\n"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_version_and_completion_come_without_hydra(
    arguments: list[str], most: int, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("# A model of my own.\ndefaults: [api]\nname: my-tune\n")
    line = "swe-infer model=gpt-4o provider.mode="
    result = swe_infer(*arguments, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1", COMP_LINE=line)
    assert result.returncode == 0, result.stderr
    assert all(part in result.stdout for part in said)
    modules = imported(result)
    assert not {name.partition(".")[0] for name in modules} & {*HEAVY, "pydantic", "hydra", "omegaconf", "antlr4"}
    assert len(modules) < most
    if arguments == ["--help"]:
        assert len(result.stdout.splitlines()) <= 44, "a screen"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("budget.max_usd", "max_usd: null # Maximum cost of this run, including resumes; null: unlimited.\n"),
        ("decoding.seed", "== decoding=greedy, model_default, reasoning, sample ==\nseed: null # Seed of the run; "),
        ("runner.limits.start=4", "== runner=api ==\nstart: 8 # Initial number of concurrent requests.\n"),
        ("runner.retry", "== runner=api ==\nretry: # by class of error: "),
        ("model.attention.backends", "== model/attention=auto ==\nbackends: ["),
        ("model.extra_body.tools", "== model=api ==\nextra_body: {} # Additional fields of the request body.\n"),
    ],
)
def test_help_for_a_key_shows_the_key(key: str, shown: str) -> None:
    text = help_text([key])
    assert text.startswith(shown)
    assert "options ==" not in text
    assert len(text.splitlines()) < 20


def test_a_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m swe_infer --help model | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "== model: options ==\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help", "modle"], "modle: unknown group; did you mean model?"),
        (["--help", "runner=rey"], "runner=rey: unknown option; did you mean ray?"),
        (["-sc", "install=tcsh"], "must be install=, uninstall= or query= with bash, zsh or fish"),
    ],
)
def test_help_for_unknown_topics_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = forked(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_other_features_of_hydra_still_work(tmp_path: Path) -> None:
    command = [
        "dry_run=true",
        "dataset.limit=1",
        "tracker=none",
        "++hydra.run.dir=elsewhere",
        "++hydra.job.chdir=true",
    ]
    result = forked(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hydra.job.env_copy=[UNSET_NAME]"], "hydra.job.env_copy: the environment variable UNSET_NAME is not set"),
        pytest.param(
            ["-m", "decoding.seed=1,2", "hydra.job.env_copy=[HOME,UNSET_NAME]"],
            "environment variable UNSET_NAME",
            marks=pytest.mark.full,
        ),
        (
            ["hydra.run.dir=s3://b/x"],
            "hydra.run.dir=s3://b/x: must be a local folder; results are uploaded with",
        ),
        pytest.param(
            ["++hydra.output_subdir='gs://b/x'"],
            "hydra.output_subdir=gs://b/x: must be a local folder",
            marks=pytest.mark.full,
        ),
        pytest.param(
            ["-m", "decoding.seed=1,2", "hydra.sweep.subdir=s3://b/x"],
            "hydra.sweep.subdir=s3://b/x: must be a local",
            marks=pytest.mark.full,
        ),
        pytest.param(
            ["hydra.mode=MULTIRUN"], "hydra.mode=MULTIRUN: a sweep is started with -m", marks=pytest.mark.full
        ),
        (["-m", "decoding.seed=1,2", "hydra.job.chdir=true"], "hydra.job.chdir=true: the runs of a sweep share"),
    ],
)
def test_keys_of_hydra_that_cannot_be_followed_are_refused_in_one_line(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = forked("dry_run=true", "tracker=none", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_starts_nothing(tmp_path: Path) -> None:
    """Even with W&B: no process for it, no SDK, no engine, no tokenizer, no patch repair."""
    command = ["output_dir=run", "dataset.limit=1", "dataset.run_tests=false", "decoding.max_new_tokens=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = commands.run(
        "swe_infer", *command, "tracker=none", cwd=tmp_path, env=environment, packages=commands.LOCAL
    )
    assert first.returncode == 0, first.stderr
    again = swe_infer(*command, "tracker=wandb", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert again.returncode == 0, again.stderr
    assert "nothing is left to do" in again.stderr
    modules = imported(again)
    assert not {name.partition(".")[0] for name in modules} & {*HEAVY, "pydantic", "numpy"}
    assert not modules & {"swe_infer.patches.pipeline", "swe_infer.evaluate.own_tests", "swe_infer.tracking.worker"}
    assert len(modules) < 520
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["decoding.tempratur=1"], marks=pytest.mark.full),
        ["model=lama"],
        ["decoding.stop=[a"],
        ["dataset=jsonl", "dataset.path=missing.jsonl", "tracker=none"],
        pytest.param(["model=llama", "model.path=missing", "tracker=none"], marks=pytest.mark.full),
        ["model=gpt-4o", "tracker=none"],
        pytest.param(["model=gpt-4o", "decoding.n=0"], marks=pytest.mark.full),
        pytest.param(["dataset=sample", "dataset.instance_ids=[nobody]", "tracker=none"], marks=pytest.mark.full),
        ["--resolve"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_2_and_leaves_nothing(arguments: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": ""}
    result = commands.run("swe_infer", *arguments, cwd=tmp_path, env=environment)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_malformed_arguments_suggest_what_was_meant() -> None:
    """Without Hydra. The command prints the error as the other ones."""
    for arguments, said in [
        (["--model", "gpt-4o"], "keys are written without dashes: model=gpt-4o"),
        (["--provider=anthropic"], "keys are written without dashes: provider=anthropic"),
        (["--temperature", "0.3"], "keys are written without dashes: decoding.temperature=0.3"),
        (["--dry-run"], "keys are written without dashes: dry_run=true"),
        (["--model", "it's"], """keys are written without dashes: 'model=it'"'"'s'"""),
        (["--multi", "model=gpt-4o"], "--multi: unknown flag; did you mean --multirun?"),
        (["--\u00e9"], "unknown flag; see --help"),
        (["-m=gpt-4o"], "-m takes no value"),
        (["--cfg", "jobs"], "--cfg jobs: must be job or hydra or all"),
        (["--config-dir"], "--config-dir: needs a value"),
        (["--info", "config"], "--info: not supported"),
        (["gpt-4o"], "did you mean model=gpt-4o?"),
        (["model", "=", "gpt-4o"], "write model=VALUE, without spaces"),
        (["model = gpt-4o"], "write no spaces around ="),
        (["mod\u00e8le=gpt-4o"], "is not a key; see --help"),
        (["compare", "a", "b"], "did you mean the command swe-infer-compare?"),
    ]:
        with pytest.raises(ConfigError) as error:
            check_arguments(arguments)
        assert said in str(error.value), arguments
        assert "\n" not in str(error.value), arguments
        assert len(str(error.value)) < 400, arguments


SUGGESTIONS = [
    (["--model", "gpt-4o"], "keys are written without dashes: model=gpt-4o"),
    (["model=gpt-4(o"], "did you mean gpt-4o"),
    (["model=gpt-4o", "provider=anthropic"], "it is a model of openai: choose provider=openai"),
    (["output_dir="], "output_dir is empty: name a path, or null"),
    (["model=gpt-4o", "provider.base_url="], "provider.base_url is empty: give an address, or null"),
    (["decoding.temperature=0.2,0.8"], "several values are a sweep, which needs -m"),
]
MORE_SUGGESTIONS = [
    (["model==gpt-4o"], "did you mean gpt-4o"),
    (["model=zzzz"], "model=zzzz: unknown option; --help model lists all "),
    (["model=gpt-4o", "budget.max_usd=$20"], 'budget.max_usd="$20": must be a number'),
    (["model="], "model=: unknown option; --help model lists all "),
    (["model.path="], "model.path is empty: name a path"),
    (["from="], "from is empty: name a path, or null"),
    (["model=gpt-4o", "provider.api_key_env="], "provider.api_key_env is empty: name an environment variable"),
]


@pytest.mark.parametrize(
    "cases", [SUGGESTIONS, pytest.param(MORE_SUGGESTIONS, marks=pytest.mark.full)], ids=["", "more"]
)
def test_errors_suggest_what_was_meant(cases: list[tuple[list[str], str]], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": ""}
    for arguments, said in cases:
        result = commands.run("swe_infer", *arguments, cwd=tmp_path, env=environment)
        assert result.returncode == 2, (arguments, result.stderr)
        assert result.stderr.startswith("error: "), (arguments, result.stderr)
        assert len(result.stderr.splitlines()) == 1, (arguments, result.stderr)
        assert len(result.stderr) < 400, (arguments, result.stderr)
        assert said in result.stderr, (arguments, result.stderr)
        assert result.stdout == "", arguments
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_an_option_of_ones_own_does_not_list_is_added(tmp_path: Path) -> None:
    (tmp_path / "own" / "provider").mkdir(parents=True)
    (tmp_path / "own" / "provider" / "gateway.yaml").write_text(
        "_target_: swe_infer.providers.openai_chat.OpenAIChat\nname: gateway\napi_key_env: null\n"
        "base_url: http://127.0.0.1:9/v1\npricing_id: free\n"
    )
    command = ["--config-dir", "own", "provider=gateway", "model.name=m", "dry_run=true"]
    result = forked(*command, "provider.max_concurrency=2", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        2,
        "error: provider.max_concurrency: its YAML file does not list it; such a key is added with "
        "+provider.max_concurrency=VALUE\n",
    )
    assert forked(*command, "+provider.max_concurrency=2", cwd=tmp_path).returncode == 0


def test_every_command_reports_unknown_and_missing_arguments_in_one_line(tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values()
    modules = [script.partition(":")[0] for script in scripts]
    for module in [*modules, "swe_infer.tracking.report", "swe_infer.cli.cache"]:
        folders = [] if module in OVERRIDES else ["folder", "folder"]
        done = commands.run(module, *folders, "--no-such-flag\n\x1b[31m", cwd=tmp_path, env=os.environ)
        assert (done.returncode, done.stdout) == (2, ""), (module, done)
        assert done.stderr.startswith("error: "), (module, done)
        assert "--help" in done.stderr or "--no-such-flag" in done.stderr, (module, done)
        assert len(done.stderr.splitlines()) == 1, (module, done)
        assert "\x1b" not in done.stderr, (module, done)
    assert list(tmp_path.iterdir()) == []


def test_a_working_directory_that_was_removed_is_one_line(tmp_path: Path) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    command = f'rmdir "{removed}"; exec "{sys.executable}" -m swe_infer dry_run=true'
    done = subprocess.run(
        ["bash", "-c", command], cwd=removed, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "error: the working directory cannot be used (No such file or directory); change to another one\n"
    )


def test_overrides_may_come_before_and_after_a_flag(tmp_path: Path) -> None:
    result = forked("decoding.n=2", "--cfg", "job", "decoding.seed=7", "-p", "decoding", cwd=tmp_path)
    assert "'n': 2" in result.stdout
    assert "seed: 7" in result.stdout


def test_a_model_name_alone_means_an_api_model(tmp_path: Path) -> None:
    result = forked("model.name=my-tune", "provider=openai_compatible", "--cfg", "job", "-p", "model", cwd=tmp_path)
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
    assert (site / "swe_infer" / "py.typed").is_file(), "its types are for those who import it"
    (tmp_path / "elsewhere").mkdir()
    code = "from swe_infer.conf_files import conf_dir; print(conf_dir())"
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
    code = "from hydra.core.plugins import Plugins; print(*Plugins.instance().class_name_to_class)"
    plugins = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "hydra_plugins.swe_infer_sweeper.PointSweeper" in plugins
    others = "hydra_plugins.hydra_joblib_launcher"
    assert others in plugins or importlib.util.find_spec(others) is None, "other plug-ins share the namespace"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "instances"), [pytest.param((), 40, marks=pytest.mark.full), (("dataset.limit=8",), 8)]
)
def test_without_an_argument_the_bundled_model_answers_the_bundled_instances(
    arguments: tuple[str, ...], instances: int, tmp_path: Path
) -> None:
    """The README's first command, once it is set up. With ``--all``, as it is there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment["PYTHONPATH"] = str(ROOT)
    result = commands.run("swe_infer", *arguments, cwd=tmp_path, env=environment, packages=commands.LOCAL)
    assert result.returncode == 0, result.stderr
    directory = tmp_path / result.stdout.splitlines()[-1]
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["instances"], summary["completed"], summary["remaining"]) == (instances, instances, 0)
    assert summary["apply_rate"] > 0.9
    assert f"swe-infer-compare {result.stdout.splitlines()[-1]} --html page.html" in result.stderr
    for line in (f"  instances  {instances}\n", f"  completed  {instances}\n", "  cost       $0\n"):
        assert line in result.stderr
    assert list((directory / "wandb").rglob("*.wandb")), "tracked offline"


WITHOUT_LLAMA = """
import runpy, sys
from importlib.machinery import PathFinder

absent = {"torch", "transformers", "tokenizers", "safetensors", "sentencepiece", "peft", "accelerate"}
assert not absent & sys.modules.keys()

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def without_llama(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"}
    return commands.run("-c", WITHOUT_LLAMA, module, *arguments, cwd=cwd, env=environment)


@pytest.mark.slow
@pytest.mark.full
def test_without_the_extra_llama_every_command_works(tmp_path: Path) -> None:
    with ApiServer() as server:
        model = ("model=gpt-4o", f"provider.base_url={server.openai_url}")
        prompts = ("dataset=sample", "context=oracle", "prompt=style2", "dataset.limit=3", "--out", "rows.parquet")
        for module, *arguments in (
            ("swe_infer.prompts", *model, *prompts),
            ("swe_infer", *model, "dataset=parquet", "dataset.path=rows.parquet", "tracker=none", "output_dir=a"),
            ("swe_infer", *model, "dataset.limit=3", "dataset.run_tests=false", "tracker=none", "output_dir=b"),
            ("swe_infer.evaluate", "b", "--unsafe"),
            ("swe_infer.compare", "a", "b", "--html", "page.html"),
        ):
            done = without_llama(module, *arguments, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        assert len(server.log.asked()) == 6
    assert "resolved" in json.loads((tmp_path / "b" / "summary.json").read_text())


@pytest.mark.slow
def test_without_the_extra_llama_models_behind_an_api_answer_and_local_ones_are_refused(tmp_path: Path) -> None:
    with ApiServer() as server:
        model = ("model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset.limit=3", "tracker=none")
        done = without_llama("swe_infer", *model, "output_dir=b", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(server.log.asked()) == 3
    refused = without_llama("swe_infer", "model=llama", "model.path=no/checkpoint", "output_dir=c", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: runner=llama: local models need an extra that is not installed; pip install 'swe_infer[llama]', or "
        "choose a model behind an API, such as model=gpt-4o\n"
    )
    assert not (tmp_path / "c").exists()
