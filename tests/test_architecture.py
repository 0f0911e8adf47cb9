"""The house: imports point one way, heavy packages stay in their rooms, and importing stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "swe_infer"

LEVELS = [
    {"errors", "interrupts"},
    {"types", "resources", "files", "redaction"},
    {"prompts", "spill", "asked"},
    {"providers", "llama", "sample"},
    {"api", "data", "patches", "tracking", "store"},
    {"runners", "compare", "evaluate"},
    {"config"},
    {"cli"},
    {"merge"},
]
"""Lowest first. A room may import from any lower level, and from itself."""

HOMES = {
    "torch": {"llama"},
    "transformers": {"llama"},
    "safetensors": {"llama"},
    "ray": {"llama"},
    "hydra": {"cli", "config"},
    "omegaconf": {"cli", "config"},
    "openai": {"providers"},
    "anthropic": {"providers"},
    "boto3": {"providers"},
    "botocore": {"providers"},
    "google": {"providers"},
    "wandb": {"tracking"},
    "wandb_workspaces": {"tracking"},
    "datasets": {"data"},
    "genai_prices": {"api"},
    "tiktoken": {"api"},
}
"""The rooms that may name a package."""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level_of(room: str) -> int | None:
    return next((i for i, rooms in enumerate(LEVELS) if room in rooms), None)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[Path]:
    return sorted(
        p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py") or p.parent != PACKAGE
    )


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    level = level_of(room)
    assert level is not None, f"{room} is a new room: give it a level in this test and a line in the README"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "swe_infer" or len(parts) < 2 or parts[1] == room:
            continue
        other = level_of(parts[1])
        assert other is None or other < level, f"{path.name} ({room}) may not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_heavy_package_is_named_in_its_room_alone(path: Path) -> None:
    for name in imports(path):
        homes = HOMES.get(name.partition(".")[0])
        assert homes is None or room_of(path) in homes, f"{name} belongs to {homes}"


def test_building_a_run_imports_no_heavy_package() -> None:
    code = (
        "import sys; from swe_infer.cli import run; import swe_infer.runners.api, swe_infer.runners.llama;"
        f"print([m for m in {sorted(HOMES)!r} if m not in ('hydra', 'omegaconf') and m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_collecting_imports_no_heavy_package(heavy_imports: list[str]) -> None:
    assert heavy_imports == [], "import it under TYPE_CHECKING: see tests/conftest.py"
