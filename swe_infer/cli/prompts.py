"""``swe-infer-prompts [GROUP=OPTION] [KEY=VALUE] … --out FILE_OR_DIR``: renders, measures and freezes prompts.

The configuration is that of ``swe-infer``: the same options give the prompts that a run would send. The result runs
with ``dataset=jsonl``, ``parquet`` or ``disk`` on a machine without the repositories.
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from swe_infer import __version__
from swe_infer.cli.config_dir import config_dir_of
from swe_infer.cli.start import check_arguments
from swe_infer.data import export
from swe_infer.data.base import TEXT_COLUMN
from swe_infer.data.choices import load_file_choices
from swe_infer.data.select import Selection, select
from swe_infer.errors import ConfigError, RepositoryInterrupted, StoreError, SweInferError
from swe_infer.harnesses import benchmark_of
from swe_infer.instance_files import FILES_COLUMN, files_of
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS, NATIVE, Stopped
from swe_infer.prompt_format import prompt_of
from swe_infer.prompts.frozen import BUDGETS, PromptLines, RowFigures, figures_of, frozen_row, remove
from swe_infer.prompts.rows import RenderedRows
from swe_infer.redaction import without_credentials
from swe_infer.remote.reading import readable_path
from swe_infer.remote.store import is_remote
from swe_infer.remote.writing import written_file
from swe_infer.runners.progress import Progress
from swe_infer.text import clean, first_line, quoted
from swe_infer.types import Prompt, TokenCounter

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from swe_infer.data.base import Dataset
    from swe_infer.prompts.prompt import PromptRenderer

Format = Literal["jsonl", "jsonl.gz", "parquet", "disk"]

_HELP = """\
swe-infer-prompts: makes, measures and freezes prompts: dataset x context x prompt. Nothing is sent to a model.

Usage: swe-infer-prompts [GROUP=OPTION] [KEY=VALUE] ... --out FILE_OR_DIR

  --out FILE.jsonl             JSON lines; also FILE.jsonl.gz and FILE.parquet
  --out DIR                    any other name: a directory, as save_to_disk writes it
  dataset=OPTION               the rows; also dataset.limit, .instance_ids, .min_tokens, .max_tokens
  context=OPTION               which files of the repository are shown; context.repositories: the clones
  prompt=OPTION                how the prompt is written; prompt.template=FILE: by your own template
  model=OPTION                 whose tokens are counted; no key is needed and no model is loaded
  shard.index=I shard.count=N  one shard; each needs a file of its own
  --config-dir DIR             adds options of your own
  --help GROUP, --version

The result holds the dataset's columns, the prompts and the files that they show. It runs without repositories:
  swe-infer dataset=jsonl dataset.path=FILE.jsonl model=gpt-4o     also dataset=parquet and dataset=disk

The same command continues where it was stopped, and a larger dataset.limit appends to the file. A file with another
dataset, context or prompt is refused.

Examples:
  swe-infer-prompts dataset=swebench_lite --out lite.jsonl
  swe-infer-prompts dataset=swebench_verified context=oracle prompt=search_replace model=gpt-4o --out verified.parquet
  swe-infer-prompts dataset=sample context=oracle prompt=style2 --out sample"""

_OUT = "--out: name a file that ends in .jsonl, .jsonl.gz or .parquet, or a directory"
_OTHER_ENDINGS = (".json", ".ndjson", ".csv", ".tsv", ".txt", ".gz", ".zst", ".zip", ".arrow", ".pkl", ".yaml", ".md")
_WINDOWS = (8_192, 16_384, 32_768, 65_536, 131_072, 200_000, 1_000_000)
"""Context windows in tokens."""
_MOST_WAITING = 16
"""Maximum number of prompts in the queue of the token counter."""
_POLL_S = 0.1
_MOST_REASONS = 10


def main() -> int:
    """The console script. Returns the exit status that the README states."""
    try:
        out, arguments = _out_of(sys.argv[1:])
        if {"--help", "-h"} & set(arguments):
            print(_help(arguments))
            return 0
        if "--version" in arguments:
            print(f"swe_infer {__version__}")
            return 0
        _check(arguments)
        if not out:
            raise ConfigError(f"{_OUT}; see --help")
        with written_file(out, "--out") as local:
            place, form = _place_of(out, local)
            cfg = _composed(arguments)
            status = _freeze(cfg, out, place, form, _recorded_run(arguments))
    except SweInferError as error:
        print(f"error: {without_credentials(str(error))}", file=sys.stderr)
        return error.exit_status
    except (OSError, MemoryError) as error:
        message = without_credentials(" ".join(str(error.strerror if isinstance(error, OSError) else error).split()))
        named = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        print(f"error: {named}{message or 'out of memory'}", file=sys.stderr)
        return 1
    if status == 0 and place.exists():
        print(out, flush=True)
    return status


def _out_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Splits the arguments into the value of ``--out`` and the others.

    Raises:
        ConfigError: it has no value, or is given twice.
    """
    found: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--out":
            found.append(next(left, ""))
        elif argument.startswith("--out="):
            found.append(argument.removeprefix("--out="))
        else:
            rest.append(argument)
    if any(not value or value.startswith("-") for value in found):
        raise ConfigError(_OUT)
    if len(found) > 1:
        raise ConfigError(f"--out is given {len(found)} times; name one file or directory")
    return (found[0] if found else None), rest


def _help(arguments: Sequence[str]) -> str:
    topics = [argument for argument in arguments if not argument.startswith("-")]
    if not topics:
        return _HELP
    from swe_infer.cli.help import help_text

    return help_text(topics, config_dir_of(arguments))


def _check(arguments: Sequence[str]) -> None:
    """Checks the arguments that are not ``--out``.

    Raises:
        ConfigError: names the first invalid one.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag in ("-m", "--multirun"):
            raise ConfigError(f"{flag}: swe-infer-prompts writes one set of prompts; run it once for each")
        if flag.startswith("-") and flag not in ("--config-dir", "-cd"):
            if flag in ("-o", "--output", "--output-dir", "--path"):
                raise ConfigError(f"{flag}: no such flag; did you mean --out?")
            check_arguments([argument])
            raise ConfigError(f"{flag}: is a flag of swe-infer alone; see --help")
    check_arguments(arguments)


def _place_of(out: str, place: Path) -> tuple[Path, Format]:
    """The path of the result, and its format.

    Args:
        place: the path that ``out`` names.

    Raises:
        ConfigError: it cannot be written, or its ending names an unsupported format.
    """
    place = place.resolve()
    name = place.name.lower()
    form: Format = "disk"
    for ending in ("jsonl", "jsonl.gz", "parquet"):
        if name.endswith(f".{ending}") and not out.endswith("/"):
            form = ending
    if form == "disk" and (name.endswith(_OTHER_ENDINGS) or not name):
        raise ConfigError(
            f"--out {out}: cannot be written; name a .jsonl, .jsonl.gz or .parquet file, or a directory"
        )
    if form == "disk" and is_remote(out):
        raise ConfigError(
            f"--out {out}: is a directory, which is not uploaded; name a .jsonl, .jsonl.gz or .parquet file"
        )
    if place.exists() and not (place.is_dir() if form == "disk" else place.is_file()):
        wanted = (
            "a directory, as its name has no ending .jsonl, .jsonl.gz or .parquet" if form == "disk" else "a file"
        )
        raise ConfigError(f"--out {out}: exists and is not {wanted}; choose another name")
    return place, form


def _composed(arguments: Sequence[str]) -> DictConfig:
    """Composes the configuration from the arguments.

    Raises:
        ConfigError: a group, option or key does not exist, or a value is invalid.
    """
    from swe_infer.cli.run import composed_run, set_up_logging

    set_up_logging()
    with composed_run(_overrides(arguments), config_dir_of(arguments)) as cfg:
        return cfg


def _overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments that are neither flags nor their values."""
    return [
        argument
        for argument, before in zip(arguments, ("", *arguments), strict=False)
        if not argument.startswith("-") and before not in ("--config-dir", "-cd")
    ]


@dataclass
class _Counter:
    """A token counter that caches the last count, which the length filter and the figures both need."""

    counter: TokenCounter
    _last: tuple[Prompt, int] | None = None

    @property
    def name(self) -> str:
        return self.counter.name

    @property
    def exact(self) -> bool:
        return self.counter.exact

    def __call__(self, prompt: Prompt) -> int:
        if self._last is None or self._last[0] != prompt:
            self._last = (prompt, self.counter(prompt))
        return self._last[1]

    def start(self, prompt: Prompt, pool: ThreadPoolExecutor) -> Future[int]:
        """Counts a prompt in a thread of ``pool``, unless its count is cached."""
        if self._last is None or self._last[0] != prompt:
            return pool.submit(self.counter, prompt)
        done = Future[int]()
        done.set_result(self._last[1])
        return done


def _recorded_run(arguments: Sequence[str]) -> Path | None:
    """The run directory that ``from`` names."""
    from swe_infer.cli.arguments import value_of

    source = value_of("from", _overrides(arguments))
    return None if source is None or source.startswith("wandb:") else readable_path(source, "from")


def _freeze(cfg: DictConfig, out: str, place: Path, form: Format, recorded: Path | None) -> int:
    """Writes the prompts; returns the exit status.

    Args:
        recorded: the directory of a run, whose model may have chosen the files to show.

    Raises:
        ConfigError: the configuration is invalid, or ``out`` was not written by this command.
        OSError: the disk is full or failing.
    """
    from swe_infer import config
    from swe_infer.cli.run_session import prompt_source

    experiment = config.build(cfg)
    if experiment.context.file_requests is not None and recorded is None:
        raise ConfigError(
            f"context={experiment.context.rules.partition('-')[0]}: a model chooses the files, and swe-infer-prompts "
            "sends no request; name a run that has its choices with from=RUN_DIR, or choose another context, such as "
            "context=oracle or context=files"
        )
    plain = config.with_rules(config.resolved(cfg), experiment)
    with ExitStack() as stack:
        counter = _Counter(experiment.runner.token_counter())
        rows = prompt_source(experiment, stack).open(experiment.dataset, counter)
        load_file_choices(rows.file_choices, rows.ids, [] if recorded is None else [recorded])
        selection = select(
            rows, experiment.dataset, count_tokens=counter, reserved_output_tokens=0, context_window=None,
            shard=experiment.shard, order="dataset",
        )  # fmt: skip
        rules = _rules(config.identity(plain), experiment.dataset, counter)
        lines = stack.enter_context(
            PromptLines(place, f"--out {out}", direct=form == "jsonl", rules=rules, locks=experiment.locks)
        )
        was_stopped = form != "jsonl" and lines.path.exists()  # the result may lack lines that are written now
        _open(lines, place, form)
        before = len(lines.ids)
        freezer = _Freezer(lines, selection, counter, experiment.prompt)
        freezer.check_unchanged()
        stop = threading.Event()
        with INTERRUPTS.finishing(stop, says=lambda: "finishing the current prompt"):
            freezer.run(stop)
            lines.sync()
        if stop.is_set():
            print(f"{len(lines.ids):,} prompts are kept in {lines.path}; the same command continues", file=sys.stderr)
            return INTERRUPTED
        if form != "jsonl" and lines.ids:
            _convert(lines, place, form, changed=was_stopped or len(lines.ids) > before or not _is_finished(place))
        freezer.print_figures()
        if lines.ids:
            _print_command(out, form, experiment.prompt, plain["dataset"])
    return 0


def _rules(identity: Mapping[str, Any], dataset: Dataset, counter: TokenCounter) -> dict[str, Any]:
    """The options that decide the rows of a file: dataset, length bounds, context and prompt.

    The shard and ``dataset.limit`` are not among them, as they only add rows. The model is if its tokens are compared
    with a bound.
    """
    rules = {
        key: value
        for key, value in identity.items()
        if key.partition(".")[0] in ("dataset", "context", "prompt", "rules")
    }
    bounds = {f"dataset.{key}": getattr(dataset, key) for key in ("min_tokens", "max_tokens")}
    rules |= {key: value for key, value in bounds.items() if value is not None}
    if any(rules.get(key) is not None for key in ("context.max_tokens", *bounds)):
        rules["token counter"] = counter.name
    return rules


def _is_finished(place: Path) -> bool:
    return place.exists() and not (place.is_dir() and not any(place.iterdir()))


def _open(lines: PromptLines, place: Path, form: Format) -> None:
    """Opens the JSON lines; for a finished file of another format they are recreated first."""
    readers: dict[Format, Callable[[Path], Iterator[dict[str, Any]]]] = {
        "jsonl.gz": export.read_gzip,
        "parquet": export.read_parquet,
        "disk": export.read_disk,
    }
    if form in readers and _is_finished(place):
        try:
            lines.fill(readers[form](place))
        except Exception as error:  # noqa: BLE001 - damaged files raise any error of Arrow, JSON or the OS
            raise StoreError(f"--out {place}: cannot be read ({first_line(error)}); choose another name") from None
    lines.open()


def _convert(lines: PromptLines, place: Path, form: Format, *, changed: bool) -> None:
    """Converts the JSON lines to the result, which replaces the old one atomically.

    A signal stops it; the lines are kept.
    """
    new, old = lines.folder / "new", lines.folder / "old"
    for leftover in (new, old, lines.folder / "new.arrow"):
        remove(leftover)
    writers = {"jsonl.gz": export.write_gzip, "parquet": export.write_parquet, "disk": export.write_disk}
    if changed:
        with INTERRUPTS.stoppable():
            writers[form](lines.path, new)
        with INTERRUPTS.put_off():
            if place.is_dir():
                os.rename(place, old)
            os.rename(new, place)
            remove(old)
    lines.path.unlink()


class _Freezer:
    """Appends the missing prompts of a selection to a file."""

    def __init__(self, lines: PromptLines, selection: Selection, counter: _Counter, renderer: PromptRenderer) -> None:
        self._lines = lines
        self._selection = selection
        self._rows = selection.rows
        self._counter = counter
        self._renderer = renderer
        self._figures = lines.figures()
        self._skips: Counter[str] = Counter()
        self._first_skips: dict[str, str] = {}
        self._waiting: deque[tuple[str, RowFigures, Future[int]]] = deque()
        """Rows of the file whose tokens are being counted."""
        self._tokens = 0
        self._requested = frozenset(self._rows.ids[index] for index in selection.requested)

    def check_unchanged(self) -> None:
        """Compares a few prompts of the file with newly rendered ones.

        Raises:
            StoreError: one differs.
        """
        for index in self._selection.requested:
            instance_id = self._rows.ids[index]
            digest = self._lines.digests.get(instance_id)
            if digest is None or self._rows.fault(index) is not None:
                continue
            if hashlib.sha256(self._rows[index].prompt.question.encode()).hexdigest() != digest:
                raise StoreError(
                    f"{self._lines.label}: its prompt of {instance_id} differs from the one rendered now: the "
                    "dataset, the context or the prompt has changed; choose another name"
                )

    def run(self, stop: threading.Event) -> None:
        """Appends them until ``stop`` is set. Tokens are counted in other threads.

        Raises:
            OSError: the disk is full or failing.
        """
        done = len(self._requested & self._lines.ids)
        progress = Progress(len(self._requested), already_done=done, stream=sys.stderr)
        pool = ThreadPoolExecutor(_counting_threads(), NATIVE)
        with closing(progress):
            try:
                self._count_known(pool, stop)
                for index in self._selection.requested:
                    if stop.is_set():
                        break
                    if self._rows.ids[index] in self._lines.ids:
                        continue
                    skip = self._selection.skip_for(index)
                    if skip is None:
                        self._freeze(index, pool, stop)
                    else:
                        self._skips[skip.reason] += 1
                        self._first_skips.setdefault(skip.reason, f"{self._rows.ids[index]}: {skip.message}")
                    totals = {"skipped": self._skips.total(), "usage": {"output_tokens": self._tokens}}
                    progress.update({}, totals, {})
                self._collect(stop)
            except (RepositoryInterrupted, Stopped):
                pass  # after Ctrl-C the same command fetches and counts again
            finally:
                pool.shutdown(wait=not stop.is_set(), cancel_futures=True)

    def _freeze(self, index: int, pool: ThreadPoolExecutor, stop: threading.Event) -> None:
        """Appends the row of one prompt to the file."""
        instance, row = self._rows[index], self._rows.row(index)
        shown = self._rows.shown(index) if isinstance(self._rows, RenderedRows) else None
        frozen = frozen_row(row, instance, instance.edit_format or self._renderer.edit_format)
        self._lines.append(frozen)
        figures = figures_of(row, frozen[FILES_COLUMN], shown)
        self._count(instance.instance_id, figures, instance.prompt, pool, stop)

    def _count_known(self, pool: ThreadPoolExecutor, stop: threading.Event) -> None:
        """Counts the tokens of rows in the file without a count by this model's tokenizer."""
        known = {key for key, figures in self._figures.items() if figures.counter == self._counter.name}
        missing = (self._requested & self._lines.ids) - known
        if not missing:
            return
        for row in self._lines.rows():
            if stop.is_set():
                return
            if (instance_id := row["instance_id"]) in missing:
                figures = self._figures.get(instance_id) or figures_of(row, files_of(row) or {})
                prompt = prompt_of(row[TEXT_COLUMN], row)
                prompt = replace(prompt, prefill=self._renderer.prefill)
                self._count(instance_id, figures, prompt, pool, stop)

    def _count(
        self, instance_id: str, figures: RowFigures, prompt: Prompt, pool: ThreadPoolExecutor, stop: threading.Event
    ) -> None:
        self._waiting.append((instance_id, figures, self._counter.start(prompt, pool)))
        self._collect(stop, _MOST_WAITING)

    def _collect(self, stop: threading.Event, keep: int = 0) -> None:
        """Stores the figures of counted rows, until at most ``keep`` rows are uncounted, or ``stop`` is set: the next
        command counts the others."""
        while len(self._waiting) > keep:
            while wait([self._waiting[0][2]], _POLL_S).not_done:
                if stop.is_set():
                    return
            instance_id, figures, counting = self._waiting.popleft()
            counted = replace(figures, tokens=counting.result(), counter=self._counter.name)
            self._tokens += counted.tokens
            self._figures[instance_id] = counted
            self._lines.append_figures(instance_id, counted)

    def print_figures(self) -> None:
        """The closing table, to standard error."""
        figures = [self._figures[key] for key in sorted(self._requested & self._lines.ids)]
        rows = [("prompts", f"{len(figures):,} of {len(self._requested):,}")]
        rows += self._token_rows([found.tokens for found in figures])
        with_gold = [found for found in figures if found.gold_files]
        if with_gold:
            pairs = [(found.gold_files_shown, found.gold_files) for found in with_gold]
            rows.append(("gold files", f"{_recall(pairs)} of {len(with_gold):,} prompts"))
            rows += self._budget_rows(with_gold)
        left_out = Counter[str]()
        for found in figures:
            left_out.update(found.left_out)
        rows += [
            ("left out", f"{count:,} file{'s' * (count != 1)}: {why}")
            for why, count in left_out.most_common(_MOST_REASONS)
        ]
        for reason, count in self._skips.most_common(_MOST_REASONS):
            rows.append(("skipped", f"{count:,} {reason}, such as {self._first_skips[reason]}"))
        if others := len(self._lines.ids) - len(figures):
            rows.append(("others", f"{others:,} prompts of earlier commands, which are in the file too"))
        for name, value in rows:
            print(clean(f"  {name:<10} {value}"), file=sys.stderr)

    def _budget_rows(self, figures: Sequence[RowFigures]) -> list[tuple[str, str]]:
        """The recall with lower values of ``context.max_tokens``."""
        rows = []
        for most in BUDGETS:
            pairs = [(found.gold_files_within.get(str(most)), found.gold_files) for found in figures]
            known = [(shown, gold) for shown, gold in pairs if shown is not None]
            if len(known) == len(pairs):
                rows.append((f"{most:,}", f"tokens of files: {_recall(known)}"))
        return rows

    def _token_rows(self, tokens: Sequence[int]) -> list[tuple[str, str]]:
        if not tokens:
            return []
        ordered = sorted(tokens)
        p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        method = f"{'counted' if self._counter.exact else 'estimated'} by {self._counter.name}"
        spread = (
            f"min {ordered[0]:,}, median {statistics.median(ordered):,.0f}, mean {statistics.fmean(ordered):,.0f}, "
            f"p95 {p95:,}, max {ordered[-1]:,}, sum {sum(ordered):,} ({method})"
        )
        above = [(window, sum(count > window for count in ordered)) for window in _WINDOWS]
        over = ", ".join(f"{count:,} above {window:,}" for window, count in above if count)
        return [("tokens", spread), ("windows", over or f"none above {_WINDOWS[0]:,}")]


def _recall(pairs: Sequence[tuple[int, int]]) -> str:
    """The recall of gold files over prompts, each with the number of shown and of all gold files."""
    recall = statistics.fmean(shown / gold for shown, gold in pairs)
    whole = sum(shown == gold for shown, gold in pairs) / len(pairs)
    some = sum(shown > 0 for shown, _ in pairs) / len(pairs)
    return f"recall {recall:.1%}; all of them in {whole:.1%}, any in {some:.1%}"


def _counting_threads() -> int:
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, _MOST_WAITING // 2)


def _print_command(out: str, form: Format, renderer: PromptRenderer, dataset: Mapping[str, Any]) -> None:
    """Prints to standard error how a run uses the result.

    Args:
        dataset: the ``dataset`` group. A run over prompts of a benchmark names it, for the form of its predictions.
    """
    option = {"jsonl": "jsonl", "jsonl.gz": "jsonl", "parquet": "parquet", "disk": "disk"}[form]
    arguments = [f"dataset={option}", f"dataset.path={out}"]
    if benchmark_of(dataset) is not None:
        keys = {key: dataset[key] for key in ("benchmark", "name", "split")}
        given = ["dataset.text_column=text", "context=given", "prompt=given"]
        arguments = [
            "dataset=benchmark",
            f"dataset.path={out}",
            *(f"dataset.{k}={v}" for k, v in keys.items()),
            *given,
        ]
    if renderer.prefill is not None:  # it belongs to the run, because not every model supports it
        arguments.append(f"prompt.prefill={renderer.prefill}")
    print(f"  {'run':<10} swe-infer {quoted(*arguments)}", file=sys.stderr)
