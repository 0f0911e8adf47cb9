"""Tests for generated tasks: calls whose results tell the faulty file from the right one.

The right function says what to expect, so a test is true by construction; the faulty one must fail it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.sample_tasks.generator import Task

_WORDS = ("alpha", "Beta", "axe", "bell", "axe", "corona", "bee", "Zoo")
_TEXTS = ("alpha beta", " Beta bell ", "Axe", "bee, zoo", "alpha alpha Bee")
_KEYS = (*_WORDS, "a", "x y")
_FAILED = object()


def write_test(task: Task, *, candidates: int = 200, calls: int = 4) -> str | None:
    """Source of a test that fails for ``task.broken`` and passes for ``task.fixed``.

    None if no call tells the two apart.

    Args:
        candidates: how many argument lists are tried.
        calls: how many of them the test makes, at most half of them such that the faulty file gets right.
    """
    right, wrong = _function(task.fixed, task.function), _function(task.broken, task.function)
    telling: list[str] = []
    others: list[str] = []
    random_ = random.Random(task.instance_id)
    for _ in range(candidates):
        arguments = _arguments(task, random_)
        shown = ", ".join(map(repr, arguments))
        expected = _result(right, arguments)
        if expected is _FAILED:
            continue
        line = f"    assert {task.function}({shown}) == {expected!r}\n"
        if _result(wrong, arguments) != expected:
            telling.append(line)
        else:
            others.append(line)
    telling, others = list(dict.fromkeys(telling)), list(dict.fromkeys(others))
    if not telling:
        return None
    lines = others[: calls // 2]
    lines = telling[: calls - len(lines)] + lines
    module = task.path.removesuffix(".py").replace("/", ".")
    return f"from {module} import {task.function}\n\n\ndef test_{task.function}():\n{''.join(lines)}"


def _function(source: str, name: str) -> Callable[..., Any]:
    """The function of a file that the generator itself wrote."""
    namespace: dict[str, Any] = {}
    exec(compile(source, "<task>", "exec"), namespace)
    found: Callable[..., Any] = namespace[name]
    return found


def _result(function: Callable[..., Any], arguments: list[Any]) -> Any:
    """What a call returns, or a mark that it raised. Arguments are copied, lest a call change them."""
    try:
        return function(*[value.copy() if isinstance(value, (list, dict)) else value for value in arguments])
    except Exception:  # noqa: BLE001 - a faulty function may raise anything, and that is an answer here
        return _FAILED


def _arguments(task: Task, random_: random.Random) -> list[Any]:
    """One argument list; an argument with a default is left out half of the time."""
    kinds = [kind for kind in task.family.arguments if not kind.endswith("?") or random_.random() < 0.5]
    return [_argument(kind.rstrip("?"), random_, task.names) for kind in kinds]


def _integers(random_: random.Random, least: int) -> list[int]:
    return [random_.randint(-3, 12) for _ in range(random_.randint(least, 5))]


def _numbers_near(random_: random.Random, names: Mapping[str, str]) -> Iterator[int]:
    """Small numbers, and such that lie at the function's own constants, where its boundaries are."""
    yield random_.randint(0, 12)
    for slot in ("n", "m"):
        if slot in names:
            yield int(names[slot]) + random_.randint(-1, 1)


def _argument(kind: str, random_: random.Random, names: Mapping[str, str]) -> Any:
    """A value of one of the kinds that ``families.toml`` names in ``args``."""
    match kind:
        case "int":
            return random_.choice(list(_numbers_near(random_, names)))
        case "pos":
            return random_.randint(0, 9)
        case "small" | "small1":
            return random_.randint(int(kind == "small1"), 5)
        case "ints" | "ints1":
            return _integers(random_, int(kind == "ints1"))
        case "words" | "words1":
            return [random_.choice((*_WORDS, "")[kind == "words1" :]) for _ in range(random_.randint(1, 4))]
        case "text":
            return random_.choice(_TEXTS)
        case "text1":
            return random_.choice(("a", "be", "e", "alpha", "Zoo", "x y"))
        case "csv":
            return ",".join(random_.choice(("a:b", "c;d", "e", "f")) for _ in range(random_.randint(2, 4)))
        case "map":
            return {random_.choice(_KEYS): random_.randint(0, 9) for _ in range(random_.randint(1, 3))}
        case "pairs":
            return [(random_.choice("abc"), random_.randint(0, 9)) for _ in range(random_.randint(1, 4))]
        case "row":
            return {names["a"]: random_.randint(1, 9), names["b"]: random_.randint(1, 9)}
        case "rows":
            return [_argument("row", random_, names) for _ in range(random_.randint(1, 3))]
    raise ValueError(f"unknown kind of argument: {kind}")
