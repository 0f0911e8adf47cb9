"""The data of the comparison page: figures, an index of the instances, and the details of one instance.

Figures that the page shows as text are formatted here, by the functions that format the command's tables. The page's
script only places them.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from swe_infer.compare.analysis import Comparison, Figures, Rate, differ, solved
from swe_infer.compare.export import as_json
from swe_infer.compare.levels import levels_of, repository_of
from swe_infer.compare.loading import LoadedRun, Result, Texts, read_texts, total_cost
from swe_infer.compare.pairs import cost_by_instance
from swe_infer.compare.prompts import PromptSource
from swe_infer.compare.statistics import Interval
from swe_infer.compare.summary import short_label, summary_of
from swe_infer.compare.table import METRIC_NAMES, mark, page_tables, points_interval, rate_text, share_text
from swe_infer.patches.diff import PatchError, parse_as_git
from swe_infer.run_directory.harness_logs import HarnessLogs
from swe_infer.run_directory.records import Key
from swe_infer.run_directory.verdicts import Verdict, read_verdicts
from swe_infer.text import clean, dollars, duration, percent, shown
from swe_infer.tracking.download import PREFIX
from swe_infer.tracking.state import read_state

_WANDB_API = "https://api.wandb.ai"
_LONGEST_FILE = 400_000
"""Characters of a file of a repository that the page shows."""


def page_data(comparison: Comparison) -> dict[str, Any]:
    """All that the page shows before an instance is opened, as JSON values."""
    return {"figures": _figures(comparison), "index": _index(comparison)}


# ---- figures


def _figures(comparison: Comparison) -> dict[str, Any]:
    """:func:`swe_infer.compare.export.as_json` without the instances, with texts, tables and series for charts."""
    data = as_json(comparison)
    del data["instances"]
    count = len(comparison.runs)
    tables = {name: asdict(table) for name, table in page_tables(comparison).items()}
    return {
        **data,
        "title": f"Comparison of {count} runs" if count != 1 else "One run",
        "summary": summary_of(comparison),
        "metric_name": METRIC_NAMES[comparison.metric],
        "tables": tables,
        "points": [_point(one, comparison) for one in comparison.runs],
        "swept": _swept(comparison),
        "curves": [_curve(one) for one in comparison.runs],
        "repositories": _repositories(comparison),
    }


def _point(one: Figures, comparison: Comparison) -> dict[str, Any]:
    """A run in the charts of rates, costs and swept keys."""
    rates = {"resolved": one.resolved, "applies": one.applies}
    return {
        "letter": one.letter,
        "label": short_label(one),
        "name": clean(one.run.name),
        "address": _wandb_url(one.run),
        "rates": {name: _rate(rate) for name, rate in rates.items() if rate is not None},
        "per_instance": _per_instance(one),
    }


def _rate(rate: Rate) -> dict[str, Any] | None:
    if rate.value is None:
        return None
    return {"value": rate.value, **_ends(rate.interval), "text": rate_text(rate)}


def _ends(interval: Interval | None) -> dict[str, float | None]:
    return {"low": None, "high": None} if interval is None else {"low": interval.low, "high": interval.high}


def _per_instance(one: Figures) -> dict[str, dict[str, Any]]:
    """Cost, time and output tokens for each instance, as far as they are known."""
    if not one.recorded:
        return {}
    found: dict[str, dict[str, Any]] = {}
    if one.cost_usd is not None:
        each = one.cost_usd / one.recorded
        found["cost"] = {"value": float(each), "text": dollars(each)}
    if one.wall_s is not None:
        found["time"] = {"value": one.wall_s / one.recorded, "text": duration(one.wall_s / one.recorded)}
    tokens = one.usage.output_tokens / one.recorded
    found["tokens"] = {"value": tokens, "text": f"{tokens:,.0f}"}
    return found


def _swept(comparison: Comparison) -> list[dict[str, Any]]:
    """The deciding keys that differ, with their values by run. Those with numbers can be an axis."""
    found = []
    for key in comparison.deciding:
        values = [one.differs.get(key) for one in comparison.runs]
        numbers = [value for value in values if _is_number(value)]
        found.append(
            {
                "key": key,
                "numeric": len(set(numbers)) > 1 and all(value is None or _is_number(value) for value in values),
                "values": [value if _is_number(value) else None for value in values],
                "texts": [shown(value) for value in values],
            }
        )
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curve(one: Figures) -> list[dict[str, Any]]:
    """pass@k by k."""
    points = []
    for k, value, _ in one.pass_at:
        interval = one.pass_at_intervals.get(k)
        text = percent(value) + ("" if interval is None else f" {points_interval(interval)}")
        points.append({"k": k, "value": value, **_ends(interval), "text": text})
    return points


def _repositories(comparison: Comparison) -> dict[str, Any] | None:
    """The rates by repository, the largest first; None with a single repository."""
    runs = [one.run for one in comparison.runs]
    levels = levels_of("repository", runs, lambda result: solved(result, comparison.metric))
    if len(levels) < 2:
        return None
    rows = []
    for level in levels:
        cells: list[dict[str, Any] | None] = []
        for rate in level.rates:
            if rate is None:
                cells.append(None)
                continue
            value = rate.successes / rate.samples
            text = share_text(rate.successes, rate.samples, value, rate.interval)
            cells.append({"value": value, **_ends(rate.interval), "text": text})
        instances = max(rate.instances for rate in level.rates if rate is not None)
        rows.append({"name": clean(level.name), "instances": instances, "rates": cells})
    return {"title": f"By repository: {METRIC_NAMES[comparison.metric]}, of the samples with a record", "rows": rows}


def _wandb_url(run: LoadedRun) -> str | None:
    """The page of a run on W&B; None if the run is not known to be there."""
    parts: list[Any]
    if run.address is not None:
        parts = [*run.address.removeprefix(PREFIX).split("/")]
    else:
        state = read_state(run.directory)
        options = {} if state is None else state.values.get("options")
        if state is None or not isinstance(options, Mapping) or options.get("mode") in ("offline", "disabled"):
            return None
        parts = [options.get("entity"), options.get("project"), state.values.get("run_id")]
    if len(parts) != 3 or not all(isinstance(part, str) and part for part in parts):
        return None
    entity, project, run_id = (quote(part, safe="") for part in parts)
    server = os.environ.get("WANDB_BASE_URL", "").rstrip("/")
    if not server.startswith(("https://", "http://")) or server == _WANDB_API:
        server = "https://wandb.ai"
    return f"{server}/{entity}/{project}/runs/{run_id}"


# ---- the index of instances

_PROBLEMS: Mapping[str, Callable[[Result, LoadedRun], bool]] = {
    "failed": lambda result, _: result.status == "failed",
    "skipped": lambda result, _: result.status == "skipped",
    "no patch": lambda result, _: result.status == "completed" and result.patch_status == "none",
    "patch does not apply": lambda result, _: result.patch_status == "does_not_apply",
    "patch was repaired": lambda result, _: result.patch_status == "repaired",
    "patch is unchecked": lambda result, _: result.patch_status == "unchecked",
    "applies, tests fail": lambda result, _: result.applies and result.resolved is False,
    "no verdict": lambda result, run: run.evaluated and result.status == "completed" and result.resolved is None,
    "cut off at the token limit": lambda result, _: result.finish_reason == "length",
    "stopped for repetition": lambda result, _: result.finish_reason == "repetition",
    "refused": lambda result, _: result.finish_reason == "refusal",
    "infrastructure failure": lambda result, _: result.infrastructure_failure,
    "answered a further turn": lambda result, _: result.turn > 0,
}
"""What instances can be filtered by, in the order of the menu. At most 31: the page uses 32-bit sets."""


def _index(comparison: Comparison) -> dict[str, Any]:
    """The instances as columns, in the order of the page.

    ``scores`` and ``problems`` have a row for each run. A score is the number of its mark; in a problem set, bit k is
    the problem k.
    """
    names = list(comparison.scores)
    numbers = {name: number for number, name in enumerate(names)}
    repositories = [repository_of(name) for name in names]
    known = sorted(set(repositories))
    place = {name: number for number, name in enumerate(known)}
    values = sorted({value for row in comparison.scores.values() for value in row if value is not None})
    number_of: dict[float | None, int] = {None: -1} | {value: number for number, value in enumerate(values)}
    rows = [comparison.scores[name] for name in names]
    sets = []
    for one in comparison.runs:
        own = [0] * len(names)
        for result in one.run.results.values():
            own[numbers[result.instance_id]] |= _problem_set(result, one.run)
        sets.append(own)
    present = 0
    for own in sets:
        for found in own:
            present |= found
    costs, latencies = _costs_and_latencies(comparison, names)
    return {
        "names": names,
        "repositories": [clean(name) for name in known],
        "repository": [place[name] for name in repositories],
        "marks": [{"value": value, "text": mark(value)} for value in values],
        "scores": [[number_of[row[run]] for row in rows] for run in range(len(comparison.runs))],
        "differ": [int(differ(row)) for row in rows],
        "problem_names": list(_PROBLEMS),
        "problems_present": present,
        "problems": sets,
        "costs": costs,
        "latencies": latencies,
    }


def _problem_set(result: Result, run: LoadedRun) -> int:
    return sum(1 << bit for bit, holds in enumerate(_PROBLEMS.values()) if holds(result, run))


def _costs_and_latencies(comparison: Comparison, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of each instance, the dollars of all runs and the median latency of the completed samples."""
    by_run = [cost_by_instance(one.run) for one in comparison.runs]
    seconds: dict[str, list[float]] = {}
    for one in comparison.runs:
        for result in one.run.results.values():
            if result.status == "completed":
                seconds.setdefault(result.instance_id, []).append(result.latency_s)
    costs = [total_cost(costs[name] for costs in by_run if name in costs) for name in names]
    medians = [statistics.median(found) if (found := seconds.get(name)) else None for name in names]
    return (
        {"values": [cost if cost is None else float(cost) for cost in costs], "texts": [dollars(c) for c in costs]},
        {"values": medians, "texts": [duration(median) for median in medians]},
    )


# ---- one instance


class InstanceDetails:
    """The details of instances: prompt, samples, turns, patches, verdicts. It is not thread-safe.

    Args:
        prompts: open the datasets of the runs, without network access, for prompts, gold patches and files; or a
            source of them, which the caller closes.

    Attributes:
        notes: why the prompts of a dataset are missing.
    """

    def __init__(self, comparison: Comparison, *, prompts: bool | PromptSource = True) -> None:
        self._comparison = comparison
        self._runs = [one.run for one in comparison.runs]
        self._samples = [run.instances() for run in self._runs]
        self._open = ExitStack()
        self._source = (
            prompts
            if isinstance(prompts, PromptSource)
            else self._open.enter_context(PromptSource(self._runs if prompts else []))
        )
        self._verdicts = [_verdicts(run) for run in self._runs]
        self._addresses = [_wandb_url(run) for run in self._runs]
        self._logs = [HarnessLogs(run.directory) for run in self._runs]
        self._texts: list[dict[Key, Texts]] | None = None

    @property
    def notes(self) -> list[str]:
        return self._source.notes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def load(self, full: Callable[[str], bool]) -> None:
        """Reads the patches of all instances at once, with the answers of those that ``full`` names."""
        self._texts = [read_texts(run, answers=full) for run in self._runs]

    def of(self, instance_id: str, *, full: bool = True) -> dict[str, Any] | None:
        """The details of an instance as JSON values; None if no run has it.

        Args:
            full: with prompt, answers, reasoning and files.

        Raises:
            ConfigError: the records of a run cannot be read.
        """
        if instance_id not in self._comparison.scores:
            return None
        texts = self._texts or [read_texts(run, instance_id) for run in self._runs]
        gold = self._source.gold(instance_id)
        patches: dict[str, int] = {gold: 0} if gold else {}
        runs = []
        for number, run in enumerate(self._runs):
            samples = []
            for result in self._samples[number].get(instance_id, ()):
                found = texts[number].get((instance_id, result.sample)) or Texts("", "")
                patch = patches.setdefault(found.patch, len(patches)) if found.patch else None
                samples.append({**self._sample(number, run, result, found), "patch": patch})
            runs.append(samples)
        details = {
            "id": instance_id,
            "gold": 0 if gold else None,
            "runs": runs,
            "patches": list(patches),
        }
        return details | self.full_part(instance_id) if full else details

    def full_part(self, instance_id: str) -> dict[str, Any]:
        """What ``of(…, full=True)`` has in addition: ``prompt``, ``files``, ``turns`` and ``outputs`` of tests."""
        texts = self._texts or [read_texts(run, instance_id) for run in self._runs]
        task = self._source[instance_id]
        turns, outputs, patches = [], [], []
        for number in range(len(self._runs)):
            own, tested = [], []
            for result in self._samples[number].get(instance_id, ()):
                found = texts[number].get((instance_id, result.sample)) or Texts("", "")
                last = len(found.turns) - 1
                patches.append(found.patch)
                output = self._logs[number].test_output(instance_id, result.sample, found.patch)
                tested.append(output and clean(output))
                own.append(
                    [
                        {
                            "feedback": turn.feedback,
                            "reasoning": turn.reasoning,
                            "answer": turn.answer,
                            "patch": turn.patch if index < last else None,
                        }
                        for index, turn in enumerate(found.turns)
                    ]
                )
            turns.append(own)
            outputs.append(tested)
        prompt = None if task is None else task.prompt
        return {
            "prompt": None if prompt is None else list(_prompt_parts(prompt)),
            "files": {} if task is None else _changed_files(task.files, [task.gold or "", *patches]),
            "turns": turns,
            "outputs": outputs,
        }

    def _sample(self, number: int, run: LoadedRun, result: Result, texts: Texts) -> dict[str, Any]:
        verdict = self._verdicts[number].get((result.instance_id, result.sample, result.turn))
        return {
            "sample": result.sample,
            "solved": solved(result, self._comparison.metric),
            "outcome": _outcome(result),
            "facts": _facts(result),
            "verdict": _verdict_text(result, verdict, evaluated=run.evaluated),
            "notes": [clean(note) for note in texts.notes],
            "wandb": self._addresses[number],
        }


def _verdicts(run: LoadedRun) -> dict[tuple[str, int, int], Verdict]:
    return {(*verdict.key, verdict.turn): verdict for verdict in read_verdicts(run.directory)}


def _outcome(result: Result) -> str:
    """The outcome of a sample in a few words."""
    if result.status != "completed":
        return f"{result.status}: {result.error}" if result.error else result.status
    if result.resolved is not None:
        return "resolved" if result.resolved else f"not resolved, {_PATCH[result.patch_status or 'none']}"
    return _PATCH.get(result.patch_status or "none", str(result.patch_status))


_PATCH = {
    "applies": "patch applies",
    "repaired": "repaired patch applies",
    "does_not_apply": "patch does not apply",
    "unchecked": "patch is unchecked",
    "none": "no patch",
}


def _facts(result: Result) -> list[tuple[str, str]]:
    usage = result.usage
    facts = [
        ("cost", dollars(result.cost_usd)),
        ("latency", duration(result.latency_s)),
        ("tokens in", f"{usage.input_tokens:,}"),
        ("cached", f"{usage.cached_input_tokens:,}"),
        ("tokens out", f"{usage.output_tokens:,}"),
        ("reasoning", f"{usage.reasoning_tokens:,}"),
        ("finish", result.finish_reason or "-"),
    ]
    if result.attempts > 1:
        facts.append(("attempts", f"{result.attempts:,}"))
    return facts


def _verdict_text(result: Result, verdict: Verdict | None, *, evaluated: bool) -> str | None:
    """The verdict of the tests with their output; None if the run was not evaluated."""
    if not evaluated:
        return None
    if result.resolved is None:
        return "no verdict"
    text = "resolved" if result.resolved else "not resolved"
    if verdict is None:
        return text
    judged = _JUDGED.get(verdict.judged or "", "")
    source = f" ({verdict.source}{judged})" if verdict.source else ""
    return clean(f"{text}{source}" + (f"\n{verdict.reason}" if verdict.reason else ""))


_JUDGED = {
    "outside": ", judged outside the process of the patched code",
    "beside": ", judged in the process of the patched code",
}

_MARKER = re.compile(r"^\[(start|end) of ([^\r\n]+)\]\r?$\n?", re.MULTILINE)


def _prompt_parts(prompt: str) -> Iterator[dict[str, Any]]:
    """The parts of a prompt in order: its files, each with its path, and the text between them."""
    done = 0
    path, start = None, 0
    for match in _MARKER.finditer(prompt):
        if match[1] == "start" and path is None:
            path, start = match[2], match.start()
        elif match[1] == "end" and match[2] == path:
            if text := prompt[done:start]:
                yield {"path": None, "text": text}
            yield {"path": path, "text": prompt[start : match.end()]}
            path, done = None, match.end()
    if rest := prompt[done:]:
        yield {"path": None, "text": rest}


def _changed_files(files: Mapping[str, str], patches: Sequence[str]) -> dict[str, str]:
    """Those files that a patch changes, as far as they are known."""
    paths: set[str] = set()
    for patch in dict.fromkeys(patches):
        try:
            paths |= {found.old_path for found in parse_as_git(patch) if found.old_path}
        except PatchError:
            continue
    return {path: files[path] for path in sorted(paths) if path in files and len(files[path]) <= _LONGEST_FILE}
