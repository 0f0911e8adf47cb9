"""The official harness, the package ``swebench``, in its own process. It runs each instance in a container.

All formats of its reports are supported:

* ``{"resolved_ids": […], "unresolved_ids": […], "error_ids": […], "empty_patch_ids": […], …}``: schema versions 1 and
  2, of the package ``swebench`` since 2.0 and of ``sb-cli``.
* ``{"resolved": […], "generated": […], "applied": […], …}``: before that.
* ``{INSTANCE_ID: {"resolved": true, …}, …}``: the ``report.json`` of one instance, or of several, merged.
* ``{"ids_resolved": […], "ids_unresolved": […]}`` of SWE-smith, ``{"success_ids": […], "failure_ids": […], …}`` of
  SWE-bench-Live, ``{"resolved": […], "not_resolved": […], …}`` of SWE-PolyBench, and schema 1 with the ids of
  Multi-SWE-bench, ``ORG/REPO:pr-NUMBER``.
* ``{INSTANCE_ID: true, …}``, and JSON lines ``{"instance_id": …, "resolved": true, "sample": 0, "reason": …}``, of
  which the last two keys are optional: for other programs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.evaluate.evaluable import EvaluableRun, EvaluationError, evaluation_folder
from swe_infer.evaluate.process import run_process
from swe_infer.files import read_regular
from swe_infer.harnesses import BENCHMARKS, benchmark_of
from swe_infer.progress import progress
from swe_infer.redaction import without_secrets
from swe_infer.run_directory import layout
from swe_infer.run_directory.verdicts import Verdict
from swe_infer.text import bounded_json

_OFFICIAL = re.compile(r"(SWE-bench(?:_Lite|_Verified|_Multilingual|_Multimodal)?)(?:_oracle|_bm25\w*)?")
_OTHERWISE = "or run it on another machine and pass its report with --report FILE"

Finding = tuple[bool, str | None]

_TESTS_FAIL = "tests fail"
_REASONS = {
    "unresolved_ids": _TESTS_FAIL,
    "error_ids": "the harness reports an error: the patch does not apply, or the tests were aborted",
    "empty_patch_ids": "no patch",
}


_OTHER_NAMES = {
    "ids_resolved": "resolved_ids",
    "ids_unresolved": "unresolved_ids",
    "success_ids": "resolved_ids",
    "failure_ids": "unresolved_ids",
}
"""Keys in the reports of SWE-smith and SWE-bench-Live."""

_MOST_BYTES = 1 << 28  # of a report


@dataclass(frozen=True, slots=True)
class HarnessOptions:
    """Options of the harness.

    Args:
        dataset: a dataset by its name in the harness, or a file; None: from the run's configuration.
        split: None: from the run's configuration.
        max_workers: containers at once.
        timeout_s: seconds for the tests of one instance.
    """

    dataset: str | None = None
    split: str | None = None
    max_workers: int = 4
    timeout_s: int = 1800


def check_harness() -> None:
    """Checks that the harness can run.

    Raises:
        ConfigError: the package is not installed, or no Docker daemon answers.
    """
    if importlib.util.find_spec("swebench") is None:
        raise ConfigError(f"the official harness is not installed: pip install 'swe_infer[evaluate]', {_OTHERWISE}")
    code = "import docker; docker.from_env(timeout=10).ping()"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"the Docker daemon does not answer; start it, {_OTHERWISE}") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        raise ConfigError(
            f"the official harness needs a Docker daemon, and none can be reached ({why}); {_OTHERWISE}"
        )


def run_harness(run: EvaluableRun, options: HarnessOptions) -> list[Verdict]:
    """Evaluates the predictions file of every sample. Logs and reports stay in ``RUN_DIR/evaluation``.

    The harness resumes from its logs under the same run id. The id depends on the predictions, so that a log of an
    earlier answer is never used for a new one.

    Raises:
        ConfigError: the run's configuration does not name an official dataset.
        EvaluationError: the harness ended without a report.
    """
    dataset = options.dataset or official_name(run.dataset)
    if dataset is None:
        raise ConfigError(
            f"{run.directory}: the harness does not know its dataset by name; pass the official one with "
            "--dataset NAME, such as SWE-bench/SWE-bench_Lite"
        )
    if Path(dataset).is_file():
        dataset = str(Path(dataset).absolute())  # the harness runs in its own folder
    split = options.split or str(run.dataset.get("split") or "test")
    folder = evaluation_folder(run)
    verdicts: list[Verdict] = []
    with progress("evaluating with the harness", len(run.samples), fewest=1) as advance:
        for sample in run.samples:
            run_id = _run_id(run, sample)
            command = [sys.executable, "-P", "-m", "swebench.harness.run_evaluation"]
            command += ["--dataset_name", dataset, "--split", split, "--run_id", run_id, "--report_dir", "."]
            command += ["--predictions_path", str(run.predictions(sample).absolute())]
            command += ["--max_workers", str(options.max_workers), "--timeout", str(options.timeout_s)]
            log = folder / f"harness.sample{sample}.log"
            status = run_process(command, output=log, log=log, folder=folder)
            reports = sorted(folder.glob(f"*.{run_id}.json"))
            if status or not reports:
                raise EvaluationError(f"the harness ended with status {status} and no report; see {log}")
            verdicts += verdicts_of_report(run, reports[-1], sample, source="swebench")
            advance()
    return verdicts


def verdicts_of_report(run: EvaluableRun, report: Path, sample: int, *, source: str = "report") -> list[Verdict]:
    """The verdicts of a finished report on one sample of a run.

    Raises:
        ConfigError: the file is not a report, or covers none of the run's instances.
    """
    found = read_report(report, sample)
    mine = {instance_id: found.get(instance_id) for instance_id, number in run.patches if number == sample}
    verdicts = [
        Verdict(instance_id, sample, finding[0], finding[1], source)
        for instance_id, finding in mine.items()
        if finding is not None
    ]
    if not verdicts:
        raise ConfigError(f"{report}: covers none of the {len(mine)} instances of {run.directory}, sample {sample}")
    return verdicts


def refuse_other_harness(run: EvaluableRun) -> None:
    """Raises ConfigError if the benchmark of a run has a harness of its own; the message says how to start it."""
    if (how := other_harness(run.dataset, run.predictions(0))) is not None:
        raise ConfigError(f"{run.directory}: its benchmark has a harness of its own. Start it {how}; {REPORT}")


REPORT = "then swe-infer-evaluate RUN_DIR --report FILE reads its report"


def other_harness(dataset: Mapping[str, Any], predictions: Path) -> str | None:
    """How to evaluate the predictions of a benchmark that has a harness of its own, in one line with the file that
    it reads; None for SWE-bench's datasets, and for others that are not known.

    Args:
        dataset: the ``dataset`` group of a run's configuration.
        predictions: the run's predictions file.
    """
    benchmark = benchmark_of(dataset)
    if benchmark is None or benchmark == BENCHMARKS["swebench"]:
        return None
    return benchmark.instructions(str(layout.harness_predictions(predictions, benchmark.form)), dataset)


def official_name(dataset: Mapping[str, Any]) -> str | None:
    """For example ``SWE-bench/SWE-bench_Lite`` for ``princeton-nlp/SWE-bench_Lite_oracle``."""
    match = _OFFICIAL.fullmatch(str(dataset.get("name") or "").rpartition("/")[2])
    return f"SWE-bench/{match[1]}" if match else None


def _run_id(run: EvaluableRun, sample: int) -> str:
    patches = json.dumps(sorted((i, patch) for (i, number), patch in run.patches.items() if number == sample))
    return f"{hashlib.sha256(patches.encode()).hexdigest()[:12]}.sample{sample}"


def read_report(path: Path, sample: int = 0) -> dict[str, Finding]:
    """Returns ``{instance_id: (resolved, reason)}``, without instances that were not submitted.

    Args:
        sample: lines on other samples are ignored.

    Raises:
        ConfigError: the file cannot be read, or is not a report.
    """
    try:
        content = read_regular(path.resolve(), _MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        report = bounded_json(content)
    except (ValueError, RecursionError):
        report = _json_lines(content)
        if report is None:
            raise ConfigError(f"{path}: not JSON; a report of the swebench harness is required") from None
    if isinstance(report, dict):
        for name, canonical in _OTHER_NAMES.items():
            if isinstance(report.get(name), list):
                report.setdefault(canonical, report[name])
        if isinstance(report.get("resolved_ids"), list):
            return _by_lists(report)
        if isinstance(report.get("resolved"), list):
            return _by_old_lists(report)
        if report and all(isinstance(v, dict) and isinstance(v.get("resolved"), bool) for v in report.values()):
            return {str(k): (v["resolved"], None if v["resolved"] else _why(v)) for k, v in report.items()}
        if report and all(isinstance(v, bool) for v in report.values()):
            return {str(k): (v, None if v else _TESTS_FAIL) for k, v in report.items()}
        report = [report]
    if isinstance(report, list) and report and all(map(_is_verdict, report)):
        of_sample = [entry for entry in report if entry.get("sample", sample) == sample]
        return {entry["instance_id"]: _finding(entry) for entry in of_sample}
    raise ConfigError(f"{path}: not a report of the swebench harness (it has no resolved_ids), and not verdicts")


def _json_lines(content: bytes) -> list[Any] | None:
    """The values of JSON lines; None if a line is not JSON."""
    try:
        return [bounded_json(line) for line in content.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return None


def _is_verdict(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("instance_id"), str)
        and isinstance(entry.get("resolved"), bool)
    )


def _finding(entry: Mapping[str, Any]) -> Finding:
    if entry["resolved"]:
        return True, None
    reason = entry.get("reason")
    return False, " ".join(without_secrets(reason).split())[:300] if isinstance(
        reason, str
    ) and reason else _TESTS_FAIL


def _by_lists(report: Mapping[str, Any]) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    for key, reason in _REASONS.items():
        found |= dict.fromkeys(_ids(report.get(key)), (False, reason))
    for instance in _ids(report.get("completed_ids")):  # schema 1 of some releases has no unresolved_ids
        found.setdefault(instance, (False, _TESTS_FAIL))
    reasons = report.get("failure_reasons") or {}
    for instance, reason in reasons.items() if isinstance(reasons, dict) else ():
        if instance in found:
            found[instance] = (False, f"{found[instance][1]} ({reason})")
    return found | dict.fromkeys(_ids(report["resolved_ids"]), (True, None))


def _by_old_lists(report: Mapping[str, Any]) -> dict[str, Finding]:
    found: dict[str, Finding] = dict.fromkeys(_ids(report.get("not_resolved")), (False, _TESTS_FAIL))
    found |= dict.fromkeys(_ids(report.get("no_generation")), (False, "no patch"))
    found |= dict.fromkeys(_ids(report.get("generated")), (False, "the patch does not apply"))
    found |= dict.fromkeys(_ids(report.get("applied")), (False, _TESTS_FAIL))
    return found | dict.fromkeys(_ids(report["resolved"]), (True, None))


def _ids(value: Any) -> Iterable[str]:
    return [_PULL_REQUEST.sub(r"\1__\2-\3", str(item)) for item in value] if isinstance(value, list) else []


_PULL_REQUEST = re.compile(r"^([^/]+)/([^/]+):pr-(\d+)$")
"""An id in the reports of Multi-SWE-bench."""


def _why(entry: Mapping[str, Any]) -> str:
    if entry.get("patch_is_None") or entry.get("patch_exists") is False:
        return "no patch"
    if entry.get("patch_successfully_applied") is False:
        return "the patch does not apply"
    return _TESTS_FAIL
