"""Makes a dataset of tasks with tests, one JSON object a line, columns as in SWE-bench's datasets and a few more.

python -m benchmarks.sample_tasks.dataset --split test --count 40 > swe_infer/sample/instances.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from math import ceil
from typing import Any

from benchmarks.sample_tasks.cases import write_test
from benchmarks.sample_tasks.generator import Task, generate
from benchmarks.sample_tasks.templates import SPLITS, Split, families


def rows(split: Split, count: int, start: int = 0) -> Iterator[dict[str, Any]]:
    """The first ``count`` tasks of a split, from number ``start`` on, that keep the set varied.

    A task whose fault no call of the function shows is left out, and so is one whose kind of fault or whose function
    has had its share already: an even share and half of that again.
    """
    kinds: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    known = families(split)
    most_of_function = ceil(1.5 * count / len(known))
    most_of_kind = ceil(1.5 * count / len({bug.kind for family in known for bug in family.bugs()}))
    for task in generate(split, start):
        if sum(kinds.values()) == count:
            return
        if kinds[task.kind] >= most_of_kind or functions[task.family.name] >= most_of_function:
            continue
        test = write_test(task)
        if test is None:
            continue
        kinds[task.kind] += 1
        functions[task.family.name] += 1
        yield row_of(task, test)


def row_of(task: Task, test: str) -> dict[str, Any]:
    """The columns of one task. ``files`` holds the repository before the fix, ``{path: content}``."""
    return {
        "instance_id": task.instance_id,
        "repo": task.repo,
        "problem_statement": task.problem_statement,
        "text": task.text,
        "patch": task.patch,
        "test": test,
        "files": {task.path: task.broken},
        "kind": task.kind,
        "function": task.family.name,
    }


def main() -> None:
    """Write a dataset to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sample_tasks.dataset", description="Make repair tasks."
    )
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--start", type=int, default=0, help="number of the first task")
    arguments = parser.parse_args()
    for row in rows(arguments.split, arguments.count, arguments.start):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
