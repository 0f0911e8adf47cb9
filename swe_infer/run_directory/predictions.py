"""The predictions files of a run, in the format of the official harness.

With one sample for each instance there is one file. With several, each sample has a file, and ``predictions.jsonl``
contains the selected answer of each instance, with the reason. A selection is made again only if the rule or a
candidate has changed: its line states a digest of the candidates.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from swe_infer.errors import StoreError
from swe_infer.files import OpenFiles, create_beside, open_regular, replacing, write_whole
from swe_infer.harnesses import PredictionsForm
from swe_infer.run_directory import layout
from swe_infer.run_directory.records import LONGEST_LINE, Key, Record, key_of
from swe_infer.text import bounded_json
from swe_infer.types import MAX_SAMPLES

log = logging.getLogger(__name__)

_LONGEST_REASON = 500
_MANY = 50
"""A selection for this many instances may take time, and is logged."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that can be selected.

    Args:
        patch: empty if the answer contains none.
        patch_status: see :data:`swe_infer.types.PatchStatus`.
        run: the name of its run, if there are candidates of several runs.
    """

    sample: int
    patch: str
    patch_status: str | None
    run: str | None = None

    @property
    def applies(self) -> bool:
        """Whether the patch is known to apply."""
        return self.patch_status in ("applies", "repaired")

    def __str__(self) -> str:
        return f"sample {self.sample}" if self.run is None else f"sample {self.sample} of {self.run}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer that a rule selects.

    Args:
        index: of the candidate.
        reason: one line.
        votes: number of candidates with the same result; None if the rule does not count votes.
        share: ``votes`` divided by the candidates that voted.
        rule: the name of another rule that selected instead of the selector's. Every start selects again then.
    """

    index: int
    reason: str
    votes: int | None = None
    share: float | None = None
    rule: str | None = None


class Selector(Protocol):
    """Selects the answer of an instance that is submitted."""

    @property
    def name(self) -> str:
        """The rule."""
        ...

    def select(self, instance_id: str, candidates: Sequence[Candidate]) -> Choice | None:
        """Selects one of the candidates, which are at least one and in the order of their samples; None: the instance
        is not submitted. Does not raise."""
        ...


@dataclass(frozen=True, slots=True)
class Selected:
    """The selected answer of an instance, as its line states it.

    Args:
        candidates: number of answers to select from.
        digest: identifies the candidates.
    """

    sample: int
    patch_status: str | None
    rule: str
    reason: str
    candidates: int
    digest: str
    votes: int | None = None
    share: float | None = None

    def fields(self) -> dict[str, Any]:
        """The keys of the line in addition to those of every prediction."""
        votes = {} if self.votes is None else {"votes": self.votes, "share": self.share}
        return {
            "sample": self.sample,
            "selected_by": self.rule,
            "reason": self.reason,
            **votes,
            "candidates": self.candidates,
            "candidates_digest": self.digest,
        }


def read_selected(directory: Path) -> dict[str, Selected]:
    """The selected answer of each instance. Empty for a run with one sample for each instance, or of an earlier
    version. Invalid lines are left out. A line that is too long ends the reading, because a sparse file has no end.

    Raises:
        OSError: the file cannot be read.
    """
    found: dict[str, Selected] = {}
    try:
        file = os.fdopen(open_regular(directory / layout.PREDICTIONS), "rb")
    except FileNotFoundError:
        return found
    with file:
        while (line := file.readline(LONGEST_LINE)) and len(line) < LONGEST_LINE:
            try:
                entry = bounded_json(line)
                found[str(entry["instance_id"])] = _selected(entry)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return found


def _selected(entry: Mapping[str, Any]) -> Selected:
    """Raises KeyError or TypeError if a line states no valid selection."""
    sample, count, votes, share = entry["sample"], entry["candidates"], entry.get("votes"), entry.get("share")
    if any(type(number) is not int for number in (sample, count)) or not 0 <= sample < MAX_SAMPLES:
        raise TypeError("not a number of a sample")
    if votes is not None and (type(votes) is not int or not isinstance(share, int | float) or not 0 <= share <= 1):
        raise TypeError("not a number of votes")
    status = entry.get("patch_status")
    return Selected(
        sample,
        None if status is None else str(status),
        str(entry["selected_by"]),
        str(entry["reason"])[:_LONGEST_REASON],
        count,
        str(entry["candidates_digest"]),
        votes,
        share,
    )


def digest_of(candidates: Mapping[Any, bytes]) -> str:
    """Identifies candidates by their keys and :func:`answer_digest`."""
    parts = [f"{key}\0".encode(errors="surrogatepass") + digest for key, digest in sorted(candidates.items())]
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


def answer_digest(patch: str, patch_status: str | None) -> bytes:
    """Identifies what a rule reads of an answer."""
    text = f"{patch_status}\0{patch}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def prediction(record: Record, label: str) -> dict[str, Any]:
    """The prediction of a completed record.

    Args:
        label: ``model_name_or_path``.
    """
    return {
        "instance_id": record["instance_id"],
        "model_name_or_path": label,
        "model_patch": record["model_patch"] or "",
        "patch_status": record.get("patch_status"),
        "finish_reason": record.get("finish_reason"),
    }


@dataclass(frozen=True, slots=True)
class _Answer:
    """A line in the predictions file of a sample: its offset in bytes, and :func:`answer_digest`."""

    offset: int
    digest: bytes


class PredictionFiles:
    """Writes the predictions files of one run directory. The caller must have locked it.

    Args:
        label: ``model_name_or_path`` of the predictions.
        selector: None: recorded selections are kept as long as their candidates do not change; sample 0 is selected
            for other instances.
        samples: samples of each instance; None: as many as have records.
    """

    def __init__(self, directory: Path, label: str, selector: Selector | None, samples: int | None) -> None:
        self.several = samples is not None and samples > 1
        """Whether there are several samples for each instance."""
        self.selected: dict[str, Selected] = {}
        """The selected answer of each instance with a line in ``predictions.jsonl``, with several samples."""
        self.revision = 0
        """Changes whenever :attr:`selected` does."""
        self.changed = False
        """Whether a selection of an earlier command has changed."""
        self._directory = directory
        self._label = label
        self._selector = selector
        self._samples = samples
        self._files = OpenFiles(buffering=0)
        self._paths: dict[str, Path] = {}
        """By name: joining paths takes longer than writing a line."""
        self._late: list[tuple[Key, bytes, bytes]] = []
        """Keys and lines that are not written yet, and with several samples digests."""
        self._answers: dict[str, dict[int, _Answer]] = {}
        self._unselected: set[str] = set()
        """Instances whose candidates have changed since the selection."""
        self._is_loaded = False

    def close(self) -> None:
        """Make the selections that are still to be made, if possible, and close the files."""
        with contextlib.suppress(OSError):  # the next command selects again
            if self._unselected:
                self._rewrite_selected()
        self._files.close()

    @contextlib.contextmanager
    def rewriting(self) -> Iterator[Callable[[Record], object]]:
        """Yields a function that writes the prediction of a record. On exit the new files replace all old ones,
        except the one of the selected answers. :meth:`select` must follow.

        Raises:
            OSError: a file cannot be written; the old ones are unchanged.
        """
        files = OpenFiles()
        new: dict[int, Path] = {}
        answers: dict[str, dict[int, _Answer]] = {}

        def file_of(sample: int) -> IO[bytes]:
            if sample not in new:
                descriptor, new[sample] = create_beside(self._path(sample))
                os.close(descriptor)
            return files.get(new[sample])

        def write(record: Record) -> None:
            (instance_id, sample), file = key_of(record), file_of(record["sample"])
            answer = _Answer(file.tell(), _record_digest(record))
            file.write(json_line(prediction(record, self._label)))
            answers.setdefault(instance_id, {})[sample] = answer

        try:
            if not self._is_loaded:
                self.selected, self._is_loaded = read_selected(self._directory), True
            file_of(0)
            yield write
            files.close()
            self._files.close()
            for sample, path in new.items():
                os.replace(path, self._path(sample))
            current = {self._path(sample) for sample in new}
            for path in layout.predictions(self._directory):
                if path not in current and (not self.several or path.name != layout.PREDICTIONS):
                    path.unlink()
        except BaseException:
            with contextlib.suppress(OSError):
                files.close()  # the disk may be too full for the buffered data
            for path in new.values():
                path.unlink(missing_ok=True)
            raise
        self._answers, self._late, self._unselected = answers if self.several else {}, [], set()

    def select(self) -> None:
        """Select an answer of each instance.

        Raises:
            OSError: a file cannot be written.
        """
        if self.several:
            self._rewrite_selected()
        else:
            self.selected = {}

    def append(self, record: Record, *, is_complete: bool) -> None:
        """Append the prediction of a completed record. If that fails, it is retried with the next one.

        Args:
            is_complete: every sample of the instance has a record now, so that one can be selected.
        """
        line = json_line(prediction(record, self._label))
        self._late.append((key_of(record), line, _record_digest(record) if self.several else b""))
        self._write_late()
        if is_complete and self.several and not self._late:
            self._append_selected(record["instance_id"])

    def complete(self, instance_id: str) -> None:
        """Select an answer of an instance whose last sample has no answer."""
        if instance_id in self._unselected and not self._late:
            self._append_selected(instance_id)

    def candidates(self, instance_id: str) -> list[Candidate]:
        """The answers to an instance, in the order of the samples. Raises OSError."""
        samples = sorted(self._answers.get(instance_id, ()))
        return [self._candidate(instance_id, sample) for sample in samples]

    def reconsider(self, instance_id: str) -> None:
        """Select an answer of an instance again with the next :meth:`flush`."""
        if instance_id in self._answers:
            self._unselected.add(instance_id)

    def flush(self) -> None:
        """Write what could not be written before, and make the selections that are still to be made.

        Raises:
            StoreError: a file cannot be written.
        """
        self._write_late()
        if self._late:
            raise StoreError(f"{self._path(self._late[0][0][1])}: cannot be written")
        if self._unselected:
            try:
                self._rewrite_selected()
            except OSError as error:
                path = self._directory / layout.PREDICTIONS
                raise StoreError(f"{path}: cannot be written ({error.strerror})") from None

    def _path(self, sample: int) -> Path:
        name = layout.predictions_name(sample, several=self.several)
        if (path := self._paths.get(name)) is None:
            path = self._paths[name] = self._directory / name
        return path

    def _write_late(self) -> None:
        while self._late:
            (instance_id, sample), line, digest = self._late[0]
            try:
                file = self._files.get(self._path(sample))
                offset = os.fstat(file.fileno()).st_size if self.several else 0
                if write_whole(file.fileno(), line) is not None:
                    return
            except OSError:
                return
            del self._late[0]
            if self.several:
                self._answers.setdefault(instance_id, {})[sample] = _Answer(offset, digest)
                self._unselected.add(instance_id)

    def _append_selected(self, instance_id: str) -> None:
        if instance_id in self.selected:
            return  # flush() replaces its line
        try:
            selected = self._select(instance_id)
            if selected is not None:
                file = self._files.get(self._directory / layout.PREDICTIONS)
                if write_whole(file.fileno(), self._selected_line(instance_id, selected)) is not None:
                    return
                self.selected[instance_id] = selected
                self.revision += 1
            self._unselected.discard(instance_id)
        except OSError:
            return  # flush() tries again

    def _rewrite_selected(self) -> None:
        """Replace ``predictions.jsonl``. Raises OSError."""
        path, before = self._directory / layout.PREDICTIONS, self.selected
        count = sum(self._kept(instance_id) is None for instance_id in self._answers)
        if count >= _MANY and self._selector is not None:
            log.info("selecting an answer to each of %d instances by %s", count, self._selector.name)
        found = {instance_id: self._select(instance_id) for instance_id in self._answers}
        selected = {instance_id: one for instance_id, one in found.items() if one is not None}
        descriptor, new = create_beside(path)
        try:
            with open(descriptor, "wb") as file:
                for instance_id, one in selected.items():
                    file.write(self._selected_line(instance_id, one))
            self._files.close()
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        self.changed = self.changed or any(selected.get(name) != one for name, one in before.items())
        self.selected, self._unselected = selected, set()
        self.revision += 1

    def _digest(self, instance_id: str) -> str:
        return digest_of({sample: answer.digest for sample, answer in self._answers[instance_id].items()})

    def _kept(self, instance_id: str) -> Selected | None:
        """The selection that was made before from the same candidates by the same rule, or None."""
        before = self.selected.get(instance_id)
        if before is None or before.sample not in self._answers[instance_id]:
            return None
        if self._selector is not None and before.rule != self._selector.name:
            return None
        return before if before.digest == self._digest(instance_id) else None

    def _select(self, instance_id: str) -> Selected | None:
        if (kept := self._kept(instance_id)) is not None:
            return kept
        candidates = self.candidates(instance_id)
        selector = self._selector
        choice = first_sample(candidates) if selector is None else selector.select(instance_id, candidates)
        if choice is None:
            return None
        one = candidates[choice.index]
        return Selected(
            one.sample,
            one.patch_status,
            choice.rule or ("first" if selector is None else selector.name),
            choice.reason[:_LONGEST_REASON],
            len(candidates),
            self._digest(instance_id),
            choice.votes,
            choice.share,
        )

    def _candidate(self, instance_id: str, sample: int) -> Candidate:
        line = self._line(instance_id, sample)
        return Candidate(sample, line["model_patch"], line["patch_status"])

    def _selected_line(self, instance_id: str, selected: Selected) -> bytes:
        return json_line({**self._line(instance_id, selected.sample), **selected.fields()})

    def _line(self, instance_id: str, sample: int) -> dict[str, Any]:
        """The prediction of a sample, from its file."""
        with os.fdopen(open_regular(self._path(sample)), "rb") as file:
            file.seek(self._answers[instance_id][sample].offset)
            line: dict[str, Any] = json.loads(file.readline())
        return line


def write_harness_predictions(
    predictions: Path, form: PredictionsForm, lines: Iterable[Mapping[str, Any]] | None = None
) -> Path:
    """Writes and returns the file beside a predictions file that a harness reads, see
    :func:`.layout.harness_predictions`.

    Args:
        lines: None: those of the predictions file.

    Raises:
        OSError: it cannot be written.
    """
    target = layout.harness_predictions(predictions, form)
    with replacing(target) as new, new.open("w", encoding="ascii") as file:
        file.writelines(form.write(_predictions_in(predictions) if lines is None else lines))
    return target


def _predictions_in(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a predictions file. Invalid ones are left out."""
    with os.fdopen(open_regular(path), "rb") as file:
        while (line := file.readline(LONGEST_LINE)) and len(line) < LONGEST_LINE:
            try:
                entry = bounded_json(line)
                if all(isinstance(entry[key], str) for key in ("instance_id", "model_patch", "model_name_or_path")):
                    yield entry
            except (ValueError, KeyError, TypeError, RecursionError):
                continue


def first_sample(candidates: Sequence[Candidate]) -> Choice | None:
    """Selects the first candidate that is a sample 0; None without one."""
    return next((Choice(i, str(one)) for i, one in enumerate(candidates) if one.sample == 0), None)


def json_line(value: Mapping[str, Any]) -> bytes:
    """One JSON line. ASCII, because model output may contain lone surrogates, which UTF-8 cannot encode."""
    return (json.dumps(value) + "\n").encode("ascii")


def _record_digest(record: Record) -> bytes:
    return answer_digest(record["model_patch"] or "", record.get("patch_status"))
