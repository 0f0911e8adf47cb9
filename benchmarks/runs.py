"""What listing, viewing and syncing runs take: ``python -m benchmarks.runs [--runs 300] [--synced 50] [--rounds 5]``.

The listed folder has copies of one run of the bundled model, each with another temperature. The synced ones were
logged offline and moved, and are uploaded to the W&B server of the tests on loopback. Printed are the median
processor time of the commands, without that of ``wandb-core``, and their wall time; for the view, that of its first
reading of the folder and of a refresh, while one of the runs goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.store import RunStore
from swe_infer.view.folder import WatchedFolder
from tests.support.wandb_server import served

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="listed runs")
    parser.add_argument("--synced", type=int, default=50, help="synced runs; 0: none")
    parser.add_argument("--rounds", type=int, default=5, help="of listing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        command("swe_infer", "dataset.limit=4", "tracker.mode=offline", f"output_dir={folder / 'run'}")
        copies(folder / "run", folder / "listed", given.runs)
        listed = [command("swe_infer.runs", "list", str(folder / "listed")) for _ in range(given.rounds)]
        report(f"list {given.runs} runs", listed)
        view(folder / "listed", given.rounds)
        if given.synced:
            copies(folder / "run", folder / "synced", given.synced)
            (folder / "home").mkdir()
            with served(folder / "home"):
                for what in (f"sync {given.synced} runs", "sync them again"):
                    report(what, [command("swe_infer.runs", "sync", str(folder / "synced"))])


def view(folder: Path, rounds: int) -> None:
    """Measures the reading of a folder in ``swe-infer-view``. The last run has a new answer before each refresh."""
    watched = WatchedFolder(folder)

    def scan() -> tuple[float, float]:
        before, started = time.process_time(), time.perf_counter()
        watched.scan()
        return time.process_time() - before, time.perf_counter() - started

    run = max(folder.iterdir())
    with RunStore(run, "model") as store:
        records = list(RunDirectory(run).records())
        report("view: first", [scan()])
        times = []
        for number in range(rounds):
            store.append({**records[number % len(records)], "time": time.time()})
            times.append(scan())
    report("view: refresh", times)


def copies(run: Path, target: Path, count: int) -> None:
    """Copies a run, with W&B runs and temperatures of their own."""
    for number in range(count):
        copy = target / f"run{number:03}"
        shutil.copytree(run, copy)
        config = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(config.replace("temperature: 0.0", f"temperature: {number / 100}"))
        state = json.loads((copy / "wandb" / "state.json").read_text())
        (copy / "wandb" / "state.json").write_text(json.dumps({**state, "run_id": f"run-{number}"}))


def command(*arguments: str) -> tuple[float, float]:
    """Runs a command; returns its processor time, that of its children included, and its wall time in seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", *arguments], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - started


def report(what: str, times: list[tuple[float, float]]) -> None:
    """Prints the medians."""
    processor, wall = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{what:<16} {processor:6.2f} s of processor time, {wall:6.2f} s")


if __name__ == "__main__":
    main()
