"""What each part of a run does a second on this machine, for docs/scale.md: ``python -m benchmarks.scale``.

Store: records of 4 kB appended, as a run appends them (the disk is told twice a second), and appends that wait for
the disk each. Ledger: reservations made and settled by 1 and by 4 processes on one file, and through a budget server
on this machine. Pace: turns taken by 4 processes. Data: a JSON-lines file of 100,000 instances, opened, and one of
1,000 shards chosen. W&B: the end of an offline run of 10,000 records.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.select import select
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.tracking.base import RunInfo
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.types import Completion, DataShard, PatchResult, Usage

_TEXT = "x" * 4000
_SPENDER = """
import sys, time
from decimal import Decimal
from pathlib import Path
from swe_infer.api.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), Decimal(10**6), sys.argv[2])
end, count = time.monotonic() + float(sys.argv[3]), 0
while time.monotonic() < end:
    ledger.charge(ledger.reserve(Decimal("0.04")), Decimal("0.01"))
    count += 1
print(count)
"""
_REMOTE_SPENDER = """
import sys, time
from decimal import Decimal
from swe_infer.api.remote_ledger import RemoteLedger
ledger = RemoteLedger(sys.argv[1], Decimal(10**6), sys.argv[2], "budget.ledger")
end, count = time.monotonic() + float(sys.argv[3]), 0
while time.monotonic() < end:
    ledger.charge_later(ledger.reserve(Decimal("0.04")), Decimal("0.01"))
    count += 1
print(count)
"""
_PACER = """
import sys, time
from pathlib import Path
from swe_infer.api.rate_limits import SharedRateLimiter
pace = SharedRateLimiter(Path(sys.argv[1]))
end, count = time.monotonic() + float(sys.argv[3]), 0
while time.monotonic() < end:
    count += pace.acquire((1.0, 1000.0, 100.0), (1e9, 1e12, 1e12)) == 0.0
print(count)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement by the clock")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--characters", type=int, default=4_000, help="of each instance's prompt")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        found: dict[str, float] = {"load": round(os.getloadavg()[0], 1)}
        found |= store(folder, options.records, options.seconds)
        for count in (1, 4):
            shared = str(folder / f"ledger{count}")
            found[f"ledger_reservations_per_s_{count}_processes"] = together(_SPENDER, shared, count, options.seconds)
        command = [sys.executable, "-m", "swe_infer.budget", str(folder / "budgets"), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = f"{server.stdout.readline().split()[0]}/sweep"
            for count in (1, 4):
                name = f"budget_server_reservations_per_s_{count}_processes"
                found[name] = together(_REMOTE_SPENDER, address, count, options.seconds)
            server.terminate()
        found["pace_turns_per_s_4_processes"] = together(_PACER, str(folder / "pace"), 4, options.seconds)
        found |= data(folder, options.instances, options.characters)
        found |= wandb(folder / "run", options.records)
    print(json.dumps(found, indent=2))


def store(folder: Path, count: int, seconds: float) -> dict[str, float]:
    answer = Completion(_TEXT, "stop", Usage(8000, output_tokens=800), Decimal("0.01"), 3.0)
    patch = PatchResult("", "none")
    began = time.monotonic()
    with RunStore(folder / "run", "model") as run:
        for number in range(count):
            run.append(record_of((f"owner__name-{number}", 0), answer, patch))
    appends = count / (time.monotonic() - began)
    began = time.monotonic()
    with RunStore(folder / "run", "model"):
        reopened = time.monotonic() - began
    descriptor = os.open(folder / "synced", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began, waits = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        os.write(descriptor, _TEXT.encode())
        os.fdatasync(descriptor)
        waits += 1
    os.close(descriptor)
    return {
        "store_appends_per_s": round(appends),
        "disk_synced_appends_per_s": round(waits / seconds),
        "store_resumed_records_per_s": round(count / reopened),
    }


def together(code: str, shared: str, count: int, seconds: float) -> float:
    """The sum of what ``count`` processes do a second with one file or server."""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, shared, f"run{n}", str(seconds)], stdout=subprocess.PIPE)
        for n in range(count)
    ]
    return round(sum(int(process.communicate()[0]) for process in processes) / seconds)


def data(folder: Path, count: int, characters: int) -> dict[str, float]:
    path = folder / "instances.jsonl"
    with path.open("w") as file:
        for number in range(count):
            text = "y" * (characters // 2 + number * 7919 % characters)
            file.write(json.dumps({"instance_id": f"owner__name-{number}", "text": text}) + "\n")
    dataset = JsonlDataset(path=str(path))
    began = time.monotonic()
    rows = dataset.open()
    opened = time.monotonic()
    select(
        rows, dataset, count_tokens=None, reserved_output_tokens=2048, context_window=None,
        shard=DataShard(index=17, count=1000),
        order="dataset",
    )  # fmt: skip
    return {
        "data_gigabytes": round(path.stat().st_size / 1e9, 2),
        "data_open_s": round(opened - began, 2),
        "data_select_one_of_1000_shards_s": round(time.monotonic() - opened, 2),
    }


def wandb(run: Path, records: int) -> dict[str, float]:
    """The end of a run whose records lie there already: reading them, the table, the artifact."""
    tracker = WandbTracker(mode="offline")
    tracker.start(RunInfo("scale", "scale", {}, run, resumed=True))
    began = time.monotonic()
    tracker.finish({"completed": records, "wall_s": 3600.0}, [run / "records.jsonl"], 0)
    return {"wandb_rows_per_s": round(records / (time.monotonic() - began))}


if __name__ == "__main__":
    main()
