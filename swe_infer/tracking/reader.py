"""The guest that downloads runs from W&B, see :mod:`swe_infer.tracking.guest`.

The request contains the addresses, the cache, and a folder for temporary files of the SDK. The replies are ``run``
and ``skipped``.

A finished run has logged its files as an artifact of type ``predictions``, which is a run directory. If that is
deleted, its table of predictions is used, which lacks answers and failed attempts and truncates long patches.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from swe_infer.run_directory import layout
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.tracking.guest import Reply, Requests, connect, one_line
from swe_infer.tracking.metrics import COLUMNS, record_of_row

if TYPE_CHECKING:
    from wandb.apis.public import Run
    from wandb.sdk.artifacts.artifact import Artifact

_COMPLETE = "found.json"  # marks a complete download
_NOT_READY = "has no predictions"


def serve(requests: Requests, reply: Reply) -> None:
    """Download the runs in the request."""
    request = next(requests)
    with _error_prefix("W&B"):
        reader = _Reader(Path(request["cache"]), Path(request["folder"]))
    for number, (entity, project, kind, name, shown) in enumerate(request["addresses"]):
        with _error_prefix(shown):
            for message in reader.read(entity, project, kind, name):
                if "run" in message:
                    message["run"]["address_index"] = number
                reply(**message)


@contextmanager
def _error_prefix(what: str) -> Iterator[None]:
    """Prefix the message of an exception."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{what}: {one_line(error)}") from error


class _Reader:
    """Downloads runs into the cache."""

    def __init__(self, cache: Path, folder: Path) -> None:
        self._api = connect()
        self._cache = cache
        self._folder = folder

    def read(
        self, entity: str, project: str, kind: Literal["run", "project", "group", "sweep"], name: str | None
    ) -> Iterator[dict[str, Any]]:
        """Yields the replies for one address."""
        if kind == "run":
            try:
                run = self._api.run(f"{entity}/{project}/{name}")
            except Exception as error:
                if "Could not find run" in str(error):
                    raise LookupError("there is no such run") from None
                raise
            yield {"run": self._download(run, entity, project)}
            return
        filters: dict[str, Any] = {} if kind == "project" else {kind: name}
        count = 0
        for run in self._api.runs(f"{entity}/{project}", filters=filters, order="+created_at", lazy=False):
            count += 1
            try:
                yield {"run": self._download(run, entity, project)}
            except LookupError as error:
                if getattr(run, "job_type", None) == "sweep":  # a summary of others
                    continue
                yield {"skipped": f"{_address(run, entity, project)} ({run.state}) {error.args[0]}."}
        if not count:
            raise LookupError("there are no such runs")

    def _download(self, run: Run, entity: str, project: str) -> dict[str, Any]:
        """Download a run; returns the fields of :class:`~swe_infer.tracking.download.DownloadedRun`.

        Raises:
            LookupError: it has no predictions.
        """
        host = urlsplit(self._api.settings["base_url"]).netloc.rpartition("@")[2]
        parts = (host, entity, project, run.id)
        if not all(part.strip(".") for part in parts):
            raise LookupError(f"has an id that cannot name a folder ({run.id})")
        folder = self._cache.joinpath(*(quote(part, safe="") for part in parts))
        artifact = max(
            (a for a in run.logged_artifacts() if a.type == "predictions" and a.state == "COMMITTED"),
            key=lambda a: str(a.created_at),
            default=None,
        )
        if artifact is not None:
            version = folder / quote(f"{artifact.version}-{artifact.digest}", safe="")
            remark = self._cached(version, lambda target: self._download_artifact(run, artifact, target))
        else:
            table = run.summary_metrics.get("predictions")
            if not isinstance(table, Mapping) or not table.get("path"):
                raise LookupError(_NOT_READY)
            version = folder / quote(f"table-{table.get('sha256')}", safe="")
            remark = self._cached(version, lambda target: self._download_table(run, str(table["path"]), target))
        return {
            "address": _address(run, entity, project),
            "name": str(run.name or run.id),
            "directory": str(version),
            "remark": remark,
        }

    def _cached(self, version: Path, download: Any) -> str | None:
        """Create ``version`` with ``download(directory)`` unless it is cached; returns the remark of ``download``."""
        if not (version / _COMPLETE).is_file():
            target = Path(tempfile.mkdtemp(dir=self._folder))
            remark = download(target)
            (target / _COMPLETE).write_text(json.dumps({"remark": remark}), encoding="utf-8")
            version.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(version, ignore_errors=True)
            target.rename(version)
        marker: dict[str, str | None] = json.loads((version / _COMPLETE).read_text(encoding="utf-8"))
        return marker["remark"]

    def _download_artifact(self, run: Run, artifact: Artifact, target: Path) -> str | None:
        # A reference may point to any local file or URL.
        if any(entry.ref is not None for entry in artifact.manifest.entries.values()):
            raise LookupError(f"{_NOT_READY} ({artifact.name} refers to files elsewhere)")
        # Not skip_cache=True: with it the SDK mixes up files that are downloaded in parallel.
        artifact.download(root=str(target))
        if not layout.has_records(target):
            raise LookupError(f"{_NOT_READY} ({artifact.name} has no {layout.RECORDS})")
        self._complete(run, target)
        completed = (record for record in RunDirectory(target).records() if record["status"] == "completed")
        answered = next(completed, None)
        if answered is None or answered.get("full_output") is not None:
            return None
        return "from W&B without full answers (tracker.log_answers=false)"

    def _download_table(self, run: Run, path: str, target: Path) -> str:
        run.file(path).download(root=str(self._folder), replace=True).close()
        table = json.loads((self._folder / path).read_text(encoding="utf-8"))
        indices = [table["columns"].index(name) for name in COLUMNS]
        with (target / layout.RECORDS).open("w", encoding="utf-8") as file:
            for row in table["data"]:
                file.write(json.dumps(record_of_row([row[index] for index in indices])) + "\n")
        self._complete(run, target)
        note = run.summary_metrics.get("predictions_note")
        return "from its table: no answers, no failed attempts, long patches truncated" + (
            f"; {note}" if note else ""
        )

    def _complete(self, run: Run, target: Path) -> None:
        """Create a missing configuration or summary from the run's data on the server."""
        if not (target / layout.CONFIG).is_file():  # JSON is YAML
            config = {key: value for key, value in run.config.items() if key != "provenance"}
            (target / layout.CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        if not (target / layout.SUMMARY).is_file():
            summary: dict[str, Any] = {
                key: value for key, value in run.summary_metrics.items() if isinstance(value, int | float)
            }
            summary["wall_s"] = summary.get("elapsed_s")
            (target / layout.SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")


def _address(run: Run, entity: str, project: str) -> str:
    return f"wandb:{entity}/{project}/{run.id}"
