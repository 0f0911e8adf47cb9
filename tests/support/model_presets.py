"""Refreshes the presets of ``conf/model`` from genai-prices and the tables of the vendors' SDKs.

``python -m tests.support.model_presets`` writes the changes and prints them as a diff; with ``--check`` it writes
nothing and ends with status 1 if there is one. It updates ``context_window`` and ``retires``. A line with a comment
of its own is kept: the comment names its source.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import yaml

from swe_infer.conf_files import conf_dir, file_of, overridden_by
from swe_infer.presets import presets

_ORDINAL = re.compile(r"(\d+)(st|nd|rd|th)")
_ENTRY = re.compile(r'- ((?:"[^"]+",? ?)+): Announced shutdown date: (\d{4}-\d{2}-\d{2})')


@functools.cache
def retirements() -> Mapping[str, str]:
    """Model names and their dates of retirement, from the SDKs of Anthropic and OpenAI."""
    import openai.types.shared.chat_model as chat_model
    from anthropic.resources.messages.messages import DEPRECATED_MODELS

    found = {}
    for name, text in DEPRECATED_MODELS.items():
        found[name] = datetime.strptime(_ORDINAL.sub(r"\1", text), "%B %d, %Y").date().isoformat()
    assert chat_model.__file__ is not None
    # OpenAI's table is the text below the type of the names.
    source = " ".join(Path(chat_model.__file__).read_text(encoding="utf-8").split())
    for names, date in _ENTRY.findall(source):
        found.update(dict.fromkeys(re.findall(r'"([^"]+)"', names), date))
    return found


def context_window(name: str, pricing_id: str | None) -> int | None:
    """A model's context window in genai-prices; None if it is not listed."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        listed = get_snapshot().find_provider(None, pricing_id, None)
    except LookupError:
        return None
    model = listed.find_model(name) if pricing_id is not None else None
    return None if model is None else model.context_window


def refreshed(text: str, *, window: int | None, retires: str | None) -> str:
    """The text of a preset's file with these facts; None: not known, and left as it is."""
    facts = {"context_window": None if window is None else str(window)}
    facts["retires"] = None if retires is None else f'"{retires}"'
    lines = text.splitlines()
    for key, value in facts.items():
        at = next((i for i, line in enumerate(lines) if line.startswith(f"{key}:")), None)
        if value is None or (at is not None and "#" in lines[at]):
            continue
        if at is None:
            after = "name" if key == "context_window" else "parameters"
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{after}:")) + 1
            lines.insert(at, "")
        lines[at] = f"{key}: {value}"
    return "\n".join(lines) + "\n"


def changes() -> Mapping[Path, str]:
    """The files that are out of date, with their new text."""
    found = {}
    for option, preset in presets().items():
        path = file_of("model", option)
        provider = overridden_by("model", option).get("provider", "openai")
        pricing_id = yaml.safe_load(file_of("provider", provider).read_text(encoding="utf-8")).get("pricing_id")
        window = context_window(preset.model.price_as or preset.name, pricing_id)
        retires = retirements().get(preset.name) if preset.vendor in ("anthropic", "openai") else None
        text = path.read_text(encoding="utf-8")
        if (new := refreshed(text, window=window, retires=retires)) != text:
            found[path] = new
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Refreshes the presets of conf/model; prints the diff.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a preset is out of date")
    check = parser.parse_args(arguments).check
    changed = changes()
    for path, new in changed.items():
        name = str(path.relative_to(conf_dir().parent))
        old = path.read_text(encoding="utf-8")
        sys.stdout.writelines(
            difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), name, name)
        )
        if not check:
            path.write_text(new, encoding="utf-8")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
