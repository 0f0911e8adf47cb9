"""The interface of the group ``feedback``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from swe_infer.run_directory.records import Record
from swe_infer.types import EditFormat


class Feedback(Protocol):
    """Decides which answers get a further turn, and writes the message. Constructors are cheap."""

    @property
    def name(self) -> str:
        """The option of the group."""
        ...

    @property
    def turns(self) -> int:
        """Further turns of each sample, at most; 0: none."""
        ...

    def may_need_turn(self, patch_status: str | None) -> bool:
        """Whether an answer whose patch has this status may get a further turn; decides without the answer itself."""
        ...

    def message(self, record: Record, files: Mapping[str, str], edit_format: EditFormat | None) -> str | None:
        """The next message to the model; None if the answer needs no further turn.

        The message depends on the arguments alone, so that a later process writes the same one. Its size is bounded.

        Args:
            record: a completed record, perhaps of an earlier turn.
            files: the instance's files, path to content (:attr:`swe_infer.types.Request.files`).
            edit_format: the form of answer that the prompt requests; None: not known.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class NoFeedback:
    """``feedback=none``."""

    name: ClassVar[str] = "none"
    turns: ClassVar[int] = 0

    def may_need_turn(self, patch_status: str | None) -> bool:
        """No answer does."""
        return False

    def message(self, record: Record, files: Mapping[str, str], edit_format: EditFormat | None) -> str | None:
        """No answer gets one."""
        return None
