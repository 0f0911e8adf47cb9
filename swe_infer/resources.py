"""Files that travel inside the package, named in configurations as ``package://MODULE/PATH``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from swe_infer.errors import ConfigError

__all__ = ["resolve_path"]

_SCHEME = "package://"


def resolve_path(path: str) -> str:
    """The place on disk of ``package://swe_infer.sample/tiny_llama``; any other path comes back with ``~`` expanded.

    Raises:
        ConfigError: the module does not exist, or holds no such file.
    """
    if not path.startswith(_SCHEME):
        return str(Path(path).expanduser()) if path.startswith("~") else path
    module, _, inner = path.removeprefix(_SCHEME).partition("/")
    try:
        root = Path(str(files(module)))
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: there is no package {module}") from None
    found = root / inner
    if not found.exists():
        raise ConfigError(f"{path}: {module} holds no {inner}; is the installation complete?")
    return str(found)
