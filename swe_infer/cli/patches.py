"""``swe-infer-patches RUN_DIR …``: computes the patches of finished runs again from their answers, at no cost.

Patches, statuses, predictions and the summary follow the present extractor. Answers, usage and costs do not change.
The files of the instances come from the dataset in the run's configuration, without a network; see
:func:`swe_infer.compare.prompts.recorded_rows`. An instance whose files are not available keeps its patches.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from swe_infer.compare.prompts import recorded_rows, recorded_selector
from swe_infer.data.base import Rows
from swe_infer.errors import ConfigError, DataError, SweInferError
from swe_infer.evaluate.command import for_each_run
from swe_infer.evaluate.evaluable import evaluated_figures
from swe_infer.harnesses import benchmark_of
from swe_infer.locks import locks_of
from swe_infer.patches import VERSION
from swe_infer.patches.pipeline import make_patch
from swe_infer.remote.paths import displayed
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import EVALUATED_FIGURES, Summary, selection_figures
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Key, Record, key_of, purpose_of, turn_of
from swe_infer.run_directory.rewrite import rewrite_records
from swe_infer.run_directory.store import RunStore
from swe_infer.run_directory.verdicts import drop_verdicts, read_verdicts
from swe_infer.text import CommandParser, clean
from swe_infer.types import EditFormat, PatchResult, Prompt

_PATCH_FIGURES = ("patches", "apply_rate", "apply_rate_checked", "unchecked_share")
_EVALUATION_KEYS = (*EVALUATED_FIGURES, "evaluated_by", "tested_in", "not_tested")
_MOST_NAMED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns 2 if a run cannot be read or is in use."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

    def recomputed(directory: Path) -> str:
        changes = recompute(directory, dry_run=options.dry_run)
        return "\n".join(changes.lines(clean(displayed(directory)), dry_run=options.dry_run))

    return for_each_run(options.runs, recomputed, writes=not options.dry_run)


@dataclass(slots=True)
class Changes:
    """What a recomputation changes.

    Args:
        statuses: the old and the new patch status of each answer that counts, by key and turn.
        patches: the answers with another patch.
        kept: instances that keep their patches, with the reason.
        verdicts: number of dropped verdicts.
    """

    statuses: dict[tuple[Key, int], tuple[str, str]] = field(default_factory=dict)
    patches: set[tuple[Key, int]] = field(default_factory=set)
    kept: dict[str, str] = field(default_factory=dict)
    verdicts: int = 0

    def lines(self, directory: str, *, dry_run: bool) -> list[str]:
        """The table for the terminal."""
        word = "would change" if dry_run else "changed"
        head = f"{directory}: {len(self.patches):,} of {len(self.statuses):,} patches {word}"
        table = Counter(self.statuses.values())
        rows = [f"  {old:<16} -> {new:<16} {count:>8,}" for (old, new), count in sorted(table.items())]
        if self.verdicts:
            rows.append(f"  dropped verdicts of changed patches: {self.verdicts:,}; evaluate the run again")
        for reason, count in Counter(self.kept.values()).most_common(_MOST_NAMED):
            example = next(name for name, why in self.kept.items() if why == reason)
            rows.append(f"  instances that keep their patches: {count:,}, such as {clean(example)}: {clean(reason)}")
        return [head, *rows]


def recompute(directory: Path, *, dry_run: bool = False) -> Changes:
    """Compute the patches of one run again, and write its records, predictions, verdicts and summary.

    Args:
        dry_run: write nothing.

    Raises:
        ConfigError: the directory is not a run, or a file of it cannot be read.
        StoreError: the run is in use, or cannot be written.
    """
    run = RunDirectory(directory)
    if not layout.has_records(directory):
        raise ConfigError(f"{directory}: not a run directory (there is no {layout.RECORDS})")
    config = run.config()
    with ExitStack() as stack:
        patches = _Recomputed(config, stack, directory)
        if dry_run:
            for record in run.records():
                patches.fields(record)
            return patches.changes
        label = run.label()
        if label is None:
            raise ConfigError(f"{directory}: contains no predictions; run the same command again to write them")
        selector, benchmark = recorded_selector(config, stack, directory), benchmark_of(config.get("dataset"))
        store = stack.enter_context(
            RunStore(directory, label, locks_of(config), selector=selector, benchmark=benchmark)
        )
        before = run.latest_summary()
        changed = rewrite_records(
            directory / layout.RECORDS, patches.fields, lambda: _drop(directory, patches.changes)
        )
        if changed:
            store.reload()
            store.mark_turns(done=False)  # other answers may need a further turn now
            store.write_summary(_summary(directory, before, store, patches.changes))
            store.check()
    return patches.changes


def _drop(directory: Path, changes: Changes) -> None:
    changes.verdicts = drop_verdicts(directory, changes.patches)


def _summary(directory: Path, before: Summary, store: RunStore, changes: Changes) -> Summary:
    """The summary of the last command with the figures of the new patches."""
    counts = {key: before[key] for key in ("instances", "samples") if key in before}
    selected = store.predictions.selected
    fresh = store.totals.summary(**cast(dict[str, Any], counts))
    summary: dict[str, Any] = {**(before or fresh), **{key: fresh.get(key) for key in _PATCH_FIGURES}}
    summary |= selection_figures(selected, cast(Summary, summary))
    if "feedback" in fresh:
        summary["feedback"] = fresh["feedback"]
    if changes.verdicts:
        summary = {key: value for key, value in summary.items() if key not in _EVALUATION_KEYS}
    if left := read_verdicts(directory):
        summary |= evaluated_figures(left, cast(Summary, summary), selected)
    return cast(Summary, summary)


class _Recomputed:
    """The new patches of a run's records. Files are read when a record needs them."""

    def __init__(self, config: Mapping[str, Any], stack: ExitStack, directory: Path) -> None:
        self.changes = Changes()
        self._rows: Rows | None = None
        self._indices: dict[str, int] = {}
        self._no_rows = ""
        self._last: tuple[str, tuple[Mapping[str, str], EditFormat | None] | None] | None = None
        prompt = config.get("prompt")
        prompt = prompt if isinstance(prompt, Mapping) else {}
        edit_format = prompt.get("edit_format")
        self._edit_format = cast(EditFormat, edit_format) if edit_format in get_args(EditFormat) else None
        self._prefill = prompt["prefill"] if isinstance(prompt.get("prefill"), str) else None
        added = (prompt.get(key) for key in ("system", "prefill", "template"))
        self._sends_text = prompt.get("style", "given") == "given" and all(part is None for part in added)
        try:
            self._rows = recorded_rows(config, stack, directory)
            self._indices = {instance_id: index for index, instance_id in enumerate(self._rows.ids)}
        except ConfigError as error:
            self._no_rows = str(error)

    def fields(self, record: Record) -> dict[str, Any] | None:
        """The fields of the new patch; None if the record keeps its patch."""
        if purpose_of(record) is not None:
            return None
        key, turn = key_of(record), turn_of(record)
        answer = (key, turn)
        if record["status"] == "skipped" and not turn:
            while (answer := (key, turn)) in self.changes.statuses:
                del self.changes.statuses[answer]
                self.changes.patches.discard(answer)
                turn += 1
        if record["status"] != "completed":
            return None
        old = str(record.get("patch_status"))
        result = self._patch(record)
        if result is None:
            self.changes.statuses[answer] = (old, old)
            return None
        self.changes.statuses[answer] = (old, result.status)
        if result.patch != (record.get("model_patch") or ""):
            self.changes.patches.add(answer)
        else:
            self.changes.patches.discard(answer)
        return {
            "model_patch": result.patch,
            "patch_status": result.status,
            "patch_reason": result.reason,
            "patch_repairs": list(result.repairs),
            "patch_format": result.format,
            "extractor": VERSION,
        }

    def _patch(self, record: Record) -> PatchResult | None:
        instance_id = record["instance_id"]
        if self._last is None or self._last[0] != instance_id:
            self._last = (instance_id, self._inputs(record))
        if self._last[1] is None:
            return None
        files, edit_format = self._last[1]
        output = record.get("full_output") or ""
        if not output.strip() and record.get("model_patch"):
            self.changes.kept[instance_id] = "the record has a patch without its answer"
            return None
        answer = Prompt(None, "", self._prefill).with_prefill(output)
        try:
            return make_patch(answer, files, edit_format or self._edit_format)
        except (SweInferError, OSError) as error:  # of the repository
            self.changes.kept[instance_id] = str(error)
            return None

    def _inputs(self, record: Record) -> tuple[Mapping[str, str], EditFormat | None] | None:
        instance_id = record["instance_id"]
        index = self._indices.get(instance_id)
        if self._rows is None or index is None:
            self.changes.kept[instance_id] = self._no_rows or "the dataset does not have the instance"
            return None
        try:
            digest = record.get("prompt_sha256")
            if self._sends_text and digest is not None and self._rows[index].prompt.sha256 != digest:
                raise DataError("the prompt differs from the recorded one")
            return self._rows.inputs_of_check(index)
        except SweInferError as error:
            self.changes.kept[instance_id] = str(error)
            return None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swe-infer-patches",
        description="Compute the patches of finished runs again from their answers, after an improved extractor. "
        "Nothing is sent, and no cost changes.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--dry-run", action="store_true", help="show what would change; write nothing")
    return parser
