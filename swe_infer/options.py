"""Declarations of configuration options.

A class that a YAML file names in ``_target_`` is a dataclass with keyword-only fields. Each field declares its type,
its default, one sentence of documentation, and its effect::

    timeout_s: Annotated[float, Option("Timeout of one request in seconds.", "speed")] = 900.0

A subclass that changes only a default repeats the field with its plain type and inherits the description. The
identity of a run, the YAML comments, ``--help`` and ``docs/options.md`` are generated from these descriptions.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

Effect = Literal["answer", "scope", "speed", "address", "reporting"]
"""What an option affects.

* ``answer``: the answers; these options are the identity of a run.
* ``scope``: the number of answers, or the budget for them.
* ``speed``: speed and price of the same answers.
* ``address``: the server of the answers, and its credentials.
* ``reporting``: what is shown or stored.
"""


@dataclass(frozen=True, slots=True)
class Option:
    """The description of a field, and its effect."""

    doc: str
    effect: Effect


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a class or function that a configuration constructs.

    Args:
        default: :attr:`empty` if a value is required.
        option: None if the class does not describe it.
    """

    empty: ClassVar[Any] = inspect.Parameter.empty

    name: str
    hint: Any
    default: Any
    option: Option | None


@functools.cache
def parameters_of(factory: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters of a constructor or function by name, in order, without ``**keywords``."""
    hints = _hints(factory)
    fields = dataclasses.fields(factory) if inspect.isclass(factory) and is_dataclass(factory) else ()
    made = {one.name: one.default_factory() for one in fields if one.default_factory is not dataclasses.MISSING}
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        annotated = hints.get(name, [Any])
        option = next((option for hint in annotated if (option := _option(hint)) is not None), None)
        found[name] = Parameter(name, _plain(annotated[0]), made.get(name, parameter.default), option)
    return MappingProxyType(found)


def _hints(factory: Callable[..., Any]) -> dict[str, list[Any]]:
    """The type hints of each parameter, those of base classes included, as they contain the descriptions."""
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
    """A hint without its option. Other annotations stay."""
    if typing.get_origin(hint) is not Annotated:
        return hint
    plain, *extras = typing.get_args(hint)
    for extra in extras:
        plain = plain if isinstance(extra, Option) else Annotated[plain, extra]
    return plain
