"""The prompts of a comparison, from the datasets that the runs' configurations name, if they are still available.

A dataset is opened with the options in the run's configuration, without Hydra and without a network. Rendered prompts
are rendered again from repositories on this machine. A configuration may be untrusted: only classes of this
project are used, with options of plain types. Files that it names as templates, few-shot examples or lists of paths
are not read, and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from swe_infer.compare.loading import LoadedRun
from swe_infer.context.base import Context
from swe_infer.context.files import FilesContext
from swe_infer.context.given import GivenContext
from swe_infer.context.llm import LlmContext
from swe_infer.context.none import NoContext
from swe_infer.context.oracle import OracleContext
from swe_infer.data.base import TEXT_COLUMN, Rows
from swe_infer.data.benchmark import BenchmarkDataset
from swe_infer.data.choices import load_file_choices
from swe_infer.data.disk import DiskDataset
from swe_infer.data.hub import HubDataset
from swe_infer.data.images import with_images
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.parquet import ParquetDataset
from swe_infer.data.sample import SampleDataset
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import parameters_of
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.selection.base import FilesOfRows, InstanceSelector, recorded_rule
from swe_infer.selection.judge import selector_of
from swe_infer.types import Prompt

_T = TypeVar("_T")

_FOREIGN_DATASET = "the dataset is not of a class of this package, so it is not opened"


@dataclass(frozen=True, slots=True)
class Task:
    """An instance of the dataset.

    Args:
        prompt: None if it cannot be rendered here.
        gold: the gold patch; None if the dataset has none.
        files: the files of the repository that the prompt shows, by path.
    """

    prompt: str | None
    gold: str | None
    files: Mapping[str, str] = field(default_factory=dict)


class PromptSource:
    """Prompts by instance id, without network access.

    If runs have different prompts, those of the first one are returned.

    Args:
        digests: for runs of strangers: the ``prompt_sha256`` of the records of an instance. A task whose prompt has
            another digest, and the content of an unreadable dataset, are not returned: the configuration may name a
            private file. None: every task is returned.

    Attributes:
        notes: why the prompts of a dataset are missing.
    """

    def __init__(self, runs: Iterable[LoadedRun], digests: Callable[[str], Collection[str]] | None = None) -> None:
        self.notes: list[str] = []
        self._digests = digests
        self._rows: list[tuple[Rows, dict[str, int]]] = []
        self._open_repositories = ExitStack()
        seen: list[tuple[Any, ...]] = []
        opened: list[dict[str, Any]] = []
        for run in runs:
            config = run.nested_config
            location = _location_of(config.get("dataset"))
            chosen_by = run.directory if _target_of(config.get("context")) == _LLM else None
            made_by = (location or {}, config.get("context"), config.get("prompt"), chosen_by)
            if location is None or made_by in seen:
                continue
            seen.append(made_by)
            if location in opened:
                self.notes.append(f"The prompts of {run.name} differ from those that are shown.")
            elif self._open(config, run.directory):
                opened.append(location)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_repositories.close()

    def __getitem__(self, instance_id: str) -> Task | None:
        """The task, or None if no available dataset has it."""
        found: Task | None = None
        for rows, indices in self._rows:
            index = indices.get(instance_id)
            if index is None:
                continue
            instance = rows[index] if rows.fault(index) is None else None
            if self._digests is not None and (
                instance is None or instance.prompt.sha256 not in self._digests(instance_id)
            ):
                continue
            gold = _gold(rows, index)
            if instance is not None:
                return Task(instance.prompt.text, gold, instance.files)
            found = Task(None, gold)
        return found

    def gold(self, instance_id: str) -> str | None:
        """The gold patch, without rendering the prompt; None if no available dataset has it."""
        if self._digests is not None:
            task = self[instance_id]
            return None if task is None else task.gold
        for rows, indices in self._rows:
            if (index := indices.get(instance_id)) is not None:
                return _gold(rows, index)
        return None

    def _open(self, config: Mapping[str, Any], directory: Path) -> bool:
        try:
            rows = rendered_rows(config, self._open_repositories, directory)
        except ConfigError as error:
            self.notes.append("No prompts." if self._digests is not None else f"No prompts: {error}")
            return False
        if self._digests is None and not rows.has_known_lengths and (fault := rows.fault(0)) is not None:
            self.notes.append(f"No prompt of {rows.ids[0]}: {fault.message}")
        self._rows.append((rows, {instance_id: index for index, instance_id in enumerate(rows.ids)}))
        return True


def _gold(rows: Rows, index: int) -> str | None:
    gold = rows.row(index).get("patch")
    return gold if isinstance(gold, str) else None


def rendered_rows(config: Mapping[str, Any], repositories: ExitStack, directory: Path) -> Rows:
    """The rows of a run's dataset with the prompts of the run, without network access.

    Where the run's model has chosen the files to show, all of them are shown: tokens are not counted.

    Args:
        config: the run's configuration, which may be untrusted.
        repositories: closes the repositories.
        directory: of the run.

    Raises:
        DataError: they are not available here.
    """
    location = _location_of(config.get("dataset"))
    if location is None:
        raise DataError(_FOREIGN_DATASET)
    context, renderer = _context_of(config.get("context")), _renderer_of(config.get("prompt"))
    rules = config.get("rules")
    rendered = not (context.gives_text and renderer.is_plain)
    converted = _benchmark(location).rules if location["_target_"] == _BENCHMARK else "given"
    for name, now in (("dataset", converted), ("context", context.rules), ("prompt", renderer.rules)):
        recorded = rules.get(name) if isinstance(rules, Mapping) else None
        if rendered and recorded != now and not now.startswith("given"):
            raise DataError(f"the run's prompts were rendered with the rules {name}={str(recorded)[:60]}, not {now}")
    rows = _with_images(_rows(location, context, renderer, repositories), config)
    load_file_choices(rows.file_choices, rows.ids, [directory])
    return rows


def recorded_rows(config: Mapping[str, Any], repositories: ExitStack, directory: Path | None = None) -> Rows:
    """The rows of a run's dataset with the files of their instances, without network access.

    Prompts are not rendered: if the context has a token limit, all its files count as shown.

    Args:
        config: the run's configuration, which may be untrusted.
        repositories: closes the repositories.
        directory: of the run, where its model has chosen the files to show.

    Raises:
        ConfigError: they are not available here.
    """
    location = _location_of(config.get("dataset"))
    if location is None:
        raise DataError(_FOREIGN_DATASET)
    context = _context_of(config.get("context"), unlimited=True)
    rows = _with_images(_rows(location, context, PromptRenderer(style="given"), repositories), config)
    load_file_choices(rows.file_choices, rows.ids, [] if directory is None else [directory])
    return rows


def recorded_column(config: Mapping[str, Any], column: str) -> dict[str, str]:
    """A column of text or numbers of a run's dataset by instance, without network access.

    Args:
        config: the run's configuration, which may be untrusted.

    Raises:
        ConfigError: the dataset is not available here.
    """
    location = _location_of(config.get("dataset"))
    if location is None:
        raise DataError(_FOREIGN_DATASET)
    rows = _open_recorded({**location, "text_column": None})
    if column not in rows.columns:
        return {}
    found = {instance_id: rows.row(index).get(column) for index, instance_id in enumerate(rows.ids)}
    return {name: str(value) for name, value in found.items() if isinstance(value, str | int | float)}


def recorded_selector(config: Mapping[str, Any], repositories: ExitStack, directory: Path) -> InstanceSelector | None:
    """The selection that a run's configuration names, with the files of :func:`recorded_rows`; None if its rule is
    not of this package.

    Args:
        directory: of the run.
    """
    rule = recorded_rule(config)
    if rule is None:
        return None
    return selector_of(rule, FilesOfRows(lambda: recorded_rows(config, repositories, directory)), directory)


def _with_images(rows: Rows, config: Mapping[str, Any]) -> Rows:
    """``rows`` with the images that a run has sent. Runs of earlier versions, without the key, sent none."""
    node = config.get("dataset")
    return with_images(rows, isinstance(node, Mapping) and node.get("images") is True)


def _rows(location: dict[str, Any], context: Context, renderer: PromptRenderer, stack: ExitStack) -> Rows:
    if context.gives_text and renderer.is_plain:
        return _open_recorded(location)
    from swe_infer.prompts.rows import RenderedRows

    repositories = None
    if (options := context.repository_options) is not None:
        from swe_infer.repositories import Repositories

        repositories = stack.enter_context(Repositories(options))
    column = location.get("text_column") or TEXT_COLUMN
    raw = location if context.gives_text else {**location, "text_column": None}
    return RenderedRows(_open_recorded(raw), context, renderer, repositories, _Uncounted(), column)


class _Uncounted:
    """A placeholder: a context with a token limit is refused or has its limit removed."""

    name = "none"
    exact = False

    def __call__(self, prompt: Prompt) -> int:
        return 0


_NO_LIMIT = 1 << 40
_CONTEXTS: Mapping[str, type[Context]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (GivenContext, OracleContext, NoContext, FilesContext, LlmContext)
}
_LLM = f"{LlmContext.__module__}.{LlmContext.__qualname__}"
_RENDERER = f"{PromptRenderer.__module__}.{PromptRenderer.__qualname__}"


def _context_of(node: object, *, unlimited: bool = False) -> Context:
    """The context that a run's configuration names, without network access.

    Args:
        unlimited: remove a limit of tokens; otherwise a context with one is refused, except one whose files a model
            chose.

    Raises:
        DataError: its prompts cannot be rendered here.
    """
    if node is None:  # a run of an earlier version
        return GivenContext()
    target = _target_of(node)
    if not isinstance(node, Mapping) or str(target) not in _CONTEXTS:
        raise DataError(
            f"context={str(target)[:100]} is not a class of this package, so its prompts are not rendered"
        )
    kind = _CONTEXTS[str(target)]
    limit: dict[str, Any] = {}
    if kind is LlmContext:
        limit = {"max_tokens": _NO_LIMIT}
    elif unlimited:
        limit = {"max_tokens": None}
    elif node.get("max_tokens") is not None:
        raise DataError("context.max_tokens needs the model's tokenizer, which is not loaded for recorded runs")
    if node.get("path") is not None:
        raise DataError("context.path names a file, which is not read for recorded runs")
    fixed = {} if kind is GivenContext else {"offline": True, "repository_url": "https://github.com/{repo}.git"}
    return _built(kind, {**node, **fixed, **limit})


def _target_of(node: object) -> object:
    return node.get("_target_") if isinstance(node, Mapping) else None


def _renderer_of(node: object) -> PromptRenderer:
    """The renderer that a run's configuration names.

    Raises:
        DataError: it is another class, or reads files.
    """
    if node is None:
        return PromptRenderer(style="given")
    if not isinstance(node, Mapping) or node.get("_target_") != _RENDERER:
        raise DataError("the prompts are rendered by a class outside this package")
    for key in ("template", "examples"):
        if node.get(key) is not None:
            raise DataError(f"prompt.{key} names a file, which is not read for recorded runs")
    return _built(PromptRenderer, node)


def _built(kind: type[_T], node: Mapping[str, Any]) -> _T:
    """An object of a class of this package, from options whose types are checked."""
    from pydantic import TypeAdapter, ValidationError

    factory: Any = kind
    parameters = parameters_of(factory)
    values = {key: value for key, value in node.items() if key != "_target_" and key in parameters}
    try:
        for key, value in values.items():
            TypeAdapter(parameters[key].hint).validate_python(value, strict=True)
        return kind(**values)
    except (ValidationError, TypeError, ValueError) as error:
        raise DataError(f"the recorded keys of {kind.__name__} do not fit: {type(error).__name__}") from error


_BENCHMARK = f"{BenchmarkDataset.__module__}.{BenchmarkDataset.__qualname__}"
_OPENERS: Mapping[str, Callable[[dict[str, Any]], Rows]] = {
    "swe_infer.data.jsonl.JsonlDataset": lambda keys: JsonlDataset(**keys).open(),
    "swe_infer.data.disk.DiskDataset": lambda keys: DiskDataset(**keys).open(),
    "swe_infer.data.parquet.ParquetDataset": lambda keys: ParquetDataset(**keys).open(),
    "swe_infer.data.sample.SampleDataset": lambda keys: SampleDataset(**keys).open(),
    "swe_infer.data.hub.HubDataset": lambda keys: HubDataset(**keys).open(cached_only=True),
    _BENCHMARK: lambda keys: _benchmark(keys).open(cached_only=True),
}
_LOCATION_KEYS = (
    "path", "name", "split", "subset", "revision", "text_column", "benchmark", "files", "interface",
)  # fmt: skip


def _benchmark(keys: Mapping[str, Any]) -> BenchmarkDataset:
    files = keys.get("files")
    return _built(BenchmarkDataset, {**keys, "files": tuple(files) if isinstance(files, list) else files})


def _location_of(node: object) -> dict[str, Any] | None:
    """The keys of a ``dataset`` node that locate the dataset; None for a class that is not of this project.

    The node may be untrusted, so no other key is used and no other class is imported.
    """
    if not isinstance(node, Mapping) or str(node.get("_target_")) not in _OPENERS:
        return None
    location = {key: node[key] for key in ("_target_", *_LOCATION_KEYS) if node.get(key) is not None}
    return {**location, "text_column": node["text_column"]} if "text_column" in node else location


def _open_recorded(location: Mapping[str, Any]) -> Rows:
    """Opens the dataset of :func:`_location_of`; a dataset of the hub from its cache alone.

    Raises:
        DataError: the dataset is not available, or its keys are invalid.
    """
    keys = {key: value for key, value in location.items() if key != "_target_"}
    try:
        return _OPENERS[location["_target_"]](keys)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the recorded keys of {location['_target_']} are invalid: {error}") from error
