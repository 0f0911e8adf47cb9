"""A dataset of the Hugging Face hub (``dataset=hub`` and the SWE-bench presets)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from swe_infer.data.arrow import ArrowRows, revision_of
from swe_infer.data.base import DatasetOptions, Rows
from swe_infer.data.normalise import Normaliser
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
    """A dataset by its name on the hub, or on the mirror in ``HF_ENDPOINT``; cached under ``HF_HOME``.

    A private or gated one needs ``HF_TOKEN`` in the environment. Code in a repository is never run.
    """

    name: Annotated[str, Option("The name on the hub, such as princeton-nlp/SWE-bench_oracle.", "answer")]
    split: Annotated[str, Option("The split.", "answer")] = "test"
    subset: Annotated[str | None, Option("The configuration's name, if the dataset has several.", "answer")] = None
    revision: Annotated[str | None, Option("A branch, tag or commit; null: the newest.", "answer")] = None

    _local: ClassVar[str] = "dataset=jsonl, parquet and disk read local files"
    """How to read the dataset without the hub."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_hub_name(self.name):
            raise ConfigError(f"dataset.name={self.name!r}: should be a name on the hub, such as owner/dataset")
        if self.revision is not None and not is_revision(self.revision):
            raise ConfigError(f"dataset.revision={self.revision!r}: should be a branch, tag or commit, such as main")
        if not self.split:
            raise ConfigError("dataset.split is empty: name one, such as test")

    def open(self, *, cached_only: bool = False) -> Rows:
        """Loads the dataset from the hub, or from the cache if ``cached_only`` or the hub does not respond."""
        return self._open_table(cached_only)

    def _open_table(self, cached_only: bool, normaliser: Normaliser | None = None) -> ArrowRows:
        _log.info(
            "loading %s (%s) from %s", self.name, self.split, "the cache" if cached_only else "the hub or its cache"
        )
        table = self._load(cached_only)
        rows = ArrowRows(table, self.text_column, f"{self.name} ({self.split})", normaliser)
        rows.revision = revision_of(table)
        _log.info("%s: commit %s", self.name, rows.revision or "unknown")
        return rows

    def _load(self, cached_only: bool) -> datasets.Dataset:
        if os.path.exists(self.name):
            # The library would load the folder instead, silently.
            raise DataError(f"dataset.name={self.name} is also a local path: dataset=disk or parquet reads that")
        import datasets

        datasets.disable_progress_bars()
        try:
            online = not cached_only and self._is_hub_reachable()
            with _offline(not online):
                loaded = datasets.load_dataset(self.name, self.subset, split=self.split, revision=self.revision)
        except Exception as error:  # the library passes errors of HTTP, Arrow and the OS through
            raise DataError(self._explain(error)) from error
        assert isinstance(loaded, datasets.Dataset)
        if not online and self.revision is not None and not self._is_of_revision(loaded):
            raise DataError(
                f"dataset.revision={self.revision} of {self.name} is not available: the hub does not respond, and "
                "the cache has another commit (only a full commit hash can be compared)"
            )
        return loaded

    def _is_of_revision(self, loaded: datasets.Dataset) -> bool:
        """Whether a cached table is of ``revision``. Without the hub the library loads any cached one."""
        return any(self.revision in Path(file["filename"]).parts for file in loaded.cache_files)

    def _is_hub_reachable(self) -> bool:
        """Whether the hub responds. Without this check the library would retry for 24 s.

        Raises:
            HfHubHTTPError: the dataset or revision does not exist.
        """
        import huggingface_hub
        from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

        try:
            huggingface_hub.HfApi().dataset_info(self.name, revision=self.revision, timeout=_PROBE_S)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except (OfflineModeIsEnabled, OSError) as error:
            return _status(error) is not None  # for any response, even a 500, the library's own retries help
        except Exception as error:
            if type(error).__module__.split(".")[0].startswith("httpx"):
                return False
            raise
        return True

    def _explain(self, error: Exception) -> str:
        """An error of ``datasets`` or ``huggingface_hub`` as one line for the user."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        endpoint = without_credentials(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").replace("***@", "")
        reason = without_credentials(first_line(error))
        if "Unknown split" in reason:
            return f"{self.name} has no split {self.split!r}: {reason}"
        if "BuilderConfig" in reason or "Config name is missing" in reason:
            return f"dataset.subset={self.subset} is not valid for {self.name}: {reason}"
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
                f"does not respond or offline mode is on; {self._local}"
            )
        return f"dataset.name={self.name} cannot be loaded: {type(error).__name__}: {reason}"


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error's response; None without a response."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


@contextmanager
def _offline(active: bool) -> Iterator[None]:
    """Makes ``datasets`` use its cache alone. It reads the environment variable for that only at import."""
    import datasets.config
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    if active:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
