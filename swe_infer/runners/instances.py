"""The instances of a run: its rows, with the prompts that they are rendered to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swe_infer.conf_files import suggestion
from swe_infer.data.base import TEXT_COLUMN, Dataset, Rows
from swe_infer.data.images import with_images
from swe_infer.data.select import Selection, select
from swe_infer.errors import ConfigError
from swe_infer.run_directory.asked import Coverage
from swe_infer.runners.base import Runner
from swe_infer.types import DataShard, Prompt, TokenCounter

if TYPE_CHECKING:
    from swe_infer.context.base import Context
    from swe_infer.prompts.prompt import PromptRenderer
    from swe_infer.repositories import Repositories


class _LazyCounter:
    """Loads the runner's token counter when the first prompt is counted. A finished run never loads it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._counter: TokenCounter | None = None

    def _loaded(self) -> TokenCounter:
        if self._counter is None:
            self._counter = self._runner.token_counter()
        return self._counter

    @property
    def name(self) -> str:
        return self._loaded().name

    @property
    def exact(self) -> bool:
        return self._loaded().exact

    def __call__(self, prompt: Prompt) -> int:
        return self._loaded()(prompt)


@dataclass(frozen=True, slots=True)
class PromptSource:
    """How the prompts of a run are rendered from its rows.

    Args:
        repositories: None if the context reads none.
    """

    context: Context
    renderer: PromptRenderer
    repositories: Repositories | None

    def open(self, dataset: Dataset, count_tokens: TokenCounter) -> Rows:
        """The rows of a dataset with their prompts.

        Raises:
            ConfigError: no row has a column that the context or the prompt needs.
            DataError: the dataset cannot be read.
        """
        if self.context.gives_text and self.renderer.is_plain:
            return with_images(dataset.open(), dataset.images)
        from swe_infer.prompts.rows import RenderedRows

        raw = (dataset if self.context.gives_text else dataset.without_prompts()).open()
        for name, option in {**self.context.required_columns, **self.renderer.required_columns}.items():
            if name not in raw.columns:
                raise ConfigError(f"{option}: the dataset has no column {name!r}{suggestion(name, raw.columns)}")
        column = dataset.text_column or TEXT_COLUMN
        rendered = RenderedRows(raw, self.context, self.renderer, self.repositories, count_tokens, column)
        return with_images(rendered, dataset.images)


def select_instances(
    runner: Runner,
    dataset: Dataset,
    shard: DataShard,
    prompts: PromptSource | None = None,
    rows: Rows | None = None,
) -> Selection:
    """The instances of a run, in the runner's order. Prompts are counted lazily.

    Args:
        prompts: None: the rows' own prompts are used.
        rows: the opened dataset with its prompts; None: it is opened.

    Raises:
        DataError: the dataset cannot be read.
    """
    counter = _LazyCounter(runner)
    if rows is None:
        rows = with_images(dataset.open(), dataset.images) if prompts is None else prompts.open(dataset, counter)
    return select(
        rows,
        dataset,
        count_tokens=counter,
        reserved_output_tokens=runner.decoding.max_new_tokens,
        context_window=runner.context_window,
        shard=shard,
        order=runner.order,
        image_fault=runner.image_fault,
    )


def coverage_of(selection: Selection, turns: int = 0) -> Coverage:
    """The instances and length bounds of a selection, with a number of further turns."""
    ids = tuple(selection.rows.ids[index] for index in sorted(selection.requested))
    return Coverage(ids, selection.lengths.min_tokens, selection.lengths.max_tokens, turns=turns)
