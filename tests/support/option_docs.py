"""Generates the comments in ``conf/`` and the page ``docs/options.md`` from the descriptions of the options.

``python -m tests.support.option_docs`` writes both; a test checks that they are up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from swe_infer.options import Parameter, parameters_of

ROOT = Path(__file__).resolve().parent.parent.parent
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "options.md"

_WIDTH = 118
_KEY = re.compile(r"(?P<indent> *)(?P<name>[\w-]+):(?P<value>.*?)(?P<comment>\s+#.*)?")

_HEAD = """\
# Options

Every key, with its default. The last column says what a key affects: `answer` keys are the identity of a run, and a
change of any other resumes the same run. An option may have other defaults than its class: `swe-infer --help
provider=ollama` shows them. This page is made from the classes by `python -m tests.support.option_docs`.

## Without a group

| key | default | what |
|---|---|---|
"""


def class_of(target: str) -> Any:
    """The class that a ``_target_`` names."""
    from hydra.utils import get_object

    return get_object(target)


def option_files() -> list[Path]:
    """The YAML files that name a class of this project, sorted."""
    files = sorted(path for path in CONF.rglob("*.yaml") if "hydra" not in path.relative_to(CONF).parts)
    return [path for path in files if "_target_: swe_infer." in path.read_text(encoding="utf-8")]


def commented(text: str) -> str:
    """The text of a YAML file, with the description of each option as a comment.

    A description that is too long for the line of its key replaces the comment line above it.
    """
    nodes = _described(yaml.safe_load(text))
    lines: list[str] = []
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = _KEY.fullmatch(line)
        if found is None:
            lines.append(line)
            continue
        indent = len(found["indent"])
        path = [(depth, name) for depth, name in path if depth < indent]
        description = nodes.get(tuple(name for _, name in path), {}).get(found["name"])
        path.append((indent, found["name"]))
        if description is None:
            lines.append(line)
            continue
        above = len(lines) > 1 and not lines[-2].lstrip().startswith("#")  # a longer block is not generated
        if above and lines[-1].startswith(f"{found['indent']}# "):
            lines.pop()
        plain = f"{found['indent']}{found['name']}:{found['value'].rstrip()}"
        whole = f"{plain} # {description}"
        lines += [whole] if len(whole) <= _WIDTH else [f"{found['indent']}# {description}", plain]
    return "\n".join(lines) + "\n"


def _described(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Mapping[str, str]]:
    """The descriptions of the keys of every node with a class of this project."""
    if not isinstance(node, dict):
        return {}
    found: dict[tuple[str, ...], Mapping[str, str]] = {}
    target = node.get("_target_")
    if isinstance(target, str) and target.startswith("swe_infer."):
        parameters = parameters_of(class_of(target)).values()
        found[path] = {
            p.name: p.option.doc for p in parameters if p.option is not None and _is_leaf(node.get(p.name))
        }
    for key, value in node.items():
        found |= _described(value, (*path, str(key)))
    return found


def _is_leaf(value: Any) -> bool:
    """Whether a key gets a comment: not if its value is a node or an interpolation."""
    return not (isinstance(value, dict) and value) and not (isinstance(value, str) and value.startswith("${"))


def page() -> str:
    """The reference page."""
    return _HEAD + "".join([*_rows_without_group(), *_sections()])


def _rows_without_group() -> Iterator[str]:
    """A row for each key of ``conf/config.yaml`` itself, with its comment, which may go on in further lines."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    for found in re.finditer(r"^(\w+): (\S+) +# (.+(?:\n +# .+)*)$", text, re.MULTILINE):
        key, default, comment = found.groups()
        what = " ".join(part.strip().removeprefix("# ") for part in comment.split("\n"))
        yield f"| `{key}` | `{default}` | {what} |\n"


def _sections() -> Iterator[str]:
    seen: dict[tuple[str, str], tuple[list[str], Mapping[str, Any]]] = {}
    for path in option_files():
        option = path.relative_to(CONF).with_suffix("")
        for place, node in _nodes(yaml.safe_load(path.read_text(encoding="utf-8")), option.parent.parts):
            name = str(option) if place == ".".join(option.parent.parts) else place
            seen.setdefault((place, node["_target_"]), ([], node))[0].append(name)
    for (place, target), (names, node) in sorted(seen.items(), key=lambda item: item[1][0]):
        shown = [p for p in parameters_of(class_of(target)).values() if not _is_set_elsewhere(node.get(p.name))]
        if rows := [row for parameter in shown for row in _row(place, parameter)]:
            heading = ", ".join(f"`{name}`" for name in dict.fromkeys(names))
            yield f"\n## {heading}\n\n`{target}`\n\n| key | default | what | affects |\n|---|---|---|---|\n"
            yield "".join(rows)


def _nodes(node: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, node) of each node with a class of this project."""
    if isinstance(node, dict):
        if str(node.get("_target_")).startswith("swe_infer."):
            yield ".".join(place), node
        for key, value in node.items():
            yield from _nodes(value, (*place, str(key)))


def _is_set_elsewhere(value: Any) -> bool:
    """Whether a key has a section of its own, or the value of another key."""
    return (isinstance(value, dict) and "_target_" in value) or (isinstance(value, str) and value.startswith("${"))


def _row(place: str, parameter: Parameter) -> Iterator[str]:
    if parameter.option is not None:
        default = "" if parameter.default is parameter.empty else f"`{_shown(parameter.default)}`"
        doc = parameter.option.doc.replace("|", "\\|")
        yield f"| `{place}.{parameter.name}` | {default} | {doc} | {parameter.option.effect} |\n"


def _shown(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if isinstance(value, str | int | float) or value in ({}, []) else type(value).__name__


def main() -> int:
    for path in option_files():
        path.write_text(commented(path.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
