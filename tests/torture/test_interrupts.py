"""Ctrl-C at moments that are defined by the state of the server or the process; for times see
``benchmarks.torture interrupts``, which covers the whole life of each command."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.torture.checks import Findings
from benchmarks.torture.interrupts import KINDS, Trial, handles_signals
from benchmarks.torture.place import ROOT, Process, forked, wait_until
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(latency_s=0.3) as server:
        yield server


def asked(server: ApiServer, more: int, process: Process) -> None:
    """Waits until the server has received this many more requests."""
    before = len(server.log.asked())
    wait_until(lambda: len(server.log.asked()) >= before + more, process)


def test_a_run_is_interrupted_again_and_again_and_pays_for_each_answer_once(
    server: ApiServer, tmp_path: Path
) -> None:
    trial, findings = Trial(KINDS["run"], tmp_path / "run", server), Findings("run")
    starting = trial.interrupt(findings, handles_signals)
    assert not server.log.exchanges
    assert starting.errors == "interrupted\n"
    with forked():
        answering = trial.interrupt(findings, lambda process: asked(server, 2, process))
        assert "requests in flight; press Ctrl-C again to stop now" in answering.errors
        assert answering.output.splitlines()[-1] == "run"
        trial.interrupt(findings, lambda process: asked(server, 1, process), twice=True)
        trial.go_on(findings, allowed=3)
    assert findings.ok, findings
    assert findings.faults == 3


@pytest.mark.skipif(shutil.which("setsid") is None, reason="needs setsid of util-linux")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_loses_no_answer(ignored: bool, server: ApiServer, tmp_path: Path) -> None:
    """The kernel sends SIGHUP to the run, and so does its shell. Under ``nohup`` the run goes on."""
    data = write_instances(tmp_path / "instances.jsonl", 8)
    command = [
        "setsid", "--ctty", *["nohup"] * ignored, sys.executable, "-m", "swe_infer", "model=gpt-4o", "tracker=none",
        f"provider.base_url={server.openai_url}", "provider.max_concurrency=3", "dataset=jsonl",
        f"dataset.path={data}", "output_dir=run",
    ]  # fmt: skip
    terminal, its_end = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "key"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=its_end, stdout=its_end, stderr=its_end, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup, too
    )  # fmt: skip
    os.close(its_end)
    wait_until(lambda: len(server.log.asked()) >= 2, process)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == (0 if ignored else 130)
    answers = (tmp_path / "run" / "records.jsonl").read_text().count('"completed"')
    assert answers == len(server.log.billed()) == len(server.log.asked())
    assert (answers == 8) is ignored


def test_an_interrupted_sweep_starts_no_further_job_even_if_the_current_one_finishes(
    server: ApiServer, tmp_path: Path
) -> None:
    """The signal comes when the rest of the first job is in flight: the job succeeds, the sweep is interrupted."""
    one_at_a_time = replace(KINDS["sweep"], command=(*KINDS["sweep"].command, "runner.max_concurrent_jobs=1"))
    trial, findings = Trial(one_at_a_time, tmp_path / "sweep", server), Findings("sweep")
    with forked():
        first = trial.interrupt(findings, lambda process: asked(server, 12, process))
        assert len(server.log.asked()) == 12
        assert first.errors.count("exit 130: ") == 2
        second = trial.interrupt(findings, lambda process: asked(server, 1, process))
        assert second.status == 130
        trial.go_on(findings)
    assert findings.ok, findings
    assert set(server.log.answers_by_prompt().values()) == {3}


def test_batches_continue_at_the_provider_and_the_same_command_collects_them(
    server: ApiServer, tmp_path: Path
) -> None:
    trial, findings = Trial(KINDS["batch"], tmp_path / "batch", server), Findings("batch")
    server.batches.held = True
    with forked():
        trial.interrupt(findings, lambda process: wait_until(lambda: len(server.batches.submitted()) == 3, process))
        assert trial.paid == 0 or len(server.batches.submitted()) == 3
        server.batches.held = False
        trial.go_on(findings)
    assert findings.ok, findings
    assert len(server.batches.submitted()) == 3


@pytest.mark.parametrize("early", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_local_run_resumes_after_each_interrupt(early: bool, server: ApiServer, tmp_path: Path) -> None:
    trial, findings = Trial(KINDS["local"], tmp_path / "local", server), Findings("local")
    records = trial.directory / "run" / "records.jsonl"
    with forked(commands.LOCAL):
        if early:
            trial.interrupt(findings, lambda process: wait_until(records.exists, process))
        answered = trial.interrupt(
            findings, lambda process: wait_until(lambda: records.exists() and bool(records.stat().st_size), process)
        )
        assert answered.output == "run\n"
        assert "resolved" not in answered.errors, "nothing is evaluated after an interrupt"
        trial.go_on(findings)
    assert findings.ok, findings
    assert len(records.read_bytes().splitlines()) == 8


@pytest.mark.usefixtures("sandbox")  # the evaluation runs tests
@pytest.mark.parametrize("name", ["dry-run", "compare", "evaluate"])
def test_commands_that_pay_for_nothing_end_at_once(name: str, server: ApiServer, tmp_path: Path) -> None:
    trial, findings = Trial(KINDS[name], tmp_path / name, server), Findings(name)
    trial.interrupt(findings, handles_signals)
    if name == "evaluate":
        trial.interrupt(findings, lambda process: wait_until(lambda: bool(children(process)), process))
    with forked():
        trial.go_on(findings)
    assert findings.ok, findings
    assert findings.faults == findings.tries - 1
    assert not list(trial.directory.glob("*.new"))


def children(process: Process) -> str:
    try:
        return "".join(path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children"))
    except OSError:
        return ""


def test_entry_points_install_signal_handlers_before_heavy_imports(tmp_path: Path) -> None:
    """A fake module of the signal handlers records what was imported before it."""
    code = "import sys; print(*sys.modules); sys.stdout.flush(); import os; os._exit(0)"
    package = tmp_path / "swe_infer"
    shutil.copytree(ROOT / "swe_infer", package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    (package / "interrupts.py").write_text(code)
    commands = ("compare", "evaluate", "merge", "patches", "prompts")
    for module in ("swe_infer", *(f"swe_infer.{command}" for command in commands)):
        found = subprocess.run(
            [sys.executable, "-m", module], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        names = found.stdout.split()
        assert "swe_infer.interrupts" in names
        assert {name for name in names if name.startswith("swe_infer")} <= {
            "swe_infer",
            "swe_infer.interrupts",
            module,
        }
        assert not {"hydra", "omegaconf", "torch", "pydantic", "dataclasses"} & set(names)


def test_the_status_is_130_wherever_the_interrupt_was_raised(tmp_path: Path) -> None:
    """During ``exec`` of source text, for example of a dataclass, CPython itself would end by the signal."""
    (tmp_path / "command.py").write_text(
        "from swe_infer.interrupts import run_command\n"
        "def main():\n"
        "    exec('import os, signal; os.kill(os.getpid(), signal.SIGINT)', {})\n"
        "if __name__ == '__main__':\n"
        "    run_command('command')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "command"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (130, "interrupted: stopping now\n")


@pytest.mark.parametrize(("end", "status"), [("run_command('command')", 130), ("main()", 0)])
def test_an_interrupt_does_not_wait_for_native_code_nor_for_its_thread(end: str, status: int, tmp_path: Path) -> None:
    """Within ``finishing`` too, where a signal raises nothing. The call never returns. ``main()`` is called as in the
    process of a launcher."""
    (tmp_path / "command.py").write_text(
        "import os, signal, threading\n"
        "from swe_infer.interrupts import INTERRUPTS, Stopped, run_command\n"
        "def never():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Event().wait()\n"
        "def main():\n"
        "    with INTERRUPTS.finishing(threading.Event()):\n"
        "        assert INTERRUPTS.call_native(lambda: 3) == 3\n"
        "        try:\n"
        "            INTERRUPTS.call_native(never)\n"
        "        except Stopped:\n"
        "            print('kept', flush=True)\n"
        "if __name__ == '__main__':\n"
        f"    {end}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "command"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (status, "kept\n")


def test_an_interrupted_command_waits_for_threads_that_end(tmp_path: Path) -> None:
    """Such as those of joblib, which stop its processes and remove its shared memory."""
    (tmp_path / "command.py").write_text(
        "import os, signal, threading, time\n"
        "from swe_infer.interrupts import run_command\n"
        "def end():\n"
        "    time.sleep(3)\n"
        "    print('ended', flush=True)\n"
        "def main():\n"
        "    threading.Thread(target=end).start()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "if __name__ == '__main__':\n"
        "    run_command('command')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "command"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (130, "ended\n")
