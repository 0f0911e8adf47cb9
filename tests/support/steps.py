"""Counts the work of a call, as a replacement for timing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

__all__ = ["calls_of", "lines_executed"]


def lines_executed(call: Callable[[], object]) -> int:
    """The number of Python lines that ``call`` executes, which does not depend on the machine."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def calls_of(code: CodeType, call: Callable[[], object]) -> int:
    """How often ``call`` calls the function with ``code``, in this thread."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code is code

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count
