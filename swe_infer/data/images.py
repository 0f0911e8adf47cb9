"""The images in a dataset's rows, as parts of their prompts."""

from __future__ import annotations

from dataclasses import replace

from swe_infer.data.base import Rows, RowsView
from swe_infer.errors import DataError
from swe_infer.prompt_images import IMAGES_COLUMN, images_of
from swe_infer.types import Instance, Skip

INVALID_IMAGES = "InvalidImages"
"""Reason to skip an instance whose images cannot be sent to any model."""
NOT_ACCEPTED = "ImagesNotAccepted"
"""Reason to skip an instance with images that the run's model does not accept. The next command checks again."""


def with_images(rows: Rows, is_wanted: bool) -> Rows:
    """``rows`` with the images of their issues, if they are wanted (``dataset.images``) and a row may have some."""
    return ImageRows(rows) if is_wanted and IMAGES_COLUMN in rows.columns else rows


class ImageRows(RowsView):
    """Rows whose prompts have the images of the column ``image_assets``. A row with an invalid one has a fault."""

    def fault(self, index: int) -> Skip | None:
        if (fault := super().fault(index)) is not None:
            return fault
        try:
            images_of(self._rows.row(index))
        except DataError as error:
            return Skip(INVALID_IMAGES, str(error))
        return None

    def __getitem__(self, index: int) -> Instance:
        instance = super().__getitem__(index)
        images = images_of(self._rows.row(index))
        return replace(instance, prompt=replace(instance.prompt, images=images)) if images else instance
