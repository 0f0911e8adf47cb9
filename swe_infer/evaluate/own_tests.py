"""Evaluates datasets that contain their own tests, such as the bundled sample: patches are applied in memory.

The dataset is a JSON-lines file with the columns ``files`` (``{path: content}`` before the fix) and ``test`` (Python
source with functions ``test…``), see :mod:`swe_infer.sample.testing`. Tests are code, so those of a file run only if
the user names the file for that purpose; the bundled ones are ours.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from swe_infer.data.base import Dataset
from swe_infer.data.sample import SampleDataset
from swe_infer.errors import ConfigError
from swe_infer.evaluate.evaluable import EvaluableRun
from swe_infer.files import special_kind
from swe_infer.patches.apply import apply_patch
from swe_infer.patches.diff import PatchError
from swe_infer.progress import progress
from swe_infer.redaction import without_secrets
from swe_infer.run_directory.records import LONGEST_LINE
from swe_infer.run_directory.verdicts import Verdict
from swe_infer.sample.testing import run_test
from swe_infer.text import bounded_json


@dataclass(frozen=True, slots=True)
class TestedRow:
    """The files (path to content) and the test of one instance."""

    __test__: ClassVar[bool] = False  # not a test class for pytest

    files: Mapping[str, str]
    test: str


def tested_rows(run: EvaluableRun, dataset: Path | None) -> dict[str, TestedRow] | None:
    """The rows of the run's instances, or None if the dataset contains no tests.

    Args:
        dataset: a JSON-lines file whose tests may run; None: only the bundled sample's may.

    Raises:
        ConfigError: the dataset contains tests, but lacks an instance of the run.
    """
    rows = _rows(run.dataset, dataset)
    if rows is None:
        return None
    required = {instance_id for instance_id, _ in run.patches}
    found: dict[str, TestedRow] = {}
    for row in rows:
        if row.get("instance_id") in required:
            if (tested := tested_row(row)) is None:
                return None
            found[str(row["instance_id"])] = tested
    missing = sorted(required - found.keys())
    if missing and not found:
        return None
    if missing:
        raise ConfigError(
            f"{run.directory}: the dataset lacks {len(missing)} of its instances, such as {missing[0]}; "
            "pass the run's dataset with --dataset FILE"
        )
    return found


def rows_of_dataset(run: EvaluableRun, dataset: Dataset) -> dict[str, TestedRow]:
    """The rows of the run's instances in a dataset whose tests may run.

    Raises:
        ConfigError: the dataset lacks an instance of the run, or its test.
    """
    rows = dataset.without_prompts().open()
    indices = {instance_id: index for index, instance_id in enumerate(rows.ids)}
    found: dict[str, TestedRow] = {}
    for instance_id in sorted({instance_id for instance_id, _ in run.patches}):
        index = indices.get(instance_id)
        tested = None if index is None else tested_row(rows.row(index))
        if tested is None:
            raise ConfigError(f"{instance_id}: {dataset.name} contains no test of it (columns files and test)")
        found[instance_id] = tested
    return found


def tested_row(row: Mapping[str, Any]) -> TestedRow | None:
    """The files and the test of a row; None if it has none."""
    files, test = row.get("files"), row.get("test")
    if not isinstance(files, Mapping) or not isinstance(test, str):
        return None
    return TestedRow({str(path): str(text) for path, text in files.items()}, test)


def run_own_tests(
    run: EvaluableRun, rows: Mapping[str, TestedRow], *, timeout_s: float, contained: bool = True
) -> list[Verdict]:
    """Runs the test of every prediction, one per processor at a time. A failure costs its own prediction alone.

    Args:
        timeout_s: seconds for one test.
        contained: in the sandbox; False: in processes with all rights of the user.
    """
    items = sorted(run.patches.items())
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool, progress("testing", len(items)) as advance:
        findings = [pool.submit(_finding, patch, rows[key[0]], timeout_s, contained, stop) for key, patch in items]
        for finding in findings:
            finding.add_done_callback(lambda _: advance())
        try:
            found = [finding.result() for finding in findings]
        except BaseException:  # on Ctrl-C, stop the running tests
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [
        Verdict(instance_id, sample, reason is None, reason, "tests", judged)
        for ((instance_id, sample), _), (reason, judged) in zip(items, found, strict=True)
    ]


def _finding(
    patch: str, row: TestedRow, timeout_s: float, contained: bool, stop: threading.Event
) -> tuple[str | None, str | None]:
    """Returns (reason why the instance is not resolved or None, where the test ran or None)."""
    if not patch:
        return "no patch", None
    try:
        applied = apply_patch(patch, row.files)
        if applied.unknown_files:
            return f"the patch changes {applied.unknown_files[0]}, which the repository does not contain", None
        files = {path: text for path, text in {**row.files, **applied.files}.items() if text is not None}
        result = run_test(files, row.test, timeout_s=timeout_s, contained=contained, stop=stop)
    except PatchError as error:
        return f"the patch does not apply: {error}", None
    except Exception as error:  # noqa: BLE001 - a model's patch must only cost its own instance
        return f"the test could not be run ({type(error).__name__})", None
    return None if result.reason is None else without_secrets(result.reason), result.judged


def _rows(config: Mapping[str, Any], dataset: Path | None) -> Iterator[Mapping[str, Any]] | None:
    """The rows of a dataset that may contain tests, or None."""
    if dataset is not None:
        return _lines(dataset) if dataset.suffix == ".jsonl" else None
    if not str(config.get("_target_", "")).endswith(".SampleDataset"):
        return None
    sample = SampleDataset().open()
    return ({"instance_id": name, **sample[index].metadata} for index, name in enumerate(sample.ids))


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Reads the rows directly: a file for the official harness may have no prompts, which a dataset requires."""
    try:
        if (kind := special_kind(path.stat().st_mode)) is not None:
            raise ConfigError(f"{path}: is {kind}; a file of JSON lines is expected")
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
            try:
                row = bounded_json(line) if line.strip() else {}
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, Mapping):
                raise ConfigError(f"{path}, line {number}: not a JSON object; each line must be a row of the dataset")
            yield row
