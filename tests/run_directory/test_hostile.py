"""Run directories of strangers: links, special files, and configurations that are made to hang whoever reads them."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.compare.loading import load_run
from swe_infer.errors import ConfigError
from swe_infer.evaluate.evaluable import open_run
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, PatchResult, Usage

COMPARE = ["swe_infer.compare", "RUN"]
EVALUATE = ["swe_infer.evaluate", "RUN", "--report", "REPORT"]
RESUME = ["swe_infer", "tracker=none", "dataset.limit=1", "output_dir=RUN"]
WRITTEN = (
    ".lock", ".lock.owner", ".reserve", "records.jsonl", "summary.json", "config.yaml", "asked.json",
    "predictions.jsonl", "evaluation.jsonl", "evaluation.all.jsonl", "run_id", "wandb",
)  # fmt: skip
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


def run(command: list[str], directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    report = directory.parent / "report.json"
    report.write_text('{"resolved_ids": ["a"]}')
    arguments = [part.replace("RUN", str(directory)).replace("REPORT", str(report)) for part in command]
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with every file."""
    directory = tmp_path_factory.mktemp("stranger") / "run"
    with RunStore(directory, "model") as store:
        answer = Completion("an answer", "stop", Usage(10, 0, 0, 5, 0), Decimal("0.5"), 1.0)
        store.append(record_of(("a", 0), answer, PatchResult("", "none")))
        store.write_summary(store.totals.summary())
    (directory / "config.yaml").write_text("dataset: {name: x}\n")
    return directory


@pytest.fixture
def received(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def one_line(process: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The command was refused, in one line that holds ``parts``."""
    assert process.returncode == 2, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.strip()]
    assert all(part in line for part in parts), line


def test_a_run_directory_as_it_should_be_is_read_and_evaluated(received: Path) -> None:
    before = {path.name for path in received.iterdir()}
    assert run(COMPARE, received).returncode == 0
    assert {path.name for path in received.iterdir()} == before, "reading writes nothing"
    evaluated = run(EVALUATE, received)
    assert (evaluated.returncode, "resolved 1 of 1" in evaluated.stdout) == (0, True), evaluated.stderr


@pytest.mark.parametrize("name", WRITTEN)
def test_a_link_in_it_is_refused_by_name_and_its_target_untouched(received: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    content = (received / name).read_bytes() if (received / name).is_file() else b"mine\n"
    precious.write_bytes(content)
    (received / name).unlink(missing_ok=True)
    (received / name).symlink_to(precious)
    with pytest.raises(Exception, match="symbolic link") as caught:
        RunStore(received, "model")
    assert name in str(caught.value)
    assert precious.read_bytes() == content


@pytest.mark.parametrize("command", [EVALUATE, RESUME], ids=["evaluate", "resume"])
def test_commands_that_write_refuse_links_in_one_line(received: Path, tmp_path: Path, command: list[str]) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (received / ".lock").unlink()
    (received / ".lock").symlink_to(precious)
    one_line(run(command, received), ".lock", "symbolic link")
    assert precious.read_text() == "mine\n"


def test_a_second_name_of_somebody_elses_file_is_refused(received: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (received / ".lock").unlink()
    os.link(precious, received / ".lock")
    one_line(run(EVALUATE, received), ".lock", "hard links")
    assert precious.read_text() == "mine\n"


@pytest.mark.parametrize(
    "name", ["predictions.jsonl.new", "summary.json.new", "evaluation.jsonl.new", ".probe", ".reserve.new"]
)
def test_no_name_that_can_be_guessed_is_written_through(received: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (received / name).symlink_to(precious)
    run(EVALUATE, received)
    assert precious.read_text() == "mine\n"


def test_special_files_neither_hang_nor_fill_the_memory(received: Path) -> None:
    for name in ("records.jsonl", "summary.json", "config.yaml", "asked.json", "evaluation.jsonl"):
        content = (received / name).read_bytes() if (received / name).exists() else None
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            (received / name).unlink(missing_ok=True)
            make(received / name)
            with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
                load_run(received)
        (received / name).unlink()
        if content is not None:
            (received / name).write_bytes(content)
    (received / "config.yaml").unlink()
    os.mkfifo(received / "config.yaml")
    one_line(run(EVALUATE, received), "config.yaml", "FIFO")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB, "aliases"),
        ("model: !!python/object/apply:os.system ['touch planted']\n", "tags"),
        ("a: " + "[" * 500 + "]" * 500 + "\n", "nested"),
        ("- a\n- b\n", "mapping"),
        ("a: 'unfinished\n", "not YAML"),
    ],
    ids=["alias bomb", "python tag", "deep", "list", "cut"],
)
def test_a_hostile_configuration_ends_in_one_line(received: Path, content: str, said: str) -> None:
    (received / "config.yaml").write_text(content)
    for read in (load_run, open_run):
        with pytest.raises(ConfigError, match=f"config.yaml: .*{said}"):
            read(received)
    assert not Path("planted").exists()


def test_an_endless_line_is_one_unreadable_record(received: Path) -> None:
    with (received / "records.jsonl").open("ab") as file:
        file.truncate(file.tell() + (1 << 28) + 1000)  # a hole: it takes no space
    loaded = load_run(received)
    assert (len(loaded.results), loaded.unreadable) == (1, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 << 20, "KiB"
