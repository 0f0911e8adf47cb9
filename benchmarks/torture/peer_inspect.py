"""Inspect's side of ``benchmarks.torture peers``: run by the python of an environment that holds it, not by ours.

It imports nothing of this project. ``run`` is one evaluation by ``eval_set``, which is what Inspect's documentation
gives for work that is to survive a failure: the same call goes on with what the log directory holds. ``recorded``
prints the ids of the samples with an answer, over all logs, and how many logs cannot be read, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def run(url: str, data: str, logs: str, at_once: int) -> int:
    from inspect_ai import Task, eval_set
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.solver import generate

    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    samples = [Sample(id=row["instance_id"], input=row["text"]) for row in rows]
    config = GenerateConfig(max_connections=at_once, max_tokens=4096, temperature=0)
    model = get_model("openai/gpt-4o", base_url=url, api_key="sk-loopback", config=config, responses_api=False)
    task = Task(dataset=MemoryDataset(samples), solver=generate(), name="torture")
    done, _ = eval_set(task, log_dir=logs, model=model, display="none", retry_attempts=0)
    return 0 if done else 1


def recorded(logs: str) -> None:
    from inspect_ai.log import list_eval_logs, read_eval_log

    ids: set[str] = set()
    unreadable = 0
    for info in list_eval_logs(logs):
        try:
            log = read_eval_log(info)
        except Exception:  # noqa: BLE001 - whatever it is, the log cannot be read
            unreadable += 1
            continue
        ids |= {str(sample.id) for sample in log.samples or [] if sample.output.completion}
    print(json.dumps({"ids": sorted(ids), "unreadable": unreadable}))


if __name__ == "__main__":
    if sys.argv[1] == "recorded":
        recorded(sys.argv[2])
    else:
        sys.exit(run(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
