"""The environment of a process that runs W&B's SDK: no key but W&B's, and W&B's own folders where we say."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["guest_environment"]

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)


def guest_environment(folder: Path) -> dict[str, str]:
    """This process's environment for a guest that is not to be trusted with more than it needs.

    Args:
        folder: takes W&B's cache, its settings, and copies of what it moves.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("WANDB_") or not _SECRET_NAME.search(name)
    }
    environment.pop("WANDB_SERVICE", None)  # another process's wandb-core
    if not os.path.isabs(os.path.expanduser("~")):  # the SDK needs a home directory, if only to look into it
        environment["HOME"] = str(folder)
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {
        "PYTHONPATH": os.pathsep.join(paths),
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_ARTIFACT_DIR": str(folder / "data"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "WANDB_ERROR_REPORTING": "false",
    }
