"""Measures the comparison page in headless Chromium: size, time to open, to filter and to show an instance.

    python -m benchmarks.page --runs 5 --instances 2294 --samples 3

The runs are made up. Their patches are diffs of files of Python's standard library, so that they compress like those
of models: the samples of an instance change the same places of the same file.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import load_runs
from swe_infer.compare.report import write_report
from tests.compare.runs import Entry, answer, write_run
from tests.support.browser import Browser

REPOSITORIES = (
    "django__django",
    "sympy__sympy",
    "scikit-learn__scikit-learn",
    "sphinx-doc__sphinx",
    "psf__requests",
    "matplotlib__matplotlib",
    "pytest-dev__pytest",
    "astropy__astropy",
    "pydata__xarray",
    "pylint-dev__pylint",
)
FILTERS = (
    ("search", "1", "input"),
    ("search", "12", "input"),
    ("search", "", "input"),
    ("show", "differ", "change"),
    ("show", "none", "change"),
    ("show", "every", "change"),
    ("show", "all", "change"),
    ("problem", "3", "change"),
    ("problem", "", "change"),
    ("repository", "3", "change"),
    ("repository", "", "change"),
    ("solved-by", "A", "change"),
    ("not-by", "B", "change"),
)
"""Controls of the list, their new values, and the events that these cause."""


@functools.cache
def sources() -> list[tuple[str, list[str]]]:
    """Files of the standard library with 100 to 2,000 lines."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if 100 <= len(lines) <= 2000:
            found.append((path.name, lines))
    return found


def patch_of(name: str, lines: list[str], spots: list[int], writer: random.Random) -> str:
    """A patch of one to three hunks of a file. It replaces a line and adds up to eight, which are taken from the file
    and changed."""
    after = list(lines)
    for spot in sorted(spots[: writer.randint(1, 3)], reverse=True):
        start = writer.randrange(len(lines) - 8)
        added = lines[start : start + writer.randint(1, 8)]
        after[spot : spot + 1] = [line.replace("self", f"self_{writer.randrange(1000)}") for line in added]
    diff = difflib.unified_diff(lines, after, f"a/Lib/{name}", f"b/Lib/{name}", lineterm="")
    return f"diff --git a/Lib/{name} b/Lib/{name}\n" + "\n".join(diff) + "\n"


VARIANTS = 15
"""Different patches of an instance. With more runs and samples, some have the same."""


@functools.cache
def variant(number: int, kind: int) -> tuple[str, str]:
    """The file and one patch of an instance."""
    files = sources()
    places = random.Random(number)
    name, lines = files[places.randrange(len(files))]
    spots = [places.randrange(len(lines)) for _ in range(3)]
    return name, patch_of(name, lines, spots, random.Random(f"{number} {kind}"))


def entries(run: int, instances: int, samples: int) -> Iterator[Entry]:
    for number in range(instances):
        instance_id = f"{REPOSITORIES[number % len(REPOSITORIES)]}-{10_000 + number}"
        for sample in range(samples):
            writer = random.Random(f"{run} {number} {sample}")
            name, patch = variant(number, (run * samples + sample) % VARIANTS)
            status = writer.choices(["applies", "does_not_apply", "none", "repaired"], [70, 10, 10, 10])[0]
            if status == "none":
                patch = ""
            text = f"I looked at {name}.\n" + "I read the file and the issue.\n" * 40 + f"<patch>\n{patch}</patch>"
            yield answer(
                instance_id,
                status,  # type: ignore[arg-type]
                sample=sample,
                cost=f"0.{writer.randrange(1000, 99999):05}",
                text=text,
                patch=patch,
                latency_s=writer.uniform(2, 90),
            )


def page_of(folder: Path, runs: int, instances: int, samples: int) -> tuple[Path, float]:
    """Writes made-up runs and their page. Returns it, and the seconds that it took to write."""
    directories = []
    for run in range(runs):
        rows = list(entries(run, instances, samples))
        solved = {row[0] for row in rows if random.Random(f"{row[0]} {run}").random() < 0.2 + 0.5 * run / runs}
        config = {"model": {"name": f"model-{run}"}, "decoding": {"temperature": run / 10}}
        directories.append(write_run(folder / f"run-{run}", rows, config, resolved=solved))
    comparison = compare(load_runs([str(directory) for directory in directories]), resamples=1000)
    page = folder / "page.html"
    start = time.perf_counter()
    write_report(comparison, page)
    return page, time.perf_counter() - start


AFTER_NEXT_FRAME = "new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))"


def timed(browser: Browser, action: str, done: str = "true") -> float:
    """Milliseconds from an action until its result is laid out and painted."""
    return float(
        browser.evaluate(
            f"""(async () => {{
              const start = performance.now();
              {action};
              while (!({done})) await new Promise((resolve) => setTimeout(resolve, 1));
              await {AFTER_NEXT_FRAME};
              return performance.now() - start;
            }})()"""
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--instances", type=int, default=2294)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile") as browser:
        page, seconds = page_of(Path(folder), options.runs, options.instances, options.samples)
        if options.keep is not None:
            options.keep.write_bytes(page.read_bytes())
        found = {"megabytes": page.stat().st_size / 1e6, "seconds to write": seconds}
        opened = []
        for _ in range(3):
            browser.send("Page.navigate", url="about:blank")
            start = time.perf_counter()
            browser.open(page.as_uri())
            browser.wait("document.querySelector('#instances-table table')")
            browser.evaluate(AFTER_NEXT_FRAME)
            opened.append(time.perf_counter() - start)
        found["seconds to open"] = statistics.median(opened)
        browser.evaluate("document.getElementById('instances').scrollIntoView()")
        filters = [
            timed(
                browser,
                f"(() => {{ const control = document.getElementById('{control}'); control.value = '{value}'; "
                f"control.dispatchEvent(new Event('{event}')); }})()",
            )
            for control, value, event in FILTERS
        ]
        filters += [timed(browser, f"document.getElementById('sort-{key}').click()") for key in ("A", "cost", "name")]
        found |= {"median ms of a filter": statistics.median(filters), "slowest ms of a filter": max(filters)}
        browser.evaluate("document.getElementById('reset')?.click()")
        instances = []
        for number in range(0, options.instances, max(1, options.instances // 20)):
            name = f"{REPOSITORIES[number % len(REPOSITORIES)]}-{10_000 + number}"
            action = f"window.location.hash = '#{name}'"
            shown = (
                "document.getElementById('view').open && "
                f"document.getElementById('view-title').textContent === '{name}'"
            )
            instances.append(timed(browser, action, shown))
        found |= {
            "median ms to show an instance": statistics.median(instances),
            "slowest ms to show an instance": max(instances),
        }
        if browser.problems:
            print(json.dumps(browser.problems), file=sys.stderr)
            return 1
    print(f"{options.runs} runs x {options.instances:,} instances x {options.samples} samples")
    for name, value in found.items():
        print(f"  {name:32} {value:8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
