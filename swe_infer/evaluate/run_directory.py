"""What an evaluation needs to know of a run (answers, dataset, label), and what it leaves there: the verdicts.

They are kept in ``evaluation.jsonl``, one line an (instance, sample): a file of its own, because ``records.jsonl`` is
append-only and belongs to the run. It covers what the last command asked for. Once there are verdicts of other
instances, ``evaluation.all.jsonl`` keeps all of them.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swe_infer.asked import asked_ids, share
from swe_infer.errors import ConfigError
from swe_infer.locks import Locks, locks_of
from swe_infer.records import read_records
from swe_infer.store import write_atomically
from swe_infer.text import first_line

Key = tuple[str, int]

FILE_NAME = "evaluation.jsonl"
_ALL = "evaluation.all.jsonl"


@dataclass(frozen=True, slots=True)
class EvaluableRun:
    """One run directory.

    Args:
        patches: the patch of every completed (instance, sample) that the last command asked for; empty where the
            answer held none.
        label: ``model_name_or_path`` of its predictions.
        dataset: the run's ``dataset`` group as ``config.yaml`` has it.
        locks: how the run keeps other processes out.
    """

    directory: Path
    label: str
    patches: Mapping[Key, str]
    dataset: Mapping[str, Any]
    locks: Locks = "os"

    def predictions(self, sample: int) -> Path:
        """The file that the official harness reads."""
        return self.directory / ("predictions.jsonl" if sample == 0 else f"predictions.sample{sample}.jsonl")

    @property
    def samples(self) -> list[int]:
        return sorted({sample for _, sample in self.patches})


def open_run(directory: Path) -> EvaluableRun:
    """Read a run directory.

    Raises:
        ConfigError: it is none, or nothing in it is completed.
    """
    import yaml

    if not (directory / "records.jsonl").is_file():
        raise ConfigError(f"{directory}: not a run directory (there is no records.jsonl)")
    try:
        asked = asked_ids(directory)
        patches: dict[Key, str] = {}
        for record in read_records(directory / "records.jsonl"):
            key = (record["instance_id"], record["sample"])
            if record["status"] == "skipped":
                patches.pop(key, None)  # a later command left it out
            elif record["status"] == "completed" and (asked is None or key[0] in asked):
                patches[key] = str(record.get("model_patch") or "")
        path = directory / "config.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{directory}: cannot be read ({first_line(error)})") from None
    if not patches:
        raise ConfigError(f"{directory}: nothing in it is completed, so there is nothing to evaluate")
    config = config if isinstance(config, dict) else {}
    dataset = config.get("dataset")
    return EvaluableRun(
        directory, _label(directory), patches, dataset if isinstance(dataset, dict) else {}, locks_of(config)
    )


def _label(directory: Path) -> str:
    for path in sorted(directory.glob("predictions*.jsonl")):
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    return str(json.loads(line)["model_name_or_path"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    raise ConfigError(f"{directory}: holds no predictions.jsonl; run the same command once more, it is written anew")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one prediction.

    Args:
        reason: None where resolved, else one line that says why not.
        source: who found out: ``swebench``, ``report``, or ``tests`` for a dataset that brings its own.
        judged: of such tests: ``outside`` the process that runs the patched code, or ``beside`` that code, which can
            then forge its verdict.
    """

    instance_id: str
    sample: int
    resolved: bool
    reason: str | None
    source: str
    judged: str | None = None


def read_verdicts(directory: Path, name: str = FILE_NAME) -> list[Verdict]:
    """The verdicts of a run directory; none where it was never evaluated.

    Raises:
        ConfigError: a line is no verdict.
    """
    path = directory / name
    if not path.exists():
        return []
    verdicts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            verdicts.append(Verdict(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: not a verdict; remove the file and evaluate again") from error
    return verdicts


def write_verdicts(directory: Path, verdicts: Iterable[Verdict], covers: Container[tuple[str, int]]) -> list[Verdict]:
    """Join ``verdicts`` with those that are there (new ones win); returns those of the keys that ``covers`` holds,
    which make up ``evaluation.jsonl`` from now on."""
    before = [*read_verdicts(directory, _ALL), *read_verdicts(directory)]
    joined = {(v.instance_id, v.sample): v for v in [*before, *verdicts]}
    everything = [joined[key] for key in sorted(joined)]
    covered = [verdict for verdict in everything if (verdict.instance_id, verdict.sample) in covers]
    if len(covered) < len(everything):  # before the other file: a kill in between loses no verdict
        write_atomically(directory / _ALL, _lines(everything))
    write_atomically(directory / FILE_NAME, _lines(covered))
    return covered


def _lines(verdicts: Iterable[Verdict]) -> str:
    return "".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts)


def figures(verdicts: Iterable[Verdict], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``summary.json``: ``resolved`` and ``evaluated`` count samples; ``resolved_rate`` is over every
    sample that the run asked for, so that what failed, was skipped or has no patch counts as not resolved.
    ``resolved_by_any`` counts instances of which one sample at least is resolved."""
    everything = list(verdicts)
    resolved = sum(verdict.resolved for verdict in everything)
    by_any = len({verdict.instance_id for verdict in everything if verdict.resolved})
    return {
        "resolved": resolved,
        "evaluated": len(everything),
        "resolved_rate": share(resolved, summary),
        "resolved_by_any": by_any,
    }
