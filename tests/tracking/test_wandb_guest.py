"""A missing, broken or hanging W&B SDK causes one warning, and never stops or delays the run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from swe_infer.errors import ConfigError
from swe_infer.tracking.base import NoTracker
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.tracking.writer import LoggedRun
from tests.tracking.scripted import info, play


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def another_wandb(directory: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Shadow the module ``wandb`` in the worker process."""
    directory.mkdir()
    (directory / "wandb.py").write_text(textwrap.dedent(code), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(directory))


class _CountedEvent(threading.Event):
    sets = 0

    def set(self) -> None:
        self.sets += 1
        super().set()


def test_records_between_two_points_do_not_wake_the_writer_thread(tmp_path: Path) -> None:
    wake = _CountedEvent()
    run = LoggedRun({}, tmp_path, interval_s=60.0, on_address=lambda address: None)
    run.wake_with(wake)
    for completed in range(100):
        run.update_totals({"completed": completed})
    assert wake.sets == 1
    *_, point = run.messages(time.monotonic())
    assert point["totals"]["completed"] == 99
    run.update_totals({"completed": 100})
    assert wake.sets == 2  # the thread waits without a timeout
    assert run.next_due_s(time.monotonic()) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ModuleNotFoundError(\"No module named 'wandb'\")", "No module named 'wandb'"),
        ("import os; os._exit(3)", "ended with status 3"),
        (
            "def init(**given): pass\ndef Settings(**given): raise OSError(28, 'No space left')",
            "No space left",
        ),
    ],
    ids=["missing", "crashing", "disk full"],
)
def test_a_broken_wandb_costs_one_warning(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    another_wandb(tmp_path / "shadow", monkeypatch, code)
    summary = play(tmp_path / "run", WandbTracker(), info(tmp_path / "run"), range(20), pause_s=0.02)
    assert summary["completed"] == 20
    (warning,) = warnings(caplog)
    assert said in warning
    assert "\n" not in warning


@pytest.mark.slow
def test_a_stuck_wandb_does_not_hold_the_runs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    another_wandb(tmp_path / "shadow", monkeypatch, "import time; time.sleep(3600)")
    tracker = WandbTracker(log_interval_s=0.2, finish_timeout_s=1.0)
    play(tmp_path / "run", tracker, info(tmp_path / "run"), range(50), instances=50)
    (warning,) = warnings(caplog)
    assert "did not finish in 1 s" in warning


def test_a_directory_that_cannot_be_made_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb").write_text("in the way", encoding="utf-8")
    summary = play(tmp_path, WandbTracker(), info(tmp_path), range(5))
    assert summary["completed"] == 5
    assert len(warnings(caplog)) == 1


@pytest.mark.slow
def test_a_record_costs_the_run_a_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_wandb(tmp_path / "shadow", monkeypatch, "import time; time.sleep(3600)")
    tracker = WandbTracker(finish_timeout_s=1.0)
    tracker.start(info(tmp_path))
    totals = {"completed": 1, "patches": {"applies": 1}, "usage": {"input_tokens": 5}, "stats": {"concurrency": 1.0}}
    tracker.record({}, totals)  # Python caches the results of isinstance
    calls: list[object] = []

    def seen(frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            calls.append((frame.f_code.co_qualname, argument))

    sys.setprofile(seen)
    try:
        for _ in range(100):
            tracker.record({}, totals)
    finally:
        sys.setprofile(None)
    assert len(calls) < 2_500, calls[:30]
    tracker.finish(totals, [], 0)


@pytest.mark.slow
def test_start_does_not_wait_for_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_wandb(tmp_path / "shadow", monkeypatch, "import time; time.sleep(3600)")
    tracker = WandbTracker(init_timeout_s=3600.0, finish_timeout_s=1.0)
    tracker.start(info(tmp_path / "run"))
    tracker.finish({}, [], 0)


def test_finish_and_record_without_a_start_do_nothing(tmp_path: Path) -> None:
    tracker = WandbTracker()
    tracker.record({}, {})
    tracker.finish({}, [tmp_path / "missing"], 0)
    assert tracker.address is None


def test_nothing_but_the_worker_imports_wandb() -> None:
    code = "import sys, swe_infer.tracking.wandb, swe_infer.tracking.worker; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"project": ""}, "tracker.project"),
        ({"project": "a/b"}, "tracker.project"),
        ({"log_interval_s": 0.0}, "tracker.log_interval_s"),
        ({"finish_timeout_s": float("inf")}, "tracker.finish_timeout_s"),
        ({"init_timeout_s": -1.0}, "tracker.init_timeout_s"),
        ({"tags": ("x" * 65,)}, "tracker.tags"),
        ({"alert_failure_rate": 0.0}, "tracker.alert_failure_rate"),
        ({"alert_budget": 1.5}, "tracker.alert_budget"),
        ({"mode": "online"}, "WANDB_API_KEY"),
    ],
)
def test_a_bad_value_is_one_clear_line(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        WandbTracker(**given)
    assert "\n" not in str(caught.value)


def test_no_tracker_listens_to_everything_and_does_nothing(tmp_path: Path) -> None:
    play(tmp_path, NoTracker(), info(tmp_path), range(2))
    assert NoTracker().address is None
    assert not (tmp_path / "wandb").exists()


class _Unprintable:
    def __str__(self) -> str:
        raise KeyError("no text")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["loop", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("deep", "unprintable"))]
)
def test_values_that_json_does_not_know_do_not_hold_the_runs_end(kind: str, tmp_path: Path) -> None:
    tracker = WandbTracker(finish_timeout_s=3600.0)
    strange: dict[str, Any] = {"unprintable": _Unprintable()} if kind == "unprintable" else {}
    if kind == "loop":
        strange["again"] = strange
    for _ in range(100_000 if kind == "deep" else 0):
        strange = {"deeper": strange}
    tracker.start(info(tmp_path, config={"fine": {("a", "key"): 1, "path": tmp_path}}))
    tracker.record({}, {"completed": 1, "stats": strange})
    tracker.finish({"completed": 1}, [], 0)
