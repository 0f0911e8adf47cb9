"""Turns ``model.path`` into a directory: on disk, in the package, or a snapshot from the Hugging Face hub.

``huggingface_hub`` respects ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_TOKEN``.
"""

from __future__ import annotations

from pathlib import Path

from swe_infer.errors import CheckpointError
from swe_infer.resources import is_hub_name, resolve_path
from swe_infer.text import first_line

_CONFIGS = ["*.json", "*.model", "*.jinja", "tokenizer*"]


def config_directory(path: str, marker: str, *, key: str = "model.path") -> Path:
    """The directory, with configuration and tokenizer files but, from the hub, without weights.

    Args:
        marker: a file that must be there, such as ``config.json``.
        key: the configuration key that errors name.

    Raises:
        CheckpointError: there is neither such a directory nor such a repository.
    """
    return _resolve(path, marker, key, _CONFIGS)


def snapshot_directory(path: str, marker: str, *, allow_pickle: bool, key: str = "model.path") -> Path:
    """The directory with its weights. Pickled weights are fetched only if allowed."""
    patterns = [*_CONFIGS, "*.safetensors", *(["*.bin"] if allow_pickle else [])]
    return _resolve(path, marker, key, patterns)


def _resolve(path: str, marker: str, key: str, patterns: list[str]) -> Path:
    directory = Path(resolve_path(path, key))
    if directory.is_dir():
        return directory
    if directory.exists():
        raise CheckpointError(f"{key}={path} is a file; give the directory that holds {marker}")
    if not is_hub_name(path):
        raise CheckpointError(f"{key}={path}: there is no such directory")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{key}={path}: there is no such directory, and the Hugging Face hub did not give it ({reason})"
        ) from error
