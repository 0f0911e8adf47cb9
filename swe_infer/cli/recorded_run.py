"""The recorded configuration of a run, for ``from=RUN_DIR`` and ``from=wandb:ENTITY/PROJECT/ID``.

It may be untrusted. Interpolations, such as of environment variables, are refused. So are remote addresses, names
of credentials, and permissions to execute code, unless the user gives them again.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from swe_infer.cli.quoting import quote
from swe_infer.errors import ConfigError
from swe_infer.options import Parameter
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.text import clean, flatten, shown
from swe_infer.types import PathText

WANDB = "wandb:"

_REDACTED = re.compile(r"://\*\*\*@|=\*\*\*")
"""What remains of a credential in a recorded URL."""

_PLACE = re.compile(r"^provider\.(first|second|third|fourth)\.")

_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "model.allow_pickle": (False,),
    "dataset.run_tests": (True, False),
    "evaluation.command": (),
    "evaluation.sandbox": (True,),
    "provider.executable": (),
    "provider.extra_args": ([],),
}
"""Keys that may execute code, with the values that do not."""

_PLAIN_NAME = re.compile(r"[A-Za-z][\w-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Difference:
    """A recorded value that differs from that of the composed options.

    Args:
        value: None with ``is_absent``, if the recorded mapping lacks the key.
        parameter: of the class that the key configures; None for keys of the root.
    """

    key: str
    value: Any
    parameter: Parameter | None = None
    is_absent: bool = False


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A recorded configuration.

    Args:
        source: the run, as the user named it.
        plain: its resolved configuration.
    """

    source: str
    plain: Mapping[str, Any]

    def error(self, message: str) -> ConfigError:
        """An error that names the run."""
        return ConfigError(f"from={self.source}: {clean(message)}")

    def override(self, difference: Difference) -> str:
        """The override that sets a recorded value.

        Raises:
            ConfigError: an untrusted configuration must not set it, or Hydra's grammar has no form for it.
        """
        if difference.is_absent:
            return f"~{difference.key}"
        self._check(difference)
        return f"++{difference.key}={self.literal(difference.value, difference.key)}"

    def accepts(self, difference: Difference) -> bool:
        """Whether :meth:`override` accepts the value."""
        try:
            self.override(difference)
        except ConfigError:
            return False
        return True

    def _check(self, difference: Difference) -> None:
        key, value = difference.key, difference.value
        if any(_REDACTED.search(text) for text in _texts(value)):
            raise self._not_inherited(key, "was recorded without its credential")
        if _may_execute(key, value):
            raise self._not_inherited(key, f"is {shown(value)}, which may execute code")
        if _is_address(difference):
            raise self._not_inherited(key, f"is {shown(value)}, an address or credential of the recorded run")

    def _not_inherited(self, key: str, reason: str) -> ConfigError:
        return self.error(f"{key} {reason}; give {key}=… on the command line")

    def literal(self, value: Any, key: str) -> str:
        """A value in Hydra's grammar."""
        match value:
            case None:
                return "null"
            case bool():
                return str(value).lower()
            case int() | float():
                return repr(value)
            case str():
                return quote(value)
            case list():
                return f"[{','.join(self.literal(item, key) for item in value)}]"
            case dict() if all(isinstance(name, str) and _PLAIN_NAME.fullmatch(name) for name in value):
                return "{" + ",".join(f"{name}:{self.literal(item, key)}" for name, item in value.items()) + "}"
        raise self.error(f"{key}={shown(value)}: cannot be taken from a recorded run")


def read_recorded(source: str) -> RecordedRun:
    """Reads the configuration of a run directory or a W&B run.

    Raises:
        ConfigError: there is no such run, or its configuration cannot be read or contains interpolations.
    """
    run = RecordedRun(source, RunDirectory(_directory(source)).config())
    if not run.plain:
        raise run.error("contains no configuration of a run; name a run directory")
    for key, value in flatten(run.plain):
        if "${" in key or "${" in str(value):
            raise run.error(f"{key}: contains an interpolation, which no run writes")
    return run


def _directory(source: str) -> Path:
    """The run directory, downloaded if necessary."""
    if not source.startswith(WANDB):
        from swe_infer.remote.reading import readable_path

        directory = readable_path(source, "from")
        if not directory.is_dir():
            raise ConfigError(f"from={source}: directory not found; name a run directory or {WANDB}ENTITY/PROJECT/ID")
        return directory
    from swe_infer.tracking.download import WandbAddress, download_runs

    try:
        address = WandbAddress.parse(source)
        if address.kind != "run":
            raise ConfigError(f"must name one run, {WANDB}ENTITY/PROJECT/RUN_ID")
        runs, _ = download_runs([address])
    except ConfigError as error:
        raise ConfigError(f"from={source}: {str(error).removeprefix(f'{source}: ')}") from None
    return runs[0].directory


def _may_execute(key: str, value: Any) -> bool:
    """Whether the value of a key may execute code of the configuration's author."""
    plain_key = _PLACE.sub("provider.", key)
    return any(
        plain_key == name or plain_key.startswith(f"{name}.")
        for name, harmless in _HARMLESS.items()
        if value not in harmless
    )


def _is_address(difference: Difference) -> bool:
    """Whether the value names a remote server, an account or a credential. Local paths and switches are none."""
    key, value, parameter = difference.key, difference.value, difference.parameter
    if key == "tracker.entity":
        return value is not None
    if parameter is None or PathText in (parameter.hint, *get_args(parameter.hint)):
        return False
    option = parameter.option
    if option is not None and option.effect != "address":
        return False
    if isinstance(value, str) and (option is not None or key.endswith("_env")):
        return not _is_loopback(value)
    return any("://" in text and not _is_loopback(text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
