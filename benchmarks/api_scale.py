"""The whole command at scale, against the loopback server's own account: caps, faults, memory.

    python -m benchmarks.api_scale cap --usd 5                  # four processes of one sweep under one cap
    python -m benchmarks.api_scale faults --count 1000          # 5 % each of seven faults
    python -m benchmarks.api_scale memory --count 100000        # 20 kB each; memory and start-up
    python -m benchmarks.api_scale memory --directory DIR --seconds 240   # a part of it; again: the next part

Every run is ``python -m swe_infer`` in a process of its own, with the server in another. Exit status 1 where a figure
misses its aim.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

from benchmarks.api_throughput import running_server
from tests.support.api_server import read_log

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ("rate_limit_ms", "server_error", "overloaded", "reset", "broken_json", "html_page", "hang")
POINTS = ("0", "0.3", "0.6", "0.9")
MEMORY_MB, STARTUP_S = 700, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cap = commands.add_parser("cap")
    cap.add_argument("--usd", type=Decimal, default=Decimal(5))
    cap.add_argument("--count", type=int, default=2000, help="instances of each point: more than the cap allows")
    faults = commands.add_parser("faults")
    faults.add_argument("--count", type=int, default=1000)
    faults.add_argument("--fraction", type=float, default=0.05)
    faults.add_argument("--model", choices=("gpt-4o", "claude-sonnet-4-5"), default="gpt-4o")
    memory = commands.add_parser("memory")
    memory.add_argument("--count", type=int, default=100_000)
    memory.add_argument("--directory", type=Path, help="where the data and the run lie, to go on with it later")
    memory.add_argument("--seconds", type=float, help="interrupt the run after so long")
    memory.add_argument("--latency", default="0.05")
    for command in (cap, faults, memory):
        command.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return {"cap": _cap, "faults": _faults, "memory": _memory}[options.command](options, Path(scratch))


def _cap(options: argparse.Namespace, scratch: Path) -> int:
    data = _instances(scratch / "instances.jsonl", options.count, 6_000)
    log = scratch / "server.jsonl"
    with running_server("0.2-1", log, "--no-bodies") as url:
        done = _command(
            *("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=4", f"decoding.temperature={','.join(POINTS)}"),
            *_arguments("gpt-4o", url, data, options.concurrency),
            *(f"budget.sweep_max_usd={options.usd}", f"output_dir={scratch / 'sweep'}"),
            scratch=scratch,
        )
    bill = read_log(log).cost_usd()
    runs = sorted((scratch / "sweep").glob("*/summary.json"))
    spent = [Decimal(str(json.loads(run.read_text())["cost_usd"])) for run in runs]
    print(
        f"cap ${options.usd}, {len(runs)} runs at once, exit status {done.returncode}: the server's own sum "
        f"${bill:.4f} ({100 * bill / options.usd:.2f} %), the runs' ${sum(spent):.4f} "
        f"({', '.join(f'{usd:.3f}' for usd in spent)})"
    )
    return int(not (Decimal("0.95") * options.usd <= bill <= options.usd and done.returncode == 3))


def _faults(options: argparse.Namespace, scratch: Path) -> int:
    data = _instances(scratch / "instances.jsonl", options.count, 4_000)
    log = scratch / "server.jsonl"
    more = [word for kind in FAULTS for word in ("--fault", f"{kind}:{options.fraction}")]
    with running_server("0.2-1", log, *more) as url:
        began = time.monotonic()
        done = _command(
            *_arguments(options.model, url, data, options.concurrency),
            *("provider.timeout_s=10", "runner.retry.max_backoff_s=10", f"output_dir={scratch / 'run'}"),
            scratch=scratch,
        )
        wall_s = time.monotonic() - began
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr[-3000:])
    account = read_log(log)
    records = [json.loads(line) for line in (scratch / "run" / "records.jsonl").open()]
    completed = {record["instance_id"] for record in records if record["status"] == "completed"}
    shown = Counter(str(exchange.fault) for exchange in account.asked() if exchange.fault)
    answers = Counter(exchange.prompt for exchange in account.answers() if exchange.usable)
    paid = sum(Decimal(str(record["cost_usd"])) for record in records)
    usable, whole = account.cost_usd(only_usable=True), account.cost_usd()
    twice = sum(count > 1 for count in answers.values())
    print(
        f"{len(completed)} of {options.count} completed in {wall_s:.1f} s, {len(account.asked())} requests, faults "
        f"{dict(sorted(shown.items()))}\n"
        f"answered twice: {twice}; recorded ${paid:.4f}, the server's sum of answers that arrived ${usable:.4f}; "
        f"${whole - usable:.4f} more for answers that broke on the way"
    )
    return int(len(completed) != options.count or twice > 0 or paid != usable)


def _memory(options: argparse.Namespace, scratch: Path) -> int:
    directory = options.directory or scratch
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / f"instances{options.count}.jsonl"
    if not data.exists():
        _instances(data, options.count, 20_000)
    log = scratch / "server.jsonl"
    known = directory / "port"  # the address belongs to the configuration of a run that goes on
    port = known.read_text() if known.exists() else "0"
    with running_server(options.latency, log, "--no-bodies", "--no-prompt-cache", "--port", port) as url:
        known.write_text(url.removesuffix("/v1").rpartition(":")[2])
        began = time.time()
        arguments = _arguments("gpt-4o", url, data, options.concurrency)
        process = _start(*arguments, f"output_dir={directory / 'run'}", scratch=scratch)
        curve = _watch(process, options.seconds)
    asked = [json.loads(line) for line in log.open()]
    if not asked:
        raise SystemExit((scratch / "errors.txt").read_text()[-3000:])
    first = min(entry["received_at"] for entry in asked if entry["event"] == "request")
    summary = json.loads((directory / "run" / "summary.json").read_text())
    half = curve[len(curve) // 2 :]
    peak = max(mb for _, mb, _ in curve)
    growth = (half[-1][1] - half[0][1]) / max(half[-1][0] - half[0][0], 1) * 60
    processor_s = max(cpu for at, _, cpu in curve if at <= max(first - began, curve[0][0]))
    print(
        f"exit status {process.returncode}; {summary['completed']} of {options.count} completed, "
        f"{summary['completed'] / max(summary['wall_s'], 1):.0f} a second; start-up to the first request "
        f"{first - began:.1f} s ({processor_s:.1f} s of a processor); "
        f"memory of all processes: peak {peak:.0f} MB, at the end {curve[-1][1]:.0f} MB, "
        f"growth over the second half {growth:.1f} MB a minute"
    )
    print("memory, MB:", " ".join(f"{mb:.0f}" for _, mb, _ in curve[:: max(1, len(curve) // 20)]))
    return int(peak >= MEMORY_MB or first - began >= STARTUP_S or process.returncode not in (0, 130))


def _watch(process: subprocess.Popen[str], seconds: float | None) -> list[tuple[float, float, float]]:
    """(seconds, resident MB of the process and all below it, its processor seconds), once a second, until its end."""
    began, told, curve = time.monotonic(), False, []
    while process.poll() is None:
        now = time.monotonic() - began
        if seconds is not None and now > seconds and not told:
            process.send_signal(signal.SIGINT)
            told = True
        if (memory := sum(_resident_mb(pid) for pid in _family(process.pid))) > 0:
            curve.append((now, memory, _processor_s(process.pid)))
        time.sleep(1)
    return curve


def _family(pid: int) -> list[int]:
    family = [pid]
    for parent in family:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        family += map(int, children)
    return family


def _resident_mb(pid: int) -> float:
    """Its own share: pages that several processes share are counted once (the kernel's PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def _processor_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _arguments(model: str, url: str, data: Path, concurrency: int) -> list[str]:
    if model.startswith("claude"):
        url = url.removesuffix("/v1")
    return [
        *(f"model={model}", f"provider.base_url={url}", f"provider.max_concurrency={concurrency}"),
        *("dataset=jsonl", f"dataset.path={data}", "decoding.max_new_tokens=128", "tracker=none"),
    ]


def _start(*arguments: str, scratch: Path) -> subprocess.Popen[str]:
    keys = {"OPENAI_API_KEY": "sk-loopback", "ANTHROPIC_API_KEY": "sk-loopback"}
    return subprocess.Popen(
        [sys.executable, "-m", "swe_infer", *arguments],
        env={**os.environ, **keys, "PYTHONPATH": str(ROOT)},
        cwd=scratch,
        stdout=subprocess.DEVNULL,
        stderr=(scratch / "errors.txt").open("w"),
        text=True,
    )


def _command(*arguments: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    process = _start(*arguments, scratch=scratch)
    process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, "", (scratch / "errors.txt").read_text())


def _instances(path: Path, count: int, size: int) -> Path:
    """``count`` different prompts of ``size`` characters."""
    body = "\n".join(f"{n} value_{n} = compute(value_{n - 1}, {n})" for n in range(1, 3000))[: size - 100]
    with path.open("w") as out:
        for n in range(count):
            text = f"Fix the issue.\nNumber {n} is wrong.\n[start of a.py]\n{body}\n[end of a.py]\n"
            out.write(json.dumps({"instance_id": f"owner__name-{n}", "text": text}) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
