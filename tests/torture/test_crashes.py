"""The short form of ``benchmarks.torture``: a few kills, each kind of signal, one full disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.torture import crashes, shortages
from benchmarks.torture.checks import Findings
from benchmarks.torture.place import forked


@pytest.fixture(autouse=True)
def _forked() -> Iterator[None]:
    with forked():
        yield


def holds(findings: Findings) -> None:
    if findings.skipped:
        pytest.skip(findings.skipped)
    assert findings.ok, findings


def test_killed_runs_lose_only_requests_in_flight(tmp_path: Path) -> None:
    holds(crashes.kills_of_runs(tmp_path, 1, seed=3, tracked_share=0.0))


@pytest.mark.parametrize("moment", ["SIGINT twice", "SIGTERM"])
def test_a_signal_ends_a_run_with_130_and_the_same_command_resumes(moment: crashes.Moment, tmp_path: Path) -> None:
    holds(crashes.interrupted(tmp_path, moment, seed=5))


def test_a_full_disk_stops_new_requests_and_loses_no_answer(tmp_path: Path) -> None:
    holds(shortages.full_disk(tmp_path, seed=7))


def test_a_directory_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    holds(shortages.read_only_directory(tmp_path, seed=7))
