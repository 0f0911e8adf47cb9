"""The images in a dataset's rows, as parts of their prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swe_infer.data.base import Rows
from swe_infer.data.choices import FileChoices
from swe_infer.errors import DataError
from swe_infer.prompt_images import IMAGES_COLUMN, images_of
from swe_infer.types import EditFormat, Instance, Skip

INVALID_IMAGES = "InvalidImages"
"""Reason to skip an instance whose images cannot be sent to any model."""
NOT_ACCEPTED = "ImagesNotAccepted"
"""Reason to skip an instance with images that the run's model does not accept. The next command checks again."""


def with_images(rows: Rows, is_wanted: bool) -> Rows:
    """``rows`` with the images of their issues, if they are wanted (``dataset.images``) and a row may have some."""
    return ImageRows(rows) if is_wanted and IMAGES_COLUMN in rows.columns else rows


class ImageRows:
    """Rows whose prompts have the images of the column ``image_assets``. A row with an invalid one has a fault."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.has_known_lengths = rows.has_known_lengths

    @property
    def ids(self) -> Sequence[str]:
        return self._rows.ids

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def columns(self) -> Collection[str]:
        return self._rows.columns

    @property
    def file_choices(self) -> FileChoices | None:
        return self._rows.file_choices

    def characters(self, index: int) -> int:
        return self._rows.characters(index)

    def content_sha256(self) -> str | None:
        return self._rows.content_sha256()

    @property
    def revision(self) -> str | None:
        return self._rows.revision

    def row(self, index: int) -> Mapping[str, Any]:
        return self._rows.row(index)

    def fault(self, index: int) -> Skip | None:
        if (fault := self._rows.fault(index)) is not None:
            return fault
        try:
            images_of(self._rows.row(index))
        except DataError as error:
            return Skip(INVALID_IMAGES, str(error))
        return None

    def inputs_of_check(self, index: int) -> tuple[Mapping[str, str], EditFormat | None]:
        return self._rows.inputs_of_check(index)

    def __getitem__(self, index: int) -> Instance:
        instance = self._rows[index]
        images = images_of(self._rows.row(index))
        return replace(instance, prompt=replace(instance.prompt, images=images)) if images else instance
