"""``swe-infer-merge OUT_DIR RUN_DIR …``: merges the shards of one run into one run directory.

The shards stay unchanged. The merged directory is what one process would have written, in the order of the shards.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer import config
from swe_infer.compare.prompts import recorded_selector
from swe_infer.errors import ConfigError, StoreError, SweInferError
from swe_infer.evaluate.evaluable import evaluated_figures
from swe_infer.files import hidden_beside, write_atomically
from swe_infer.harnesses import benchmark_of
from swe_infer.locks import locks_of
from swe_infer.remote.paths import message_of
from swe_infer.remote.reading import readable_path
from swe_infer.remote.writing import written_folder
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.figures import Summary, selection_figures
from swe_infer.run_directory.history import totals_over_time
from swe_infer.run_directory.provenance import merged_provenance, read_provenance, write_provenance
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Damage
from swe_infer.run_directory.store import RunStore
from swe_infer.run_directory.totals import Totals
from swe_infer.run_directory.verdicts import Verdict, read_verdicts, write_verdicts
from swe_infer.text import CommandParser
from swe_infer.tracking.base import RunInfo
from swe_infer.tracking.state import folder_of
from swe_infer.tracking.wandb import WandbTracker

_MOST_NAMED = 20
_HISTORY_POINTS = 100
_MOST_OPEN_SHARDS = 200


@dataclass(frozen=True, slots=True)
class _ShardRun:
    directory: Path
    index: int
    count: int
    config: dict[str, Any]
    summary: Summary


def is_merged(directory: Path) -> bool:
    """Whether a directory is a merged run."""
    try:
        return "shards" in RunDirectory(directory).summary()
    except ConfigError:
        return False


def merge(out: Path, directories: Sequence[Path], *, earlier: Path | None = None, trusted: bool = False) -> Summary:
    """Merges the runs of all shards, with their verdicts, and returns the merged summary. If the shards were tracked
    with W&B, the merged run is logged there too.

    Args:
        out: the new run directory.
        directories: the run directory of each shard.
        earlier: an earlier merge of these shards, whose verdicts and W&B run are moved to ``out``.
        trusted: log to W&B even if somebody else tracked the shards.

    Raises:
        StoreError: a directory is not a finished shard, shards are missing or duplicated, their configurations
            differ, an instance is in two of them, or ``out`` is not empty.
    """
    shards = sorted((_read(directory) for directory in directories), key=lambda shard: shard.index)
    _check_complete(shards)
    if out.exists() and any(out.iterdir()):
        raise StoreError(f"{out}: is not empty; name a new directory for the merged run")
    owners: dict[str, Path] = {}
    label = ""
    for shard in shards:
        for record in RunDirectory(shard.directory).records(auxiliary=True):
            owner = owners.setdefault(record["instance_id"], shard.directory)
            if owner != shard.directory:
                raise StoreError(
                    f"{record['instance_id']}: is in {owner} and in {shard.directory}; shards must not overlap"
                )
        label = label or RunDirectory(shard.directory).label() or ""
    asked = _asked(shards)
    merged = config.unsharded(shards[0].config)
    with (
        ExitStack() as stack,
        _whole(out) as directory,
        RunStore(
            directory,
            label,
            locks_of(merged),
            selector=recorded_selector(merged, stack, directory),
            samples=shards[0].summary["samples"],
            benchmark=benchmark_of(merged.get("dataset")),
        ) as store,
    ):
        if asked is not None:
            store.set_coverage(asked, asked)
        for shard in shards:
            store.predictions.selected |= RunDirectory(shard.directory).selected()
        damages: list[Damage] = []
        unrecorded_usd = Decimal(0)
        for shard in shards:
            damage, own = Damage(), Totals()
            for record in RunDirectory(shard.directory).records(damage, auxiliary=True):
                store.append(record)
                own.add_record(record)
            damage.reconcile_cost(own.cost_usd, shard.summary)
            damages.append(damage)
            unrecorded_usd += own.unrecorded_usd(shard.summary)
            if damage:
                print(f"{shard.directory}: {damage}", file=sys.stderr)
        store.check()
        for damage in damages:
            store.totals.add_damage(damage)
        write_atomically(directory / layout.CONFIG, config.as_yaml(merged))
        if earlier is not None and (earlier / "run_id").exists():
            write_atomically(directory / "run_id", config.read_run_id(earlier / "run_id"))
        first = read_provenance(shards[0].directory)
        provenance = replace(
            merged_provenance([shard.directory for shard in shards]), sweep=first.sweep, sweeps=first.sweeps
        )
        write_provenance(directory, provenance)
        summary = _summary(shards, store, unrecorded_usd)
        summary = {**summary, **_verdict_figures(directory, shards, earlier, summary)}
        store.write_summary(summary)
    if earlier is not None and folder_of(earlier).is_dir():
        folder_of(earlier).rename(folder_of(out))
    _track(shards, out, merged, summary, trusted=trusted)
    return summary


def _verdict_figures(directory: Path, shards: Sequence[_ShardRun], earlier: Path | None, summary: Summary) -> Summary:
    """Writes the verdicts of the shards and of an earlier merge into the merged run, and returns their figures.

    The earlier merge may have been evaluated itself, so its verdicts win over those of another evaluation.
    """
    every = (verdict for shard in shards for verdict in _all_verdicts(shard.directory))
    verdicts = {(verdict.key, verdict.turn): verdict for verdict in every}
    for verdict in _all_verdicts(earlier) if earlier is not None else ():
        answer = (verdict.key, verdict.turn)
        if (other := verdicts.get(answer)) is None or other.source != verdict.source:
            verdicts[answer] = verdict
    if not verdicts:
        return {"not_tested": shards[0].summary["not_tested"]} if "not_tested" in shards[0].summary else {}
    turns = {key: turn for key, (turn, _) in RunDirectory(directory).patches().items()}
    found = write_verdicts(directory, verdicts.values(), turns)
    figures = evaluated_figures(found, summary, RunDirectory(directory).selected())
    places = {shard.summary.get("tested_in") for shard in shards}
    if len(places) == 1 and (place := places.pop()) is not None:
        figures["tested_in"] = place
    return figures


def _all_verdicts(directory: Path) -> list[Verdict]:
    return [*read_verdicts(directory, layout.ALL_VERDICTS), *read_verdicts(directory)]


def _asked(shards: Sequence[_ShardRun]) -> Coverage | None:
    """The union of the shards' requests; None if a shard has no ``asked.json``."""
    parts = [RunDirectory(shard.directory).coverage() for shard in shards]
    ids = [part.instance_ids for part in parts if part is not None and part.instance_ids is not None]
    if len(ids) < len(shards) or parts[0] is None:
        return None
    return replace(parts[0], instance_ids=tuple(itertools.chain(*ids)), decided=False)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A temporary directory that is renamed to ``out`` on success, so that the command can be repeated after an
    interrupt.

    Raises:
        StoreError: it cannot be written.
    """
    parts = hidden_beside(out.absolute(), ".parts")
    try:
        shutil.rmtree(parts, ignore_errors=True)  # left by a killed process
        parts.mkdir(parents=True)
        yield parts
        if out.exists():
            out.rmdir()
        parts.rename(out)
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _track(
    shards: Sequence[_ShardRun], out: Path, merged: dict[str, Any], summary: Summary, *, trusted: bool
) -> None:
    """Logs the merged run to W&B, if the shards were tracked there."""
    tracked = WandbTracker.of_run(shards[0].directory, trusted=trusted)
    if tracked is None:
        return
    tracker, part = tracked
    provenance = read_provenance(out)
    plain = {**merged, "provenance": provenance.commands[-1]} if provenance.commands else merged
    info = RunInfo(
        run_id=config.run_id_of(out, merged),
        name=config.unsharded_name(part.name, shards[0].config),
        config=plain,
        directory=out.resolve(),
        resumed=folder_of(out).is_dir(),
        job_type="merged",
    )
    sweep = provenance.sweep
    if sweep is not None and sweep.name:  # the sweep varies more than the shards
        info = replace(info, name=sweep.name, group=sweep.group or None, tags=sweep.tags)
    tracker.start(info)
    tracker.log_history(_history(shards, summary))
    tracker.finish(summary, layout.result_files(out), 0)
    print(f"W&B run of the merged shards: {tracker.address}", file=sys.stderr)


def _history(shards: Sequence[_ShardRun], summary: Summary) -> list[dict[str, Any]]:
    """The totals of a merged run over time, as one process would have logged them. Empty for very many shards."""
    if len(shards) > _MOST_OPEN_SHARDS:
        return []
    directories = [shard.directory for shard in shards]
    return list(totals_over_time(directories, _asked(shards), summary, _HISTORY_POINTS))


def _read(directory: Path) -> _ShardRun:
    run = RunDirectory(directory)
    plain = run.config()
    if not plain:
        raise StoreError(f"{directory}: contains no {layout.CONFIG}; name the run directories of the shards")
    index, count = config.shard_of(plain)
    if index is None:
        raise StoreError(f"{directory}: is not the run of a shard (shard.index is null)")
    summary = run.summary()
    remaining = summary.get("remaining")
    if remaining != 0:
        reason = (
            "its summary has no count of remaining samples" if remaining is None else f"{remaining} samples remain"
        )
        raise StoreError(f"{directory}: {reason}; finish this shard first")
    if lacking := [key for key in ("instances", "samples") if key not in summary]:
        raise StoreError(f"{directory}: its summary lacks {lacking[0]}; run this shard again")
    coverage = run.coverage()
    if coverage is not None and coverage.turns and not coverage.turns_done:
        raise StoreError(f"{directory}: some further turns are not sent yet; finish this shard first")
    return _ShardRun(directory, index, count, plain, summary)


def _check_complete(shards: list[_ShardRun]) -> None:
    first = shards[0]
    for shard in shards[1:]:
        before, now = ({**s.config, "shard": {"count": s.count}} for s in (first, shard))
        covered = config.changes(config.coverage(before), config.coverage(now))
        if changed := [*config.differences(before, now), *covered]:
            raise StoreError(f"{shard.directory}: differs from {first.directory} in {'; '.join(changed[:3])}")
    for one, other in itertools.pairwise(shards):
        if one.index == other.index:
            raise StoreError(f"{one.directory} and {other.directory} are both shard {one.index}")
    there = {shard.index for shard in shards}
    missing = (index for index in range(first.count) if index not in there)
    if some := list(itertools.islice(missing, _MOST_NAMED)):
        more = first.count - len(there) - len(some)
        named = ", ".join(map(str, some)) + (f" and {more:,} more" if more else "")
        raise StoreError(f"shards {named} of {first.count} are missing")


def _summary(shards: list[_ShardRun], store: RunStore, unrecorded_usd: Decimal) -> Summary:
    """The shards' summaries as one. Shards run in parallel, so the wall time is that of the longest."""
    summary = store.totals.summary(
        instances=sum(shard.summary["instances"] for shard in shards),
        samples=shards[0].summary["samples"],
        wall_s=max(float(shard.summary.get("wall_s") or 0) for shard in shards),
        unrecorded_usd=unrecorded_usd,
    )
    return {**summary, **selection_figures(store.predictions.selected, summary), "shards": len(shards)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Prints the merged directory; returns 2 if the shards cannot be merged."""
    parser = CommandParser(prog="swe-infer-merge", description="Join the shards of one run.")
    parser.add_argument("out", metavar="OUT_DIR", help="the merged run directory, which must be new")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="the run directory of each shard")
    parser.add_argument("--wandb", action="store_true", help="log to W&B even if somebody else tracked the shards")
    options = parser.parse_args(arguments)
    try:
        shards = [readable_path(run) for run in options.runs]
        with written_folder(options.out, "OUT_DIR") as out:
            merge(out, shards, trusted=options.wandb)
    except SweInferError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return error.exit_status
    print(options.out)
    return 0
