"""Validates a composed configuration, constructs its objects, and computes the identity of a run.

The signatures of the constructors are the schema, so a new class needs only its module and its YAML file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import re
import secrets
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from swe_infer.conf_files import ROOT_KEYS, parameters_at, suggestion
from swe_infer.errors import ConfigError, StoreError, SweInferError
from swe_infer.files import read_regular, write_atomically
from swe_infer.options import Parameter, parameters_of
from swe_infer.redaction import without_credentials, without_secrets
from swe_infer.run_directory.objective import Objective
from swe_infer.text import first_line, flatten
from swe_infer.types import PathText

if TYPE_CHECKING:
    from swe_infer.context.base import Context
    from swe_infer.data.base import Dataset
    from swe_infer.evaluate.run_end import Evaluation
    from swe_infer.feedback.base import Feedback
    from swe_infer.locks import Locks
    from swe_infer.prompts.prompt import PromptRenderer
    from swe_infer.runners.base import Runner
    from swe_infer.selection.base import SelectionRule
    from swe_infer.tracking.base import Tracker
    from swe_infer.types import Budget, DataShard, SweepOptions

GROUPS = (
    "model",
    "provider",
    "decoding",
    "dataset",
    "context",
    "prompt",
    "feedback",
    "selection",
    "evaluation",
    "runner",
    "tracker",
)
_KEYS = (*GROUPS, "shard", "budget", "sweep", *ROOT_KEYS)

MAX_UPLOAD_INTERVAL_S = 86_400.0

RULES = "rules"
"""The node of a resolved configuration with the versions of the rules for rows, contexts and prompts."""

_GIVEN = {
    "context._target_": "swe_infer.context.given.GivenContext",
    "prompt._target_": "swe_infer.prompts.prompt.PromptRenderer",
    "prompt.style": "given",
    "prompt.edit_format": "unified_diff",
}
"""Values with which a row's own prompt is used.

They are not part of a run's identity, as in versions without these groups.
"""

COVERAGE = ("limit", "instance_ids", "min_tokens", "max_tokens")
"""Keys of the dataset that select instances. They may change between commands on one run directory."""

IDENTITY_GROUPS = ("model", "provider", "decoding", "dataset", "context", "prompt", RULES, "shard")
"""Groups with keys that decide answers. Each option of their classes declares whether it does."""

_CHOICES = frozenset({*IDENTITY_GROUPS, "runner", "experiment"})
"""Groups whose choice of an option may decide answers."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """The constructed objects of a run; nothing is loaded, opened or paid for yet."""

    runner: Runner
    dataset: Dataset
    context: Context
    prompt: PromptRenderer
    feedback: Feedback
    selection: SelectionRule
    evaluation: Evaluation
    tracker: Tracker
    shard: DataShard
    budget: Budget
    sweep: SweepOptions
    started_from: PathText | None
    output_dir: PathText | None
    upload_interval_s: float
    locks: Locks
    dry_run: bool
    objectives: tuple[Objective, ...]


_EXAMPLES = {
    "decoding": "greedy",
    "dataset": "sample",
    "context": "given",
    "prompt": "given",
    "feedback": "none",
    "selection": "first",
    "evaluation": "none",
    "runner": "llama",
    "tracker": "none",
}
"""An option of each required group."""


def build(cfg: DictConfig) -> Experiment:
    """Check every key and construct the objects of a run.

    Raises:
        ConfigError: names the first invalid key and what is valid.
    """
    unknown = [str(key) for key in cfg if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{unknown[0]}: unknown key{suggestion(unknown[0], _KEYS)}")
    try:
        constructor = _Constructor()
        for key in GROUPS:  # first, so that an error names `model.x`, not `runner.model.x`
            if isinstance(cfg[key], DictConfig) and cfg[key]:
                if "_target_" not in cfg[key]:
                    raise ConfigError(f"{key}._target_ is missing: add it, or a defaults list, to the option's file")
                _check_interface(constructor.construct(cfg[key], key), key)
        for key, example in _EXAMPLES.items():
            if not isinstance(cfg[key], DictConfig) or "_target_" not in cfg[key]:
                raise ConfigError(f"{key}: no option is chosen; choose one, such as {key}={example}")
        experiment = Experiment(
            runner=constructor.construct(cfg.runner, "runner"),
            dataset=constructor.construct(cfg.dataset, "dataset"),
            context=constructor.construct(cfg.context, "context"),
            prompt=constructor.construct(cfg.prompt, "prompt"),
            feedback=constructor.construct(cfg.feedback, "feedback"),
            selection=constructor.construct(cfg.selection, "selection"),
            evaluation=_evaluation(cfg, constructor),
            tracker=constructor.construct(cfg.tracker, "tracker"),
            shard=constructor.construct(cfg.shard, "shard"),
            budget=constructor.construct(cfg.budget, "budget"),
            objectives=objectives(cfg),
            sweep=constructor.construct(cfg.sweep, "sweep"),
            started_from=_check(cfg["from"], ROOT_KEYS["from"], "from"),
            **{k: _check(cfg[k], hint, k) for k, hint in ROOT_KEYS.items() if k not in ("objective", "from")},
        )
        if not 0 < experiment.upload_interval_s <= MAX_UPLOAD_INTERVAL_S:
            raise ConfigError(
                f"upload_interval_s={experiment.upload_interval_s}: must be positive seconds, at most a day"
            )
        context = experiment.context
        experiment.prompt.check_context(
            gives_text=context.gives_text, context=context.rules.partition("-")[0], names_lines=context.names_lines
        )
        if experiment.prompt.prefill is not None:
            experiment.runner.check_prefill(experiment.prompt.prefill)
        _check_feedback(experiment)
        return experiment
    except OmegaConfBaseException as error:
        raise ConfigError(_omegaconf_line(error)) from None


_INTERFACES = {
    "provider": "swe_infer.providers.base.Provider",
    "dataset": "swe_infer.data.base.Dataset",
    "context": "swe_infer.context.base.Context",
    "prompt": "swe_infer.prompts.prompt.PromptRenderer",
    "feedback": "swe_infer.feedback.base.Feedback",
    "selection": "swe_infer.selection.base.SelectionRule",
    "evaluation": "swe_infer.evaluate.run_end.Evaluation",
    "runner": "swe_infer.runners.base.Runner",
    "tracker": "swe_infer.tracking.base.Tracker",
}
"""The classes that the options of groups extend, or the protocols that they implement."""


def _check_interface(built: object, key: str) -> None:
    """Raises ConfigError if the object of a group is not one of the group: ``_target_`` may name any class."""
    kind, name = type(built), _INTERFACES.get(key)
    if name is None or kind.__module__.startswith("swe_infer."):
        return
    module, _, attribute = name.rpartition(".")
    interface: type = getattr(importlib.import_module(module), attribute)
    target = f"{key}._target_={kind.__module__}.{kind.__qualname__}"
    missing = _missing_of(built, interface)
    if missing:
        raise ConfigError(f"{target}: does not implement {name}; missing: {', '.join(missing)}")
    if missing is not None:
        raise ConfigError(f"{target}: must be a subclass of {name}")


def _missing_of(built: object, interface: type) -> list[str] | None:
    """None if an object is an instance of a class or implements a protocol; otherwise the members of the protocol
    that it lacks."""
    if not getattr(interface, "_is_protocol", False):
        return None if isinstance(built, interface) else []
    members = {member for member in (*vars(interface), *inspect.get_annotations(interface)) if member[:1] != "_"}
    return sorted(members - set(dir(built))) or None


def _check_feedback(experiment: Experiment) -> None:
    """Raises ConfigError if the model cannot continue the conversations of ``feedback``."""
    if experiment.feedback.turns:
        try:
            experiment.runner.check_conversation()
        except ConfigError as error:
            raise ConfigError(f"feedback={experiment.feedback.name}: {error}") from None


def objectives(cfg: DictConfig) -> tuple[Objective, ...]:
    """The figures in ``objective``, which is one figure or a list of figures. The default is ``resolved_rate`` if the
    run evaluates its patches, otherwise ``apply_rate``.

    Raises:
        ConfigError: there is no such figure, or the run does not evaluate its patches and the figure requires it.
    """
    value = _check(cfg.objective, ROOT_KEYS["objective"], "objective")
    if value is None:
        value = "resolved_rate" if evaluates(cfg) else "apply_rate"
    found = tuple(Objective.parse(text) for text in ([value] if isinstance(value, str) else value))
    if not found:
        raise ConfigError("objective=[]: name at least one figure, such as apply_rate")
    for one in found:
        if one.needs_evaluation and not evaluates(cfg):
            raise ConfigError(
                f"objective={one.name}: this run does not evaluate its patches; add evaluation=harness, command or "
                "own_tests"
            )
    return found


def evaluates(cfg: DictConfig) -> bool:
    """Whether a run of this configuration evaluates its patches at its end."""
    target = str(cfg.evaluation.get("_target_", _NO_EVALUATION))
    return target != _NO_EVALUATION and not (target == _OWN_TESTS and cfg.dataset.get("run_tests") is False)


_NO_EVALUATION = "swe_infer.evaluate.run_end.NoEvaluation"
_OWN_TESTS = "swe_infer.evaluate.run_end.OwnTests"


def _evaluation(cfg: DictConfig, constructor: _Constructor) -> Evaluation:
    """The evaluation of a run, with the bundled dataset's ``run_tests`` applied."""
    from swe_infer.evaluate.run_end import NoEvaluation, OwnTests

    evaluation: Evaluation = constructor.construct(cfg.evaluation, "evaluation")
    if not evaluates(cfg):
        return NoEvaluation()
    if isinstance(evaluation, OwnTests) and cfg.dataset.get("run_tests") == "unsafe":
        return replace(evaluation, sandbox=False)
    return evaluation


_REFERENCE = re.compile(r"\$\{(\w+)\}")
"""An interpolation of a root key."""


@functools.cache
def _instantiable(target: str) -> Callable[..., Any]:
    """The class ``target``, which Hydra permits to instantiate. It is called without Hydra, which would convert
    dataclasses among the arguments to configs."""
    from hydra.utils import instantiate

    partial: Callable[..., Any] = instantiate({"_target_": target, "_partial_": True})
    return partial


class _Constructor:
    """Constructs each node once, so that ``runner.model: ${model}`` and ``model`` are one object."""

    def __init__(self) -> None:
        self._built: dict[int, Any] = {}

    def construct(self, node: DictConfig, key: str) -> Any:
        if id(node) not in self._built:
            self._built[id(node)] = self._construct(node, key)
        return self._built[id(node)]

    def _construct(self, node: DictConfig, key: str) -> Any:
        from hydra.utils import get_object

        target = node["_target_"]
        if not isinstance(target, str) or not target:
            raise ConfigError(f"{key}._target_={target}: must be the name of a class")
        try:
            factory = get_object(target)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{key}._target_={target}: {_import_problem(target, error)}") from None
        if not callable(factory):
            raise ConfigError(f"{key}._target_={target}: is of type {type(factory).__name__}; must be a class")
        try:
            parameters = parameters_of(factory)
        except Exception as error:  # noqa: BLE001 - the annotations of the user's own class
            raise ConfigError(
                f"{key}._target_={target}: its parameters cannot be read ({_described_error(error)})"
            ) from None
        written = OmegaConf.to_container(node, resolve=False)
        assert isinstance(written, dict)
        values: dict[str, Any] = {}
        for name in (str(n) for n in node if n != "_target_"):
            if name not in parameters:
                raise ConfigError(f"{key}.{name}: unknown key{suggestion(name, parameters)}")
            if OmegaConf.is_missing(node, name):
                raise ConfigError(f"{key}.{name} is missing: set {key}.{name}=…")
            # A message names `budget.max_usd` where `runner.budget` is `${budget}`.
            reference = _REFERENCE.fullmatch(str(written[name]))
            values[name] = self._value(
                node[name], parameters[name].hint, reference[1] if reference else f"{key}.{name}"
            )
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in values:
                raise ConfigError(f"{key}.{name} is missing: set {key}.{name}=…")
        try:
            return _instantiable(target)(**values)
        except SweInferError:
            raise
        except Exception as error:
            if target.startswith("swe_infer."):
                raise
            raise ConfigError(f"{key}._target_={target}: its constructor raised {_described_error(error)}") from error

    def _value(self, value: Any, hint: Any, key: str) -> Any:
        if isinstance(value, DictConfig) and "_target_" in value:
            built = self.construct(value, key)
            excluded = (Any, types.NoneType)
            kinds = [kind for kind in _union_members(hint) if inspect.isclass(kind) and kind not in excluded]
            if kinds and all(_missing_of(built, kind) is not None for kind in kinds):
                names = " or ".join(kind.__name__ for kind in kinds)
                missing = _missing_of(built, kinds[-1])
                advice = f"missing: {', '.join(missing)}" if missing else "choose a model and a runner that fit"
                raise ConfigError(f"{key}: must be of {names}, not {type(built).__name__}; {advice}")
            return built
        if isinstance(value, DictConfig) and not value and inspect.isclass(hint) and not issubclass(hint, Mapping):
            raise ConfigError(f"{key}: none is chosen; see --help for the options of {key.rpartition('.')[2]}")
        if isinstance(value, ListConfig) and any(isinstance(v, DictConfig) and "_target_" in v for v in value):
            return tuple(self._value(v, Any, f"{key}[{i}]") for i, v in enumerate(value))
        return _check(value, hint, key)


def _check(value: Any, hint: Any, key: str) -> Any:
    """Converts ``value`` to the type ``hint``, or raises ConfigError. Strings and booleans are not numbers."""
    plain = OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value
    kinds = _members(hint)
    if plain is None and types.NoneType in kinds:  # pydantic does not support protocols among the other members
        return None
    if plain == "" and PathText in _union_members(hint):  # "" would be the working directory
        raise ConfigError(f"{key} is empty: name a path{', or null' if types.NoneType in kinds else ''}")
    mismatch = (isinstance(plain, bool) and bool not in kinds and not _allows_any(hint)) or (
        isinstance(plain, str) and not kinds & {str, Decimal, typing.Literal} and not _allows_any(hint)
    )
    if mismatch:
        raise ConfigError(f"{key}={_shown(plain)}: must be {_described(hint)}")
    if (converted := _converted(plain, hint)) is not _UNDECIDED:
        return converted
    from pydantic import TypeAdapter, ValidationError  # slow to import, and rarely needed

    try:
        return TypeAdapter(_without_protocols(hint)).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        inner = "".join(f".{part}" for part in first["loc"] if isinstance(part, str) and part.islower())
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise ConfigError(f"{key}{inner}: unknown key") from None
        why = ""
        if first["type"] == "missing":
            why = f"; {first['loc'][-1]} is missing"
        elif not first["type"].endswith(("_type", "_parsing", "_from_float", "literal_error")):  # said by the type
            why = f" ({first['msg'].lower()})"
        raise ConfigError(f"{key}={_shown(plain)}: must be {_described(hint)}{why}") from None


def _import_problem(target: str, error: Exception) -> str:
    """Why a ``_target_`` cannot be imported, and what to do."""
    cause = error.__cause__ or error
    top, _, rest = target.partition(".")
    if isinstance(error, ValueError) or not rest:
        return "must be the name of a class with its module, such as my_module.MyClass"
    if isinstance(cause, ModuleNotFoundError) and cause.name == top:
        here = Path(top).is_dir() or Path(f"{top}.py").is_file()
        return (
            f"cannot be imported, as there is no module {top}: add its folder to PYTHONPATH"
            f"{' (PYTHONPATH=. for this folder)' if here else ''}, or install its package"
        )
    module = target
    while module not in sys.modules and "." in module:
        module = module.rpartition(".")[0]
    known = vars(sys.modules[module]) if module in sys.modules else {}
    name = target.removeprefix(f"{module}.").partition(".")[0]
    is_absent = isinstance(cause, AttributeError) or (
        isinstance(cause, ModuleNotFoundError) and cause.name == f"{module}.{name}"
    )
    if is_absent and name not in known:
        classes = [key for key, value in known.items() if inspect.isclass(value) and value.__module__ == module]
        return f"the module {module} has no class {name}" + (suggestion(name, classes) if classes else "")
    return f"cannot be imported ({_described_error(cause)})"


def _described_error(error: BaseException) -> str:
    """An error of the user's own code, with its file and line."""
    text = f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    return f"{text}; {own[-1].filename}, line {own[-1].lineno}" if own else text


_UNDECIDED = object()


def _converted(value: Any, hint: Any) -> Any:
    """Converts scalars, and lists and mappings of them, without pydantic; ``_UNDECIDED`` for anything else."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _converted(value, args[0]) if all(isinstance(extra, str) for extra in args[1:]) else _UNDECIDED
    if origin in (typing.Union, types.UnionType):
        matches = [match for arg in args if (match := _converted(value, arg)) is not _UNDECIDED]
        return next((match for match in matches if type(match) is type(value)), matches[0] if matches else _UNDECIDED)
    if origin is typing.Literal:
        return value if any(type(arg) is type(value) and arg == value for arg in args) else _UNDECIDED
    if origin is tuple and isinstance(value, list) and args[1:] == (Ellipsis,):
        items = [_converted(item, args[0]) for item in value]
        return _UNDECIDED if _UNDECIDED in items else tuple(items)
    if origin is Mapping and isinstance(value, dict) and args[0] is str:
        values = {key: _converted(item, args[1]) for key, item in value.items() if isinstance(key, str)}
        return _UNDECIDED if _UNDECIDED in values.values() or len(values) < len(value) else values
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    return value if hint is Any or type(value) is hint else _UNDECIDED


def _without_protocols(hint: Any) -> Any:
    """A union without its protocols, which pydantic does not support and only ``_target_`` can satisfy."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    return typing.Union[tuple(arg for arg in typing.get_args(hint) if not getattr(arg, "_is_protocol", False))]  # noqa: UP007


def _union_members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _members(hint: Any) -> set[Any]:
    """The member types of a union, or the type itself. ``Literal`` and containers are given by their origin."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_members(arg) for arg in typing.get_args(hint)))
    return {origin or hint}


def _allows_any(hint: Any) -> bool:
    return hint is Any or Any in _members(hint) or Path in _members(hint)


def _described(hint: Any) -> str:
    """A type in words, for error messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _described(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(arg) for arg in args)
    if getattr(hint, "_is_protocol", False):
        return f"a mapping with the _target_ of a {hint.__name__}"
    if origin is typing.Literal:
        return " or ".join(map(str, args)) if len(args) < 3 else f"one of {', '.join(map(str, args))}"
    if origin in (tuple, list) or hint in (tuple, list):
        inner = [arg for arg in args if arg is not Ellipsis]
        plural = {int: "whole numbers", float: "numbers", str: "strings"}
        return f"a list of {plural.get(inner[0]) or _described(inner[0])}" if inner else "a list"
    if origin in (dict, Mapping) or (inspect.isclass(origin) and issubclass(origin, Mapping)):
        return "a mapping"
    if is_dataclass(hint):
        return f"a mapping of {', '.join(field.name for field in fields(hint))}"
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
    name = getattr(hint, "__name__", str(hint))
    return words.get(hint, {"Decimal": "a number", "Path": "a path"}.get(name, name))


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


def _omegaconf_line(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None)
    return f"{key}: {first_line(error)}" if key else first_line(error)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values. Interpolations are resolved, passwords in URLs removed."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    plain = _without_passwords(container)
    assert isinstance(plain, dict)
    runner = plain.get("runner")
    if isinstance(runner, dict):  # `runner.model: ${model}` would repeat the groups
        plain["runner"] = {k: v for k, v in runner.items() if k not in _KEYS}
    evaluation = plain.get("evaluation")
    if isinstance(evaluation, dict) and "command" in evaluation:  # it may interpolate the environment
        command = evaluation["command"]
        evaluation["command"] = (
            [without_secrets(str(part)) for part in command]
            if isinstance(command, list)
            else without_secrets(str(command))
        )
    return plain


def with_rules(plain: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    """A resolved configuration with the versions of its rules for rows, contexts and prompts, which decide answers.

    Unchanged for a run that uses its rows' own prompts.
    """
    rules = {
        "dataset": experiment.dataset.rules,
        "context": experiment.context.rules,
        "prompt": experiment.prompt.rules,
    }
    chosen = {key: rule for key, rule in rules.items() if not rule.startswith("given")}
    return {**plain, RULES: chosen} if chosen else dict(plain)


def _without_passwords(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_passwords(inner) for inner in value]
    return without_credentials(value) if isinstance(value, str) and "://" in value else value


def is_identity(key: str, plain: Mapping[str, Any] | None = None) -> bool:
    """Whether a key of the configuration, such as ``decoding.temperature``, is part of a run's identity: it may
    decide answers.

    Speed, addresses, the selection of instances, budgets and trackers are not part of a run's identity. The user's
    own classes declare the effect of their options as ours do.

    Args:
        plain: the resolved configuration, which names the user's classes.
    """
    group, _, rest = key.partition(".")
    if not rest:
        return group in _CHOICES
    if group == "runner":
        return rest == "_target_"
    if group == "provider":
        rest = _DEPLOYMENT.sub("", rest)
    if group not in IDENTITY_GROUPS or rest == "_target_":
        return group in IDENTITY_GROUPS
    ours, own = _parameters_of_class(key, plain or {})
    # A key has the same effect in each of our classes with it, so that the others need no import.
    parameters = own if ours and own else parameters_at(f"{group}.{rest.split('.')[0]}") or own
    options = [parameter.option for parameter in parameters]
    return all(option is None or option.effect == "answer" for option in options)


_DEPLOYMENT = re.compile(r"^(first|second|third|fourth)\.")
"""The prefix of a ``provider`` key that belongs to one of several deployments."""


def _parameters_of_class(key: str, plain: Mapping[str, Any]) -> tuple[bool, list[Parameter]]:
    """Whether the class that a key belongs to is ours, and the parameter that the key sets in it. Only classes that
    are imported already are found: the configuration may be untrusted, so nothing is imported for it."""
    group, _, rest = key.partition(".")
    node = plain.get(group)
    if group == "provider" and (match := _DEPLOYMENT.match(rest)) and isinstance(node, Mapping):
        node, rest = node.get(match[1]), rest[match.end() :]
    target = node.get("_target_") if isinstance(node, Mapping) else None
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    factory: Any = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if not inspect.isclass(factory):
        return False, []
    constructor: Callable[..., Any] = factory
    parameter = parameters_of(constructor).get(rest.partition(".")[0])
    return module.partition(".")[0] == __package__, [parameter] if parameter is not None else []


def in_digest(key: str, plain: Mapping[str, Any]) -> bool:
    """Whether a change of the key changes :func:`digest`. Groups such as ``experiment`` set keys of other groups, so
    their own name does not."""
    return is_identity(key, plain) and key.partition(".")[0] in plain


def identity(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide answers, flat: ``{"decoding.temperature": 0.0, …}``."""
    flat: dict[str, Any] = {}
    for group in IDENTITY_GROUPS:
        node = plain.get(group)
        keys = flatten(node if isinstance(node, Mapping) else {}, group)
        flat.update((k, v) for k, v in keys if is_identity(k, plain))
    flat = {key: value for key, value in flat.items() if not _is_given(key, value) and not _is_unset(key, value)}
    runner = plain.get("runner")
    flat["runner"] = runner.get("_target_") if isinstance(runner, Mapping) else None
    return flat


def _is_given(key: str, value: object) -> bool:
    """Whether a key has the value with which a row's own prompt is used unchanged."""
    return key.startswith(("context.", "prompt.")) and value in (None, _GIVEN.get(key))


_LATER_KEYS: Mapping[str, object] = {
    "model.effort": None,
    "model.thinking": None,
    "model.verbosity": None,
    "model.template_date": None,
    "provider.headers": {},
    "dataset.images": True,
}
"""Keys that earlier versions did not have, with their defaults. They are part of a run's identity only if they have
another value."""


def _is_unset(key: str, value: object) -> bool:
    """Whether a key of :data:`_LATER_KEYS` has its default."""
    group, _, rest = key.partition(".")
    plain = f"{group}.{_DEPLOYMENT.sub('', rest)}" if group == "provider" else key
    return plain in _LATER_KEYS and (value is None or value == _LATER_KEYS[plain])


HEADER = "# identity "
"""Start of a run's saved configuration, before its digest. Runs of earlier versions lack it."""


def as_yaml(plain: Mapping[str, Any]) -> str:
    """The text of the configuration in a run directory."""
    return f"{HEADER}{digest(plain)}\n{OmegaConf.to_yaml(OmegaConf.create(dict(plain)))}"


def shard_of(plain: Mapping[str, Any]) -> tuple[int | None, int]:
    """Index and count of a resolved configuration's shard; ``(None, 1)`` without a shard, or with invalid values,
    which may be untrusted."""
    shard = plain.get("shard")
    index, count = (shard.get("index"), shard.get("count")) if isinstance(shard, Mapping) else (None, None)
    if type(index) is not int or type(count) is not int or not 0 <= index < count:
        return None, 1
    return index, count


def continues_text(plain: Mapping[str, Any]) -> bool:
    """Whether the model of a saved configuration continues plain text, instead of answering messages.

    Raises:
        CheckpointError: its checkpoint would have to be read, and cannot be.
    """
    model = plain.get("model")
    model = model if isinstance(model, Mapping) else {}
    if model.get("prompt_format") != "auto":
        return model.get("prompt_format") == "raw"
    from swe_infer.llama.tokenizer import prompt_format_of
    from swe_infer.types import LlamaModel

    return prompt_format_of(LlamaModel(path=str(model.get("path")))) == "raw"


def coverage(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that select instances and turns, flat: ``{"dataset.limit": 4, …}``."""
    dataset, feedback = plain.get("dataset"), plain.get("feedback")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    turns = feedback.get("turns") if isinstance(feedback, Mapping) else None
    return {**{f"dataset.{key}": dataset.get(key) for key in COVERAGE}, "feedback.turns": turns}


def digest(plain: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits, equal for configurations with the same identity."""
    text = json.dumps(identity(plain), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences in identity, as ``key: before → now``."""
    return changes(identity(before), identity(now))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two flat configurations, as ``key: before → now``."""
    return [
        f"{key}: {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def run_name(plain: Mapping[str, Any], label: str, dataset: str, job: Sequence[str] = ()) -> str:
    """A run's name: readable, safe as a file name, and different for different configurations.

    Args:
        job: further parts, see :func:`job_name_parts`.
    """
    parts = [label, dataset]
    shard = plain.get("shard") or {}
    if shard.get("index") is not None:
        parts.append(f"shard{shard['index']}of{shard['count']}")
    parts += [digest(plain), *job]
    return "__".join(_UNSAFE.sub("-", part).strip("-.")[:60] for part in parts)


_UNSAFE = re.compile(r"[^A-Za-z0-9._+=-]+")
_READABLE = 30
_NAMED_BY_CHOICE = frozenset({"feedback"})
"""Groups whose chosen option is part of a job's name, instead of its keys."""


def job_name_parts(plain: Mapping[str, Any], swept: Iterable[str], overrides: Iterable[str] = ()) -> tuple[str, ...]:
    """The parts of a run's name that distinguish jobs of a sweep with the same identity: ``("limit=4",)``.

    Args:
        swept: the keys that the sweep varies. Keys of the identity are left out: the digest covers them.
        overrides: of the job. Only they name the choice of a group such as ``experiment``.
    """
    parts = []
    chosen = {key.lstrip("+"): option for key, _, option in (override.partition("=") for override in overrides)}
    for key in sorted(set(swept) - {"output_dir"}):
        if in_digest(key, plain):
            continue
        value: Any = plain if key.partition(".")[0] in plain else {key: chosen.get(key)}
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if key in _NAMED_BY_CHOICE:
            value = chosen.get(key)
        if isinstance(value, Mapping) and key in chosen:  # the node of a group
            value = chosen[key]
        if value is None and chosen and key not in chosen:
            continue  # the job's options do not have the key
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        safe = _UNSAFE.sub("-", text).strip("-.")
        if safe != text or len(safe) > _READABLE:
            safe = f"{safe[:_READABLE]}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"
        parts.append(f"{key.rpartition('.')[2]}={safe}")
    return tuple(parts)


def unsharded(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the whole run, from that of one of its shards."""
    return {**plain, "shard": {**plain["shard"], "index": None, "count": None}}


def unsharded_name(name: str, plain: Mapping[str, Any]) -> str:
    """The name of the whole run, from name and configuration of one of its shards."""
    return re.sub(r"__shard\d+of\d+__[0-9a-f]{12}", f"__{digest(unsharded(plain))}", name, count=1)


def run_id_of(directory: Path, plain: Mapping[str, Any]) -> str:
    """The run's id: the digest and a random part. It is stored in the run directory, so it survives resumes and
    moves."""
    path = directory / "run_id"
    if not path.exists():
        write_atomically(path, f"{digest(plain)}-{secrets.token_hex(3)}\n")
    return read_run_id(path)


def read_run_id(path: Path) -> str:
    """Reads the file that :func:`run_id_of` writes. It may be untrusted.

    Raises:
        StoreError: the file cannot be read, or contains no valid run id.
    """
    try:
        run_id = read_regular(path, 1 << 10).decode("ascii").strip()
    except UnicodeDecodeError:
        run_id = ""
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
    if not _RUN_ID.fullmatch(run_id):
        raise StoreError(f"{path}: contains no valid run id; remove it")
    return run_id


_RUN_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
