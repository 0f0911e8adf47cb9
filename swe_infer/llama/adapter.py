"""``adapter_config.json`` of a LoRA adapter in the format of the ``peft`` package, read without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swe_infer.errors import CheckpointError
from swe_infer.llama.config import read_json

_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "layer_replication",
    "megatron_config",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "target_parameters",
    "use_qalora",
    "lora_bias",
)


def check_adapter(directory: Path) -> dict[str, Any]:
    """Read and validate ``adapter_config.json``. No weights are read.

    Raises:
        CheckpointError: the file is missing, the method is not LoRA, or the variant is not supported.
    """
    path = directory / "adapter_config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} has no adapter_config.json, so it is not a PEFT adapter")
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type={config.get('peft_type')}; only LORA adapters can be merged")
    used = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append(f"bias={config['bias']}")
    if used:
        raise CheckpointError(f"{path}: {', '.join(used)} is not supported")
    values = {key: config.get(key) for key in ("r", "lora_alpha")}
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, Mapping):
            raise CheckpointError(f"{path}: {key}={patterns!r}: must be an object with a number for each pattern")
        for pattern, value in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(f"{path}: {key}: {pattern!r} is not a regular expression ({error})") from error
            values[f"{key}.{pattern}"] = value
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(f"{path}: {key}={value!r}: must be a positive number")
    return config
