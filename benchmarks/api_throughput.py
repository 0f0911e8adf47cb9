"""The API chain against a bare ``AsyncOpenAI`` gather and against peers, over the same prompts and loopback server.

    python -m benchmarks.api_throughput                                     # a small default: 200 prompts
    python -m benchmarks.api_throughput --prompts oracle.jsonl --count 1000 --repeat 5
    python -m benchmarks.api_throughput --peer inspect=in/bin/python litellm=li/bin/python   # see api_peers.py

Each side runs in a process of its own against a fresh server process, in turns. ``bare`` is the SDK with its default
transport, ``same`` the SDK with the transport of ``ours``. ``ours`` is the whole command with its store (fsync),
budget, response cache and offline W&B; ``chain`` is the runner alone, with budget and cache. Wall time counts from
the first request's arrival at the server to the last answer's end, so that start-up does not blur it; start-up is
shown apart. Like the SDK, ``ours`` and ``chain`` start with all requests at once: ``runner.limits.start``. By default
they start with 8 and reach 128 after 0.85 s, by which a run is longer. CPU and memory are those of the process and of
what it started. A request's CPU is the difference to runs over a single prompt, which are shown beside it, since they
are a matter of imports.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIDES = ("bare", "same", "chain", "ours")
PEERS = {"inspect": "inspect_ai", "litellm": "litellm"}
"""Names of the peers and of the packages that they are."""
OUTPUT_TOKENS = 64
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="JSON lines with a `text` column; default: made-up prompts")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument(
        "--peer", nargs="+", type=_peer_of, default=[], metavar="NAME=PYTHON", help="inspect, litellm: its python"
    )
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options)
        return
    _adopt_orphans()
    options.pythons = {peer: python for peer, python in options.peer if _is_there(peer, python)}
    sides = [*options.sides, *options.pythons]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        prompts = scratch / "prompts.jsonl"
        _write_prompts(options.prompts, options.count, prompts)
        single = scratch / "single.jsonl"
        single.write_text(prompts.open().readline())
        empty: dict[str, list[float]] = {side: [] for side in sides}
        results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for turn in range(options.repeat):
            for side in sides:
                empty[side].append(_measure(side, options, single, 1, scratch / f"{side}{turn}-empty")["cpu_s"])
                result = _measure(side, options, prompts, options.count, scratch / f"{side}{turn}")
                results[side].append(result)
                print(f"{side:7} {json.dumps(result)}", file=sys.stderr, flush=True)
    ideal = -(-options.count // options.concurrency) * options.latency
    print(
        f"{options.count} prompts, {options.concurrency} at a time, {options.latency:g} s each: ideal {ideal:.1f} s"
    )
    medians = {s: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for s, rs in results.items()}
    begin = {side: statistics.median(seconds) for side, seconds in empty.items()}
    each = {s: 1000 * (medians[s]["cpu_s"] - begin[s]) / max(1, options.count - 1) for s in sides}
    for side, figures in medians.items():
        ratio = figures["wall_s"] / medians["bare"]["wall_s"] if "bare" in medians else float("nan")
        share = each[side] / each["same"] if "same" in each else float("nan")
        print(
            f"{side:7} wall {figures['wall_s']:6.2f} s ({ratio:.3f} of bare)  "
            f"({figures['wall_s'] / ideal:.3f} of the ideal)  "
            f"CPU {each[side]:5.2f} ms each ({share:.2f} of same) and {begin[side]:.2f} s to begin with  "
            f"start-up {figures['startup_s']:.2f} s  in all {figures['total_s']:.2f} s  "
            f"memory {figures['memory_mb']:.0f} MB"
        )


def _peer_of(text: str) -> tuple[str, str]:
    """``NAME=PYTHON``."""
    peer, _, python = text.partition("=")
    if peer not in PEERS:
        raise argparse.ArgumentTypeError(f"{peer!r} is none of {', '.join(PEERS)}")
    return peer, python or sys.executable


def _is_there(peer: str, python: str) -> bool:
    try:
        found = subprocess.run([python, "-c", f"import {PEERS[peer]}"], capture_output=True).returncode == 0
    except OSError:
        found = False
    if not found:
        print(f"{peer} is left out: {python} cannot import {PEERS[peer]}", file=sys.stderr)
    return found


def _measure(side: str, options: argparse.Namespace, prompts: Path, count: int, scratch: Path) -> dict[str, float]:
    scratch.mkdir()
    log = scratch / "server.jsonl"
    with running_server(str(options.latency), log, "--no-bodies") as url:
        command = [sys.executable, "-m", "benchmarks.api_throughput", "--child", side, "--url", url]
        command += ["--concurrency", str(options.concurrency), "--prompts", str(prompts), "--scratch", str(scratch)]
        environment = {**os.environ, "OPENAI_API_KEY": "sk-loopback", "WANDB_MODE": "offline"}
        if side == "ours":
            command = _ours(url, options.concurrency, prompts, scratch)
        elif side in PEERS:
            command = _peer(side, options.pythons[side], url, options.concurrency, prompts)
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
        before = _children()
        started = time.time()
        with (scratch / "errors.txt").open("w") as errors:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
            _, status, used = os.wait4(process.pid, 0)
        ended = time.time()
        process.returncode = os.waitstatus_to_exitcode(status)
        used_by = [used]
        while orphans := _children() - before:
            used_by += [os.wait4(child, 0)[2] for child in orphans]
    if process.returncode:
        raise SystemExit(f"{side} failed with {process.returncode}:\n{(scratch / 'errors.txt').read_text()[-3000:]}")
    arrivals, answers = _times(log)
    if len(answers) != count:
        raise SystemExit(f"{side}: {len(answers)} answers instead of {count}")
    return {
        "wall_s": round(max(answers) - min(arrivals), 3),
        "cpu_s": round(sum(each.ru_utime + each.ru_stime for each in used_by), 3),
        "startup_s": round(min(arrivals) - started, 3),
        "total_s": round(ended - started, 3),
        "memory_mb": round(used.ru_maxrss / 1024, 1),
    }


def _children() -> set[int]:
    """The child processes of this one."""
    return {int(child) for child in Path("/proc/thread-self/children").read_text().split()}


def _adopt_orphans() -> None:
    """Makes this process the parent of W&B's processes, which may outlive the run: their time is counted, too."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise SystemExit("prctl(PR_SET_CHILD_SUBREAPER) failed")


def _ours(url: str, concurrency: int, prompts: Path, scratch: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "swe_infer", "model=gpt-4o", "provider=openai", f"provider.base_url={url}"),
        *("dataset=jsonl", f"dataset.path={prompts}", f"provider.max_concurrency={concurrency}"),
        *(f"decoding.max_new_tokens={OUTPUT_TOKENS}", "budget.max_usd=1000", "tracker.mode=offline"),
        f"runner.limits.start={concurrency}",
        *(f"output_dir={scratch / 'run'}", f"runner.response_cache={scratch / 'cache'}"),
    ]


def _peer(peer: str, python: str, url: str, concurrency: int, prompts: Path) -> list[str]:
    script = Path(__file__).with_name("api_peers.py")
    return [
        *(python, str(script), peer, "--url", url, "--prompts", str(prompts)),
        *("--concurrency", str(concurrency), "--max-tokens", str(OUTPUT_TOKENS)),
    ]


def _child(options: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in options.prompts.open()]
    if options.child in ("bare", "same"):
        _bare(rows, options.url, options.concurrency, own_transport=options.child == "same")
    else:
        _chain(rows, options.url, options.concurrency, options.scratch)


def _bare(rows: list[dict[str, str]], url: str, concurrency: int, *, own_transport: bool) -> None:
    """A semaphore and ``gather`` over the SDK; nothing is kept."""
    import asyncio

    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async def run() -> None:
        slots = asyncio.Semaphore(concurrency)
        http = None
        if own_transport:
            from swe_infer.providers.transport import http_transport

            http = DefaultAsyncHttpxClient(transport=http_transport(concurrency, 60.0), trust_env=False)
        async with AsyncOpenAI(base_url=url, http_client=http) as client:

            async def one(text: str) -> str | None:
                async with slots:
                    answer = await client.chat.completions.create(
                        model="gpt-4o",
                        messages=[{"role": "user", "content": text}],
                        max_completion_tokens=OUTPUT_TOKENS,
                        temperature=0,
                    )
                content: str | None = answer.choices[0].message.content
                return content

            answers = await asyncio.gather(*(one(row["text"]) for row in rows))
        assert all(answers)

    asyncio.run(run())


def _chain(rows: list[dict[str, str]], url: str, concurrency: int, scratch: Path) -> None:
    """The runner alone: everything but data, store, patches and tracker."""
    import threading
    from decimal import Decimal

    from swe_infer.api.limits import Limits
    from swe_infer.prompt_format import split_prompt
    from swe_infer.providers.openai_chat import OpenAIChat
    from swe_infer.runners.api import ApiRunner
    from swe_infer.types import ApiModel, Budget, Completion, Decoding, Outcome, Request

    decoding = Decoding(max_new_tokens=OUTPUT_TOKENS)
    provider = OpenAIChat(base_url=url, max_concurrency=concurrency)
    budget = Budget(max_usd=Decimal(1000))
    runner = ApiRunner(
        model=ApiModel(name="gpt-4o"),
        provider=provider,
        decoding=decoding,
        budget=budget,
        limits=Limits(start=concurrency),
        response_cache=str(scratch / "cache"),
    )
    done = 0

    def on_outcome(request: Request, outcome: Outcome) -> None:
        nonlocal done
        assert isinstance(outcome, Completion), outcome
        done += 1

    requests = (Request(row["instance_id"], 0, split_prompt(row["text"]), decoding) for row in rows)
    runner.generate(requests, on_outcome, threading.Event())
    assert done == len(rows)


def _write_prompts(source: Path | None, count: int, target: Path) -> None:
    """``count`` different prompts of 4,000 to 60,000 characters, cut from real ones where there are any."""
    chance = random.Random(0)
    if source is not None:
        texts = [json.loads(line)["text"] for line in source.open()]
    else:
        lines = [f"{n} value_{n} = compute(value_{n - 1}, {n})" for n in range(1, 3000)]
        texts = ["Fix the issue.\n[start of a.py]\n" + "\n".join(lines) + "\n[end of a.py]"]
    with target.open("w") as out:
        for n in range(count):
            text = chance.choice(texts)
            text = text[: chance.randint(4_000, 60_000)]
            if source is None:
                text = f"{text.rsplit(chr(10), 1)[0]}\n[end of a.py]\n"
            row = {"instance_id": f"instance-{n}", "text": f"Solve this issue.\nNumber {n}.\n{text}"}
            out.write(json.dumps(row) + "\n")


@contextmanager
def running_server(latency: str, log: Path, *options: str) -> Iterator[str]:
    """The loopback server in a process of its own; its address, as OpenAI's SDK takes it."""
    command = [sys.executable, "-m", "tests.support.api_server", "--port", "0", "--latency", latency]
    command += ["--log", str(log), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


def _times(log: Path) -> tuple[list[float], list[float]]:
    """(arrivals, ends of answers) of the requests for answers, in seconds since the epoch."""
    arrivals, answers = [], []
    for line in log.open():
        entry = json.loads(line)
        if entry["event"] == "request":
            arrivals.append(entry["received_at"])
        elif entry.get("usable"):
            answers.append(entry["answered_at"])
    return arrivals, answers


if __name__ == "__main__":
    main()
