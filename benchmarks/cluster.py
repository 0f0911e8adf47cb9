"""Runs on a Ray cluster that loses and gains nodes, and the speed-up of a second worker.

    python -m benchmarks.cluster ray                  # two nodes, 8 shards of 200 instances, one node lost
    python -m benchmarks.cluster engines              # runner=ray: nodes, engines and the driver lost, nodes added
    python -m benchmarks.cluster throughput           # one worker and two, limited by the server's latency

``ray`` and ``engines`` require the extra ``ray``. Each prints its results as JSON and exits with status 1 if a
guarantee is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.llama.drafting import Codec, Drafter, SharedSuffixes, drafter_of
from tests.support.api_server import ApiServer
from tests.support.instances import prompt_text, write_instances
from tests.support.ray_cluster import TwoNodes

ROOT = Path(__file__).resolve().parent.parent
_FATAL = 1_000_000
"""Number of the instance that ends engines."""
_ANSWERED = re.compile(r"answered \(\d+, '([^']+)', 0\)")
_LOST = re.compile(r"; its (\d+) requests go to")
_JUST_BEFORE_S = 0.5
"""A lost node may not have recorded an answer sent this shortly before."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ray = commands.add_parser("ray")
    ray.add_argument("--shards", type=int, default=8)
    ray.add_argument("--instances", type=int, default=200, help="of each shard")
    ray.add_argument("--latency", type=float, default=0.5, help="of the server, in seconds")
    ray.add_argument("--concurrency", type=int, default=4, help="requests that a shard has in flight")
    engines = commands.add_parser("engines")
    engines.add_argument("--instances", type=int, default=2000)
    throughput = commands.add_parser("throughput")
    throughput.add_argument("--instances", type=int, default=400)
    throughput.add_argument("--latency", type=float, default=1.0)
    throughput.add_argument("--concurrency", type=int, default=16)
    throughput.add_argument("--rounds", type=int, default=3)
    options = vars(parser.parse_args(arguments))
    os.environ["OPENAI_API_KEY"] = "sk-loopback"
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "ray": lose_a_node,
        "engines": lose_engines,
        "throughput": two_workers,
    }
    measure = measures[options.pop("command")]
    with tempfile.TemporaryDirectory() as home:
        found = measure(Path(home), **options)
    print(json.dumps(found, indent=2))
    return 0 if found["holds"] else 1


def lose_a_node(home: Path, shards: int, instances: int, latency: float, concurrency: int) -> dict[str, Any]:
    """Run the shards on two nodes, kill one after a third of the answers, and account for every request."""
    count = shards * instances
    cap = Decimal("0.0009") * count  # slightly above the total cost
    started = time.monotonic()
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer(latency_s=latency))
        cluster = stack.enter_context(TwoNodes(jobs=-(-shards // 4)))
        sweep = _sweep(
            home, server, count, concurrency,
            ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={cluster.address}", f"shard.count={shards}",
             f"shard.index=range(0,{shards})", f"budget.sweep_max_usd={cap}", f"output_dir={home / 'sweep'}"],
        )  # fmt: skip
        while sweep.poll() is None and (len(server.log.answers()) < count / 3 or not cluster.workers()):
            time.sleep(0.05)
        running = len(cluster.workers())
        lost_at = cluster.kill_second()
        out, errors = sweep.communicate()
        launches = 1
        if sweep.returncode == 1:  # Ray gave up lost tasks
            out, errors = (again := _repeat(sweep)).communicate()
            launches, sweep = 2, again
        billed = Counter(exchange.prompt for exchange in server.log.billed())
        twice = {prompt for prompt, times in billed.items() if times > 1}
        in_flight = {
            exchange.prompt
            for exchange in server.log.asked()
            if exchange.received_at <= lost_at
            and (exchange.answered_at is None or exchange.answered_at > lost_at - _JUST_BEFORE_S)
        }
        paid = server.log.cost_usd()
    merged = _merged(out)
    return {
        "exit_status": sweep.returncode,
        "launches": launches,
        "points_running_on_the_lost_node": running,
        "instances": count,
        "in_the_merged_run": len(merged),
        "merged_more_than_once": sum(1 for times in merged.values() if times > 1),
        "paid_usd": float(paid),
        "cap_usd": float(cap),
        "in_flight_when_the_node_was_lost": len(in_flight),
        "paid_twice": len(twice),
        "paid_twice_and_not_in_flight": len(twice - in_flight),
        "wall_s": round(time.monotonic() - started, 1),
        "holds": sweep.returncode == 0
        and running > 0
        and len(merged) == count
        and set(merged.values()) == {1}
        and paid <= cap
        and twice <= in_flight,
        "errors": errors.splitlines()[-5:] if sweep.returncode else [],
    }


class FatalDrafter:
    """Drafts from the prompt. Ends the engine's process for the prompt of one instance."""

    def create(self, prompt_ids: Sequence[int], files: Mapping[str, str], codec: Codec) -> Drafter:
        if f"def scale_{_FATAL}(" in codec.decode(prompt_ids):
            os._exit(1)
        return drafter_of("suffix", codec, SharedSuffixes(prompt_ids))


def lose_engines(home: Path, instances: int) -> dict[str, Any]:
    """Answer the instances with ``runner=ray`` while nodes, engines and the driver are killed, and nodes are added.

    Counts the answers of each instance in the logs of the engines. One more instance ends each engine that runs it.
    """
    data = write_instances(home / "instances.jsonl", instances, lines=5)
    data.write_text(data.read_text() + json.dumps({"instance_id": "fatal", "text": prompt_text(_FATAL, lines=40)}))
    run, log = home / "run", home / "log"
    command = [
        sys.executable, "-m", "swe_infer", "tracker=none", "model=tiny", "dataset=jsonl", f"dataset.path={data}",
        "decoding.max_new_tokens=8", "+decoding.drafter._target_=benchmarks.cluster.FatalDrafter", "runner=ray",
        "runner.max_sequences=16", "runner.kv_cache_gb=0.05", "runner.stall_timeout_s=20", f"output_dir={run}",
    ]  # fmt: skip

    def start(cluster: TwoNodes) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, f"runner.ray.address={cluster.address}"],
            cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=log.open("a"),
        )  # fmt: skip

    started = time.monotonic()
    os.environ["PYTHONPATH"] = str(ROOT)  # of the engines
    with TwoNodes(jobs=1) as cluster:
        driver = start(cluster)
        events: dict[str, Callable[[], object]] = {
            "a node added": cluster.add,
            "an engine hung": lambda: os.kill(cluster.engines()[0], signal.SIGSTOP),
            "a node lost": cluster.kill_second,
            "another node added": cluster.add,
            "the driver killed": driver.kill,
            "an engine killed": lambda: os.kill(cluster.engines()[0], signal.SIGKILL),
        }
        done: dict[str, int] = {}
        for number, (name, event) in enumerate(events.items()):
            while driver.poll() is None and (
                _lines(run / "records.jsonl") < instances * (number + 1) / (len(events) + 1) or not cluster.engines()
            ):
                time.sleep(0.02)
            if driver.poll() is not None:
                break
            event()
            done[name] = _lines(run / "records.jsonl")
            if name == "the driver killed":
                driver.wait()
                driver = start(cluster)
        driver.wait(timeout=1800)
        answered = Counter(
            found for path in cluster.logs.glob("worker-*") for found in _ANSWERED.findall(path.read_text())
        )
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    recorded = Counter(record["instance_id"] for record in records if record["status"] == "completed")
    lost = [int(count) for count in _LOST.findall(log.read_text())]
    in_flight = sum(lost) + 3 * 16  # and those of three engines when the driver was killed
    failed = {record["instance_id"]: record["error"] for record in records if record["status"] != "completed"}
    repeated = sum(answered.values()) - len(answered)
    return {
        "exit_status": driver.returncode,
        "records_at_each_event": done,
        "instances": instances,
        "recorded": len(recorded),
        "recorded_more_than_once": sum(1 for times in recorded.values() if times > 1),
        "failed": failed,
        "engines_lost": len(lost),
        "in_flight_when_they_were_lost": in_flight,
        "answered_by_an_engine": len(answered),
        "answered_again": repeated,
        "wall_s": round(time.monotonic() - started, 1),
        "holds": driver.returncode == 1
        and list(failed) == ["fatal"]
        and len(done) == len(events)
        and set(recorded.values()) == {1}
        and len(recorded) == instances
        and set(answered) == set(recorded)
        and repeated <= in_flight,
        "log": log.read_text().splitlines()[-5:],
    }


def two_workers(home: Path, instances: int, latency: float, concurrency: int, rounds: int) -> dict[str, Any]:
    """Instances per second of one process and of two with a shard each (medians), with the same requests in flight
    per process. Measured from the first request to the last answer, without start-up."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in rates:
            with ApiServer(latency_s=latency, log_bodies=False) as server:
                folder = home / f"{workers}_{number}"
                folder.mkdir()
                extra = ["hydra/launcher=joblib", "shard.count=2", "shard.index=0,1"] if workers == 2 else ["-m"]
                process = _sweep(folder, server, instances, concurrency, extra)
                _, errors = process.communicate()
                if process.returncode:
                    raise SystemExit(errors)
                asked = server.log.asked()
            ends = [exchange.answered_at or 0.0 for exchange in asked]
            rates[workers].append(instances / (max(ends) - min(exchange.received_at for exchange in asked)))
    one, two = (sorted(found)[rounds // 2] for found in rates.values())
    ideal = concurrency / latency
    return {
        "one_worker_per_s": round(one, 2),
        "two_workers_per_s": round(two, 2),
        "ratio": round(two / one, 3),
        "of_the_ideal": [round(one / ideal, 3), round(two / (2 * ideal), 3)],
        "load": os.getloadavg()[0],
        "holds": two / one >= 1.8,
    }


def _sweep(home: Path, server: ApiServer, count: int, concurrency: int, extra: list[str]) -> subprocess.Popen[str]:
    data = write_instances(home / "instances.jsonl", count)
    return subprocess.Popen(
        [sys.executable, "-m", "swe_infer", "-m", "tracker=none", "model=gpt-4o", "dataset=jsonl",
         f"provider.base_url={server.openai_url}", f"dataset.path={data}", "decoding.max_new_tokens=256",
         f"provider.max_concurrency={concurrency}", f"runner.limits.start={concurrency}", *extra],
        cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _repeat(sweep: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert isinstance(sweep.args, list)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(sweep.args, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _merged(out: str) -> Counter[str]:
    """Count each instance in the predictions of the merged run, the last directory that the sweep prints."""
    path = Path(out.splitlines()[-1]) / "predictions.jsonl" if out else Path()
    if path.parent.name != "merged":
        return Counter()
    return Counter(json.loads(line)["instance_id"] for line in path.read_text().splitlines())


if __name__ == "__main__":
    sys.exit(main())
