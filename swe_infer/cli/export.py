"""``swe-infer-export RUN_DIR …``: writes recorded answers as rows for fine-tuning.

Records contain no prompts. They are rendered again from the dataset in the run's configuration, without a network,
and compared with the recorded digests; see :func:`swe_infer.compare.prompts.rendered_rows`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from swe_infer.cli.training_rows import COLUMNS, METADATA, Format, fault_of, text_fault, training_row
from swe_infer.compare.prompts import rendered_rows
from swe_infer.compare.sources import find_runs
from swe_infer.data.base import Rows
from swe_infer.data.images import with_images
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.errors import ConfigError, DataError
from swe_infer.feedback.message import without_lone_surrogates
from swe_infer.files import open_regular, replacing
from swe_infer.patches.reasoning import CUT_OFF, without_reasoning
from swe_infer.remote.paths import message_of
from swe_infer.remote.reading import readable_path
from swe_infer.remote.writing import written_file
from swe_infer.run_directory import layout
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import LONGEST_LINE, Damage, Record
from swe_infer.runners.turns import NO_ANSWER
from swe_infer.text import CommandParser, bounded_json, clean, report_errors
from swe_infer.types import Prompt, Turn

Where = Literal["resolved", "applies"]

_UNFINISHED = frozenset({"length", "repetition", "refusal", "content_filter"})
_OTHER_ENDINGS = (".parquet", ".arrow", ".csv", ".tsv", ".gz", ".zst", ".zip")
_EVALUATION_SET = re.compile("swe[-_ ]?bench", re.IGNORECASE)
_IDENTITY = "# identity "
_MOST_REASONS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns 2 for invalid input, or if there is no row to write."""
    options = _parser().parse_args(arguments)
    status = report_errors(lambda: _write(options), message_of)
    if not status:
        print(options.out)
    return status


def _write(options: argparse.Namespace) -> None:
    """Writes the rows, and prints the figures to standard error.

    Raises:
        SweInferError, OSError: the input is invalid, there is no row to write, or the file cannot be written.
    """
    with ExitStack() as stack:
        out = _checked_out(options.out, stack.enter_context(written_file(options.out, "--out")))
        prompts = None if options.prompts is None else _prompts_of_file(options.prompts)
        directories = [run for path in options.runs for run in find_runs(readable_path(path))]
        runs = [
            _Run(directory, options.where, prompts, stack)
            for directory in dict.fromkeys(directory.resolve() for directory in directories)
        ]
        export = _Export(runs, options.where, options.format)
        export.warn()
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as new:
            with new.open("w", encoding="ascii") as file:
                file.writelines(json.dumps(row) + "\n" for row in export.rows())
            export.check_not_empty()
    print("\n".join(export.lines()), file=sys.stderr)


def _checked_out(text: str, place: Path) -> Path:
    """The path of the result.

    Args:
        place: the path that ``text`` names.

    Raises:
        ConfigError: another file is there, or it must not be there.
    """
    out = place.resolve()
    if text.endswith("/") or out.name.lower().endswith(_OTHER_ENDINGS):
        raise ConfigError(f"--out {text}: the rows are JSON lines; name a .jsonl file")
    if (run := next((parent for parent in out.parents if layout.is_run(parent)), None)) is not None:
        raise ConfigError(f"--out {text}: is in the run directory {run}; choose a place outside")
    if not out.exists():
        return out
    if not out.is_file():
        raise ConfigError(f"--out {text}: exists and is not a file; choose another name")
    with open(open_regular(out), "rb") as file:
        line = file.readline(LONGEST_LINE)
    if line and not _is_training_row(line):
        raise ConfigError(f"--out {text}: exists, and was not made by this command; choose another name")
    return out


def _is_training_row(line: bytes) -> bool:
    try:
        row = bounded_json(line)
        return "instance_id" in row[METADATA] and any(row.keys() == {*names, METADATA} for names in COLUMNS.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _prompts_of_file(path: str) -> Rows:
    """The rows of ``--prompts``.

    Raises:
        ConfigError: the file cannot be read, or its rows have no prompts.
    """
    try:
        return with_images(JsonlDataset(path=path).open(), True)
    except ConfigError as error:
        raise ConfigError(str(error).replace("dataset.path=", "--prompts ", 1)) from None


@dataclass(frozen=True, slots=True)
class _Answer:
    """The parts of a record that an export needs.

    Args:
        feedback: the message before the answer; empty for a first answer.
    """

    output: str
    feedback: str
    finish_reason: str | None
    text_from: str | None
    patch_status: str | None
    has_patch: bool
    prompt_sha256: str | None

    @classmethod
    def of(cls, record: Record) -> _Answer:
        return cls(
            record.get("full_output") or "",
            record.get("feedback") or "",
            record.get("finish_reason"),
            (record.get("details") or {}).get("text_from"),
            record.get("patch_status"),
            bool(record.get("model_patch")),
            record.get("prompt_sha256"),
        )

    def satisfies(self, where: Where, resolved: bool | None) -> bool | None:
        """Whether the answer is one to learn; None if that is not known."""
        if where == "applies":
            return None if self.patch_status in (None, "unchecked") else self.patch_status == "applies"
        return False if resolved is None and not self.has_patch else resolved

    def text(self, prompt: Prompt) -> str:
        """The whole answer without reasoning.

        Raises:
            DataError: there is none that a model should learn.
        """
        if self.finish_reason in _UNFINISHED:
            raise DataError(f"the answer is not finished (finish_reason={self.finish_reason})")
        if self.text_from is not None:
            raise DataError(f"the answer has no text (details.text_from={self.text_from})")
        text, note = self._without_reasoning(prompt)
        if note is not None or (self.output.strip() and not text.strip()):
            raise DataError("no answer follows the reasoning" if note is not None else CUT_OFF)
        if (fault := text_fault(text)) is not None:
            raise DataError(f"answer: {fault}")
        return text

    def turn(self, prompt: Prompt, reply: str) -> Turn:
        """The answer as an earlier turn of a conversation, without its reasoning."""
        text, _ = self._without_reasoning(prompt)
        return Turn(without_lone_surrogates(text) if text.strip() else NO_ANSWER, reply)

    def _without_reasoning(self, prompt: Prompt) -> tuple[str, str | None]:
        whole = prompt.with_prefill(self.output)
        proper = without_reasoning(whole)
        # Sections that are not only used for reasoning stay: the patch may be in one.
        text = proper.text if proper.asides is None else proper.asides
        return text if text == whole else text.lstrip("\r\n"), proper.note


class _Run:
    """A run directory with the prompts of its instances.

    Args:
        prompts: rows of ``swe-infer-prompts``; None: the prompts are rendered again.
        stack: closes the repositories.

    Raises:
        ConfigError: it cannot be read, has no verdicts, which ``resolved`` needs, or its prompts are not available.
    """

    def __init__(self, directory: Path, where: Where, prompts: Rows | None, stack: ExitStack) -> None:
        run = RunDirectory(directory)
        if not layout.has_records(directory):
            raise ConfigError(f"{directory}: not a run directory (there is no {layout.RECORDS})")
        self.directory = directory
        self.damage = Damage()
        self.verdicts = run.resolved()
        """By (instance, sample) and turn."""
        if where == "resolved" and not self.verdicts:
            raise ConfigError(
                f"{directory}: has no verdicts, which --where resolved needs; first run swe-infer-evaluate on it"
            )
        self.config = run.config()
        self.answers: dict[str, dict[int, dict[int, _Answer]]] = {}
        """By instance, sample and turn."""
        for (instance_id, sample), turns in run.answers(_Answer.of, self.damage).items():
            self.answers.setdefault(instance_id, {})[sample] = turns
        self.model = run.label() or ""
        line = run.identity_line()
        self.identity = line.removeprefix(_IDENTITY) if line.startswith(_IDENTITY) else ""
        try:
            self.rows = rendered_rows(self.config, stack, directory) if prompts is None else prompts
        except ConfigError as error:
            raise ConfigError(
                f"{directory}: its prompts are not available: {error}; write them with swe-infer-prompts, and name "
                "the file with --prompts"
            ) from None
        self._indices = {instance_id: index for index, instance_id in enumerate(self.rows.ids)}
        self._has_prompts_of_file = prompts is not None

    @property
    def takes_text(self) -> bool:
        """Whether the model continued plain text, instead of answering messages."""
        from swe_infer.config import continues_text  # imports OmegaConf

        return continues_text(self.config)

    @property
    def evaluation_set(self) -> str | None:
        """The name of the dataset if models are evaluated on it; None otherwise."""
        node = self._node("dataset")
        name, split = str(node.get("name") or node.get("path") or ""), node.get("split")
        if split == "train" or (split is None and "train" in Path(name).name.lower()):
            return None
        if split != "test" and _EVALUATION_SET.search(name) is None:
            return None
        return name if split is None else f"{name}, split {split}"

    def prompt(self, instance_id: str) -> tuple[Prompt, Mapping[str, Any]]:
        """The prompt of an instance, and its columns.

        Raises:
            DataError: it is not available.
        """
        index = self._indices.get(instance_id)
        if index is None:
            raise DataError("the dataset does not have the instance")
        if (fault := self.rows.fault(index)) is not None:
            raise DataError(f"no prompt: {fault.message}")
        prompt = self.rows[index].prompt
        if self._has_prompts_of_file:
            prefill = self._node("prompt").get("prefill")
            prompt = replace(prompt, prefill=prefill if isinstance(prefill, str) else None)
        return prompt, self.rows.row(index)

    def _node(self, name: str) -> Mapping[str, Any]:
        node = self.config.get(name)
        return node if isinstance(node, Mapping) else {}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An answer that may become a row.

    Args:
        prompt: the conversation before the answer, without the beginning of the answer, which is in ``text``.
        is_good: it satisfies ``--where``.
        task, origin: the parts of the row's metadata.
    """

    prompt: Prompt
    text: str
    is_good: bool
    task: Mapping[str, Any]
    origin: Mapping[str, Any]


@dataclass
class _Export:
    """Makes the rows, and counts what is left out.

    Raises:
        ConfigError: the runs have prompts of different kinds.
    """

    runs: Sequence[_Run]
    where: Where
    form: Format
    written: int = 0
    considered: int = 0
    used: int = 0
    unchecked: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        kinds = {run.takes_text: run for run in self.runs}
        if len(kinds) > 1 and self.form != "chat":
            raise ConfigError(
                f"{kinds[True].directory} has answers to plain text, {kinds[False].directory} to messages: export "
                "them separately, or with --format chat"
            )
        self._standard = True in kinds

    def warn(self) -> None:
        """Warns of datasets that models are evaluated on, once for each."""
        for name in dict.fromkeys(run.evaluation_set for run in self.runs):
            if name is not None:
                print(
                    f"warning: the rows are of {clean(name)}: a model that is trained on them cannot be evaluated on "
                    "that dataset",
                    file=sys.stderr,
                )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the order of instances, runs and samples."""
        for instance_id in dict.fromkeys(
            name for run in self.runs for name in [*filter(run.answers.__contains__, run.rows.ids), *run.answers]
        ):
            candidates = list(self._distinct(self._candidates(instance_id)))
            for group in self._groups(candidates):
                first = group[0]
                origins = [one.origin for one in group]
                roles = dict(zip(("chosen", "rejected"), origins, strict=True)) if len(group) > 1 else origins[0]
                texts = [one.text for one in group]
                row = training_row(self.form, first.prompt, texts, {**first.task, **roles}, standard=self._standard)
                if (fault := fault_of(row, self.form)) is not None:
                    self.left_out[fault] += len(group)
                    continue
                self.written += 1
                self.used += len(group)
                yield row

    def _groups(self, candidates: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
        """The answers of each row."""
        if self.form != "preference":
            yield from ([one] for one in candidates)
            return
        by_prompt: dict[Prompt, tuple[list[_Candidate], list[_Candidate]]] = {}
        for one in candidates:
            by_prompt.setdefault(one.prompt, ([], []))[not one.is_good].append(one)
        for good, bad in by_prompt.values():
            pairs = min(len(good), len(bad))
            self.left_out["no other answer to the same prompt for a pair"] += len(good) + len(bad) - 2 * pairs
            yield from ([chosen, rejected] for chosen, rejected in zip(good, bad, strict=False))

    def _distinct(self, candidates: Iterable[_Candidate]) -> Iterator[_Candidate]:
        """Each answer to a prompt once; a good one is preferred."""
        seen: set[tuple[Prompt, str]] = set()
        for one in sorted(candidates, key=lambda one: not one.is_good):
            if (one.prompt, one.text) in seen:
                self.left_out["the same answer to the same prompt is in another row"] += 1
            else:
                seen.add((one.prompt, one.text))
                yield one

    def _candidates(self, instance_id: str) -> Iterator[_Candidate]:
        for run in self.runs:
            prompt: tuple[Prompt, Mapping[str, Any]] | DataError | None = None
            for sample, turns in sorted(run.answers.get(instance_id, {}).items()):
                for turn, answer in turns.items():
                    resolved = run.verdicts.get(((instance_id, sample), turn))
                    is_good = answer.satisfies(self.where, resolved)
                    if turn < max(turns) and (self.form != "preference" or is_good is not False):
                        continue  # only the last turn counts; an earlier one may be a rejected answer
                    self.considered += 1
                    if is_good is None or not (is_good or self.form == "preference"):
                        self.left_out[self._why_not(answer, resolved)] += 1
                        continue
                    prompt = prompt or _prompt_or_error(run, instance_id)
                    try:
                        if isinstance(prompt, DataError):
                            raise prompt
                        conversation, text = _exchange(turns, turn, prompt[0])
                    except DataError as error:
                        self.left_out[str(error)] += 1
                        continue
                    self.unchecked += answer.prompt_sha256 is None
                    origin = _origin(run, sample, turn, answer, resolved)
                    yield _Candidate(conversation, text, is_good, _task(instance_id, prompt[1]), origin)

    def _why_not(self, answer: _Answer, resolved: bool | None) -> str:
        if self.where == "applies":
            return f"patch_status={answer.patch_status}"
        return "not evaluated" if resolved is None and answer.has_patch else "not resolved"

    def check_not_empty(self) -> None:
        """Checks that there is a row.

        Raises:
            ConfigError: names the most frequent reasons.
        """
        if not self.written:
            reasons = "; ".join(f"{reason}: {count:,}" for reason, count in self.left_out.most_common(3))
            raise ConfigError(f"no row to write: {reasons or 'the runs have no answers'}")

    def lines(self) -> list[str]:
        """The figures for the terminal."""
        lines = [f"rows: {self.written:,}; answers used: {self.used:,} of {self.considered:,}"]
        found = [(reason, count) for reason, count in self.left_out.most_common() if count]
        lines += [f"  left out {count:>9,}  {clean(reason)}" for reason, count in found[:_MOST_REASONS]]
        if rest := sum(count for _, count in found[_MOST_REASONS:]):
            lines.append(f"  left out {rest:>9,}  for other reasons")
        if self.unchecked:
            lines.append(f"  records without a digest, so that the prompt is not checked: {self.unchecked:,}")
        for run in self.runs:
            if run.damage.unreadable:
                lines.append(f"  unreadable records in {clean(str(run.directory))}: {run.damage.unreadable:,}")
        return lines


def _prompt_or_error(run: _Run, instance_id: str) -> tuple[Prompt, Mapping[str, Any]] | DataError:
    try:
        return run.prompt(instance_id)
    except DataError as error:
        return error


def _exchange(turns: Mapping[int, _Answer], turn: int, prompt: Prompt) -> tuple[Prompt, str]:
    """The conversation before an answer, without the beginning of the answer, and the answer.

    Args:
        turns: the answers of the sample.
        prompt: that of the first one.

    Raises:
        DataError: the prompt is another one, or the answer is not one to learn.
    """
    answer = turns[turn]
    text_alone = replace(prompt, images=())
    if answer.prompt_sha256 == text_alone.sha256:
        prompt = text_alone
    elif prompt.images and answer.prompt_sha256 in (None, prompt.sha256):
        raise DataError("the prompt has images, which rows for training do not contain")
    elif answer.prompt_sha256 not in (None, prompt.sha256):
        raise DataError("the prompt differs from the recorded one")
    text = answer.text(prompt)
    if not all(number in turns for number in range(turn)):
        raise DataError("the record of an earlier turn is missing")
    earlier = tuple(turns[number].turn(prompt, turns[number + 1].feedback) for number in range(turn))
    return replace(prompt, prefill=None, turns=earlier), text


# No value of the metadata is null: the loader of JSON lines infers a column's type from the first rows.


def _task(instance_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value if isinstance(value := row.get(key), str) else "" for key in ("repo", "base_commit")}
    return {"instance_id": instance_id, **known}


def _origin(run: _Run, sample: int, turn: int, answer: _Answer, resolved: bool | None) -> dict[str, Any]:
    return {
        "run": run.directory.name,
        "identity": run.identity,
        "model": run.model,
        "sample": sample,
        "turn": turn,
        "patch_status": answer.patch_status or "",
        "evaluated": resolved is not None,
        "resolved": bool(resolved),
    }


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swe-infer-export",
        description="Write recorded answers as rows for fine-tuning, as JSON lines in the dataset formats of TRL.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a run directory, or a directory of several")
    parser.add_argument(
        "--where", required=True, choices=get_args(Where),
        help="which answers: those whose tests pass, or those whose patch applies as it was written",
    )  # fmt: skip
    parser.add_argument(
        "--format", required=True, choices=get_args(Format),
        help="chat: messages; prompt_completion: prompt, completion; preference: prompt, chosen, rejected",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help="the file of JSON lines")
    parser.add_argument(
        "--prompts", metavar="FILE",
        help="JSON lines of swe-infer-prompts, for runs whose prompts cannot be rendered from their configuration",
    )  # fmt: skip
    return parser
