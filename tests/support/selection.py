"""Deselects tests for ``--fast``: those that start a process or server, or use late imports.

This is derived from the code of a test and its fixtures. A test that starts a process through ``swe_infer`` needs the
mark ``slow``: without it, such a test fails, with and without ``--fast``.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

__all__ = ["ProcessWatch", "combinations", "is_slow", "late_imports", "starts_a_process"]

STARTERS = {"subprocess", "multiprocessing", "socket", "http.server", "pty"}
STARTING_CALLS = {"start_server", "create_server", "create_subprocess_exec", "create_subprocess_shell"}
"""Of asyncio, which other tests use without processes and servers."""
EVENTS = {"subprocess.Popen", "os.posix_spawn", "socket.bind"}
OURS = {"tests", "benchmarks"}


@functools.cache
def late_imports(file: str) -> list[ast.stmt]:
    """The statements under ``if TYPE_CHECKING:`` at the top of a module."""
    body = ast.parse(Path(file).read_text(encoding="utf-8")).body
    blocks = [node.body for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return [statement for block in blocks for statement in block]


def is_slow(item: pytest.Function) -> bool:
    """Whether a test has the mark ``slow``, or it or a fixture starts a process or imports late."""
    if item.get_closest_marker("slow"):
        return True
    fixtures = [definition.func for found in item._fixtureinfo.name2fixturedefs.values() for definition in found]
    test = getattr(getattr(item.function, "hypothesis", None), "inner_test", item.function)
    return any(starts_a_process(function) for function in (test, *fixtures))


@functools.cache
def starts_a_process(function: Callable[..., Any]) -> bool:
    """Whether a function, or one of ours that it calls, starts a process or server, or uses a late import."""
    return _reaches_a_starter(function, set())


def _reaches_a_starter(thing: object, seen: set[object]) -> bool:
    if isinstance(thing, ModuleType):
        return thing.__name__ in STARTERS or (_package(thing.__name__) in OURS and _holds_a_starter(thing))
    if callable(thing) and not isinstance(thing, type):
        thing = inspect.unwrap(thing)  # the function behind a context manager or cache
    if not isinstance(thing, FunctionType | type) or thing in seen:
        return False
    seen.add(thing)
    if thing.__module__ in STARTERS:
        return True
    if isinstance(thing, type) and any(_reaches_a_starter(base, seen) for base in thing.__bases__):
        return True
    package = _package(thing.__module__)
    if package == "swe_infer":
        return _holds_a_starter(sys.modules[thing.__module__])
    if package not in OURS:
        return False
    return any(
        _calls_a_starter(method, seen) for method in ([thing] if isinstance(thing, FunctionType) else _methods(thing))
    )


def _package(module: str) -> str:
    return module.partition(".")[0]


def _holds_a_starter(module: ModuleType) -> bool:
    return any(isinstance(value, ModuleType) and value.__name__ in STARTERS for value in vars(module).values())


def _calls_a_starter(function: FunctionType, seen: set[object]) -> bool:
    module = function.__globals__
    late = {
        alias.asname or alias.name.partition(".")[0]
        for node in (late_imports(module["__file__"]) if "__file__" in module else ())
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    names = set(_names(function.__code__))
    if names & STARTING_CALLS:
        return True
    for name in names:
        imported_here = name not in module and _package(name) in OURS | STARTERS
        if name in late or imported_here or _reaches_a_starter(module.get(name), seen):
            return True
        used = module.get(name)
        members = vars(used) if isinstance(used, ModuleType) and _package(used.__name__) in OURS else {}
        if any(_reaches_a_starter(members[member], seen) for member in names & members.keys()):
            return True
    return False


def _methods(thing: type) -> Iterator[FunctionType]:
    for value in vars(thing).values():
        found = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if isinstance(found, FunctionType):
            yield found


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def combinations(*factors: Iterable[object]) -> list[Any]:
    """All combinations of the values of three or more factors, for ``parametrize``. Without ``--all``, half of them
    run, which contain every pair of values."""
    return [
        pytest.param(*(value for _, value in case), marks=[pytest.mark.full] * (sum(index for index, _ in case) % 2))
        for case in itertools.product(*(enumerate(values) for values in factors))
    ]


class ProcessWatch:
    """Notes each process that a test starts and each socket that it binds, or makes it an error."""

    def __init__(self, *, forbid: bool) -> None:
        self.noted: list[str] = []
        self._forbid = forbid
        self._earlier: set[threading.Thread] = set()
        sys.addaudithook(self._hook)

    def begin(self) -> None:
        """A test begins. What threads of earlier tests do is not its own."""
        self._earlier = {*threading.enumerate()} - {threading.current_thread()}
        self.noted.clear()

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or threading.current_thread() in self._earlier:
            return
        if sys._getframe(1).f_code.co_name == "_has_ipv6":  # urllib3 tries an address while it is imported
            return
        self.noted.append(f"{event} {arguments[:1]!r}")
        if self._forbid:
            raise AssertionError(f"{self.noted[-1]} in a test of --fast: mark it with pytest.mark.slow")
