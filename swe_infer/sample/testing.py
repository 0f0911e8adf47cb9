"""Runs an instance's test against its patched files: patched code runs in the sandbox, results are compared here.

A test is Python source with functions ``test…`` without arguments. If it consists of assertions that compare calls of
imported functions with plain data, the sandbox gets the arguments and returns the results. Expected values never
enter the sandbox, so no patch can fake them. Any other test runs entirely in the sandbox, where patched code could
forge its verdict; :attr:`TestResult.judged` reports which.
"""

from __future__ import annotations

import ast
import operator
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from swe_infer.sample import sandbox

Judged = Literal["outside", "beside"]
"""Where the verdict was computed: ``outside`` the process of the patched code, or ``beside`` the patched code in the
same process."""

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}


@dataclass(frozen=True, slots=True)
class TestResult:
    """The result of a test.

    Args:
        resolved: every assertion holds.
        reason: one line on why not; None if resolved.
        seconds: wall clock.
        judged: see :data:`Judged`.
    """

    __test__: ClassVar[bool] = False  # not a test class for pytest

    resolved: bool
    reason: str | None
    seconds: float
    judged: Judged


@dataclass(frozen=True, slots=True)
class _Assertion:
    """One call for the sandbox, and the check of its result.

    Args:
        step: the call, in the format of :func:`swe_infer.sample.sandbox.run`.
        holds: whether a result is right.
        source: of the assertion.
    """

    step: Mapping[str, Any]
    holds: Callable[[Any], bool]
    source: str


def run_test(
    files: Mapping[str, str],
    test: str,
    *,
    timeout_s: float = 10.0,
    max_memory_mib: int = 1024,
    contained: bool = True,
    stop: threading.Event | None = None,
) -> TestResult:
    """Write ``files`` (path to content) into an empty directory and run ``test`` there.

    The patched code has no access to the environment and packages of this process, the network, or the user's files.

    Args:
        timeout_s: seconds of wall clock and (rounded up) of processor time.
        max_memory_mib: memory in MiB.
        contained: False: without namespaces; the code can then read and write all of the user's files.
        stop: ends the test once it is set.
    """
    started = time.monotonic()
    assertions = _assertions(test)
    judged: Judged = "beside" if assertions is None else "outside"
    reason = _path_error(files)
    if reason is None:
        steps = [{"source": test}] if assertions is None else [assertion.step for assertion in assertions]
        outcome = sandbox.run(files, steps, sandbox.Limits(timeout_s, max_memory_mib), contained=contained, stop=stop)
        reason = _whole_test_error(outcome) if assertions is None else _first_failure(assertions, outcome)
    return TestResult(reason is None, reason, time.monotonic() - started, judged)


def _path_error(files: Mapping[str, str]) -> str | None:
    """An error for the first path outside the directory, if any."""
    for path in files:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\0" in path:
            return f"the path {path!r} leads out of the repository"
    return None


def _whole_test_error(outcome: sandbox.Outcome) -> str | None:
    if not outcome.replies:
        return _one_line(outcome.stopped)
    reply = outcome.replies[0]
    return None if reply == {"value": ["is", None]} else _one_line(str(reply.get("error")))


def _first_failure(assertions: list[_Assertion], outcome: sandbox.Outcome) -> str | None:
    for number, assertion in enumerate(assertions):
        if number >= len(outcome.replies):
            return _one_line(outcome.stopped)
        reply = outcome.replies[number]
        if "value" not in reply:
            return _one_line(str(reply.get("error")))
        try:
            value = _value(reply["value"])
            right = bool(assertion.holds(value))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, MemoryError) as error:
            return _one_line(f"the result cannot be compared ({type(error).__name__})")
        if not right:
            return _one_line(f"AssertionError: {assertion.source}")
    return None


def _one_line(text: str | None) -> str:
    """Clean text of the patched code to one line of at most 300 characters."""
    cleaned = "".join(c if c.isprintable() else " " for c in text or "the test was not run")
    return " ".join(cleaned.split())[:300]


def _assertions(test: str) -> list[_Assertion] | None:
    """The assertions of a test that only compares calls with plain data; None for any other test."""
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: dict[str, tuple[str, list[str]]] = {}
    found: list[_Assertion] = []
    for node in tree.body:
        match node:
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                names |= {alias.asname or alias.name: (module, [alias.name]) for alias in aliases}
            case ast.Import(names=aliases) if all(alias.asname or "." not in alias.name for alias in aliases):
                names |= {alias.asname or alias.name: (alias.name, []) for alias in aliases}
            case ast.FunctionDef(decorator_list=[]) if _is_plain_test(node):
                for statement in node.body:
                    if (assertion := _assertion(statement, names)) is None:
                        return None
                    found.append(assertion)
            case ast.Expr(value=ast.Constant(value=str())):
                pass  # a docstring
            case _:
                return None
    return found or None


def _is_plain_test(node: ast.FunctionDef) -> bool:
    return node.name.startswith("test") and ast.unparse(node.args) == ""


def _assertion(node: ast.stmt, names: Mapping[str, tuple[str, list[str]]]) -> _Assertion | None:
    if not isinstance(node, ast.Assert):
        return None
    match node.test:
        case ast.Compare(left=ast.Call() as call, ops=[comparison], comparators=[other]):
            step, expected = _step(call, names), list(_literals([other]))
            compare = _COMPARISONS[type(comparison)]
            holds: Callable[[Any], bool] = lambda value: compare(value, expected[0])  # noqa: E731
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call):
            step, expected, holds = _step(call, names), [None], operator.not_
        case ast.Call() as call:
            step, expected, holds = _step(call, names), [None], bool
        case _:
            return None
    if step is None or not expected:
        return None
    return _Assertion(step, holds, ast.unparse(node)[:200])


def _step(call: ast.Call, names: Mapping[str, tuple[str, list[str]]]) -> dict[str, Any] | None:
    """Encode a call of an imported function with plain arguments for the sandbox; None for any other call."""
    path: list[str] = []
    function = call.func
    while isinstance(function, ast.Attribute):
        path.insert(0, function.attr)
        function = function.value
    arguments = list(_literals(call.args))
    keywords = {keyword.arg: list(_literals([keyword.value])) for keyword in call.keywords}
    if (
        not isinstance(function, ast.Name)
        or function.id not in names
        or len(arguments) < len(call.args)
        or not all(keywords.values())
        or None in keywords
    ):
        return None
    module, head = names[function.id]
    if not head and not path:
        return None
    return {
        "module": module,
        "function": [*head, *path],
        "arguments": [_plain(value) for value in arguments],
        "keywords": {name: _plain(value[0]) for name, value in keywords.items()},
    }


def _literals(nodes: list[ast.expr]) -> Iterator[Any]:
    """The values of the nodes, up to the first that is not plain data."""
    for node in nodes:
        try:
            value = ast.literal_eval(node)
            _plain(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return
        yield value


def _plain(value: Any) -> list[Any]:
    """Encode plain data in the format of :mod:`swe_infer.sample.sandbox_child`.

    Raises:
        TypeError: the value is not plain data.
    """
    match value:
        case None | bool() | str():
            return ["is", value]
        case int():
            return ["int", hex(value)]
        case float():
            return ["float", value.hex()]
        case bytes():
            return ["bytes", value.hex()]
        case list() | tuple() | set() | frozenset():
            return [type(value).__name__, [_plain(item) for item in value]]
        case dict():
            return ["dict", [[_plain(key), _plain(item)] for key, item in value.items()]]
    raise TypeError(f"{type(value).__name__} is not plain data")


def _value(plain: Any) -> Any:
    """Decode plain data of a reply.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the format is wrong.
    """
    kind, value = plain
    match kind:
        case "is" if value is None or isinstance(value, bool | str):
            return value
        case "int":
            return int(value, 16)
        case "float":
            return float.fromhex(value)
        case "bytes":
            return bytes.fromhex(value)
        case "list" | "tuple" | "set" | "frozenset":
            items = (_value(item) for item in value)
            return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
        case "dict":
            return {_value(key): _value(item) for key, item in value}
    raise ValueError("not plain data")
