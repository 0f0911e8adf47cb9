"""A dataset of the Hugging Face hub (``dataset=hub`` and the presets of SWE-bench)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from swe_infer.data.arrow import ArrowRows
from swe_infer.data.base import DatasetOptions
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.redaction import without_credentials
from swe_infer.resources import is_hub_name, is_revision
from swe_infer.text import first_line

if TYPE_CHECKING:
    import datasets

_log = logging.getLogger(__name__)
_PROBE_S = 10.0  # seconds to wait for the hub's first answer


@dataclass(frozen=True, kw_only=True)
class HubDataset(DatasetOptions):
    """A dataset by its name on the hub, or on the mirror that ``HF_ENDPOINT`` names; cached under ``HF_HOME``.

    A private or gated one needs ``HF_TOKEN`` in the environment. Code that a repository holds is never run.
    """

    name: Annotated[str, Option("Its name on the hub, such as princeton-nlp/SWE-bench_oracle.", "answer")]
    split: Annotated[str, Option("Which split.", "answer")] = "test"
    subset: Annotated[str | None, Option("The configuration's name, where the dataset has several.", "answer")] = None
    revision: Annotated[str | None, Option("A branch, tag or commit; null: the newest.", "answer")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_hub_name(self.name):
            raise ConfigError(f"dataset.name={self.name!r}: should be a name on the hub, such as owner/dataset")
        if self.revision is not None and not is_revision(self.revision):
            raise ConfigError(f"dataset.revision={self.revision!r}: should be a branch, tag or commit, such as main")
        if not self.split:
            raise ConfigError("dataset.split is empty: name one, such as test")

    def open(self, *, cached_only: bool = False) -> ArrowRows:
        """Load it, from the cache where that is asked for or the hub does not answer."""
        _log.info(
            "loading %s (%s) from %s", self.name, self.split, "the cache" if cached_only else "the hub or its cache"
        )
        return ArrowRows(self._load(cached_only), self.text_column, f"{self.name} ({self.split})")

    def _load(self, cached_only: bool) -> datasets.Dataset:
        if os.path.exists(self.name):
            # The library would take the folder for the dataset, without a word.
            raise DataError(f"dataset.name={self.name} is also a local path: dataset=disk or parquet reads that")
        import datasets

        datasets.disable_progress_bars()
        try:
            answers = not cached_only and self._hub_answers()
            with _offline(not answers):
                loaded = datasets.load_dataset(self.name, self.subset, split=self.split, revision=self.revision)
        except Exception as error:  # the library lets through what HTTP, Arrow and the OS raise
            raise DataError(self._explain(error)) from error
        assert isinstance(loaded, datasets.Dataset)
        if not answers and self.revision is not None and not self._is_of_revision(loaded):
            raise DataError(
                f"dataset.revision={self.revision} of {self.name} cannot be had: the hub does not answer, and the "
                "cache holds another commit (or the revision is no full commit hash, which alone can be compared)"
            )
        return loaded

    def _is_of_revision(self, loaded: datasets.Dataset) -> bool:
        """Whether a cached table was made from ``revision``; without the hub the library takes any that it finds."""
        return any(self.revision in Path(file["filename"]).parts for file in loaded.cache_files)

    def _hub_answers(self) -> bool:
        """Ask once whether the hub has the dataset. Without it the library would knock for 24 s at a closed door.

        Raises:
            HfHubHTTPError: the hub answers that there is no such dataset or revision.
        """
        import huggingface_hub
        from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

        try:
            huggingface_hub.HfApi().dataset_info(self.name, revision=self.revision, timeout=_PROBE_S)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except (OfflineModeIsEnabled, OSError) as error:
            return _status(error) is not None  # an answer, even a 500, is worth the library's own tries
        except Exception as error:
            if type(error).__module__.split(".")[0].startswith("httpx"):
                return False
            raise
        return True

    def _explain(self, error: Exception) -> str:
        """One line that says what to do about an error of ``datasets`` or ``huggingface_hub``."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        endpoint = without_credentials(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").replace("***@", "")
        reason = without_credentials(first_line(error))
        if "Unknown split" in reason:
            return f"{self.name} has no split {self.split!r}: {reason}"
        if "BuilderConfig" in reason or "Config name is missing" in reason:
            return f"dataset.subset={self.subset} does not fit {self.name}: {reason}"
        if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"}:
            return (
                f"dataset.name={self.name} (revision {self.revision or 'main'}) was not found at {endpoint}; a "
                "private or gated one needs an HF_TOKEN that may read it"
            )
        if kinds & {
            "ConnectionError",
            "OfflineModeIsEnabled",
            "TransportError",
            "TimeoutError",
            "LocalEntryNotFoundError",
        }:
            return (
                f"dataset.name={self.name} could not be fetched from {endpoint}, and is not in the cache: the hub "
                "does not answer or offline mode is on; dataset=jsonl, parquet and disk read local files"
            )
        return f"dataset.name={self.name} cannot be loaded: {type(error).__name__}: {reason}"


def _status(error: BaseException) -> int | None:
    """The HTTP status of the answer that an error carries, None where there was no answer."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


@contextmanager
def _offline(active: bool) -> Iterator[None]:
    """Make ``datasets`` use its cache alone. Its switch is read from the environment at import only, hence this."""
    import datasets.config
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    if active:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
