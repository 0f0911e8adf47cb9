"""The base of clouds that serve Claude: Messages with the version in the body, and no batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from swe_infer.providers.anthropic import FIRST_WITHOUT_SAMPLING
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.types import ApiModel, Request


@dataclass(kw_only=True, eq=False, repr=False)
class AnthropicCloud(AnthropicMessages):
    """Claude in a cloud, with the cloud's address and credentials."""

    counts_input: ClassVar[bool] = False
    has_fixed_headers: ClassVar[bool] = False
    max_concurrency: int = 64
    api_version: str = field(default="2023-06-01", init=False)  # the version is in the body
    address_may_be_versioned: ClassVar[bool] = True
    reserved: ClassVar[tuple[str, ...]] = (*AnthropicMessages.reserved, "anthropic_version")
    body_version: ClassVar[str]
    """``anthropic_version`` for models whose API version has sampling parameters."""

    @property
    def has_batches(self) -> bool:
        return False

    def image_fault(self, model: ApiModel, images: Sequence[str]) -> str | None:
        """These clouds accept images in base64 alone
        (https://platform.claude.com/docs/en/build-with-claude/vision)."""
        if (fault := super().image_fault(model, images)) is not None:
            return fault
        if all(url.startswith("data:") for url in images):
            return None
        return f"provider={self.name} accepts images as data URLs alone; dataset.images=false leaves the images out"

    def body(self, request: Request, model: ApiModel, *, cache_prompt: bool = False) -> dict[str, Any]:
        version = model.api_version or ""
        body_version = version if version >= FIRST_WITHOUT_SAMPLING else self.body_version
        return {"anthropic_version": body_version, **super().body(request, model, cache_prompt=cache_prompt)}

    def request_options(self, model: ApiModel) -> dict[str, Any]:
        return {}  # the version is in the body


def first_set(variables: Sequence[str]) -> str | None:
    """The value of the first environment variable that is set."""
    return next((os.environ[name] for name in variables if os.environ.get(name)), None)
