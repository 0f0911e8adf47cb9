"""Options of the configuration, described where they are declared.

A class that a YAML file names in ``_target_`` is a dataclass with keyword-only fields. Each field states its type,
its default, one sentence of documentation, and what it affects::

    timeout_s: Annotated[float, Option("Timeout of one request in seconds.", "speed")] = 900.0

A subclass that changes a default alone repeats the field with its plain type; the description is inherited. The
identity of a run, the YAML comments, ``--help`` and the reference page are made from these descriptions.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

Effect = Literal["answer", "scope", "speed", "address", "reporting"]
"""What an option affects.

* ``answer``: which answers come; such options are the identity of a run.
* ``scope``: how many answers are asked for, or how much may be paid for them.
* ``speed``: how fast and at what price the same answers come.
* ``address``: where they come from, and with which credentials.
* ``reporting``: what is shown or kept of them.
"""


@dataclass(frozen=True, slots=True)
class Option:
    """The description of a field: one sentence, and what the field affects."""

    doc: str
    effect: Effect


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a class or function that a configuration constructs.

    Args:
        default: :attr:`empty` where a value is required.
        option: None where the class does not describe it.
    """

    empty: ClassVar[Any] = inspect.Parameter.empty

    name: str
    hint: Any
    default: Any
    option: Option | None


@functools.cache
def parameters_of(factory: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters of a constructor or function by name, in their order; ``**keywords`` are left out."""
    hints = _hints(factory)
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        annotated = hints.get(name, [Any])
        option = next((option for hint in annotated if (option := _option(hint)) is not None), None)
        found[name] = Parameter(name, _plain(annotated[0]), parameter.default, option)
    return MappingProxyType(found)


def _hints(factory: Callable[..., Any]) -> dict[str, list[Any]]:
    """The type hints of each parameter; of an inherited field also those of the base classes, which describe it."""
    if not (inspect.isclass(factory) and is_dataclass(factory)):
        function = factory.__init__ if inspect.isclass(factory) else factory
        return {name: [hint] for name, hint in typing.get_type_hints(function, include_extras=True).items()}
    hints: dict[str, list[Any]] = {}
    for cls in factory.__mro__[:-1]:
        own = inspect.get_annotations(cls)
        every = typing.get_type_hints(cls, include_extras=True)
        for name in own:
            hints.setdefault(name, []).append(every[name])
    return hints


def _option(hint: Any) -> Option | None:
    if typing.get_origin(hint) is not Annotated:
        return None
    return next((extra for extra in typing.get_args(hint)[1:] if isinstance(extra, Option)), None)


def _plain(hint: Any) -> Any:
    """A hint without its option; what else it is annotated with stays."""
    if typing.get_origin(hint) is not Annotated:
        return hint
    plain, *extras = typing.get_args(hint)
    for extra in extras:
        plain = plain if isinstance(extra, Option) else Annotated[plain, extra]
    return plain
