"""Writes the comparison page: one HTML file with its data, or, for a server, one that fetches them.

Scripts and style are inline, and the content security policy names their hashes, so no other script runs and, in the
file, no request is made. Data from runs is embedded as JSON or compressed bytes and rendered as text, never as
markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from swe_infer.compare.analysis import FULL, Comparison, differ
from swe_infer.compare.page_data import InstanceDetails, page_data
from swe_infer.errors import ConfigError

_VENDOR = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
_MODULES = ("dom.js", "source.js", "charts.js", "tables.js", "diff.js", "instances.js", "instance.js", "main.js")
"""In the order in which they may use each other."""
_CHUNK = 200_000
"""Characters of JSON that the page unpacks at once to show an instance."""


def write_report(
    comparison: Comparison, path: Path, *, prompts: bool = True, full: int | Sequence[str] = FULL
) -> None:
    """Writes the page as one self-contained file, with the patches of all instances.

    Args:
        prompts: include prompts, gold patches and files, if their dataset is available.
        full: the instances to include with prompt, answers and reasoning: their ids, or their number, of which those
            on which the runs differ are the first.

    Raises:
        ConfigError: no run has an instance of ``full``, or the records of a run cannot be read.
        OSError: ``path`` cannot be written.
    """
    chosen = _chosen(comparison, full)
    with InstanceDetails(comparison, prompts=prompts) as details, path.open("w", encoding="utf-8") as file:
        details.load(chosen.__contains__)
        data = page_data(comparison)
        data["figures"]["notes"] += details.notes
        head, tail = _page().split("<!-- data -->")
        file.write(head)
        starts = _write_details(file, list(comparison.scores), details)
        for number, name in enumerate(comparison.scores):
            if name in chosen:
                _write_packed(file, f"full-{number}", details.full_part(name))
        file.write(f'<script type="application/json" id="figures">{page_json(data["figures"])}</script>\n')
        _write_packed(file, "index", data["index"] | {"chunks": starts})
        file.write(tail)


def served_page(data_url: str, *, refresh_s: float = 5.0, home_url: str | None = None) -> str:
    """The page for a server. It fetches ``comparison.json``, the value of
    :func:`swe_infer.compare.page_data.page_data`, and ``instance.json?id=ID``, that of
    :meth:`swe_infer.compare.page_data.InstanceDetails.of`, from ``data_url`` and appends its own query string.

    Args:
        refresh_s: seconds between two requests for new figures; 0: none.
        home_url: the page with all runs.
    """
    meta = {"data-source": data_url, "data-refresh": f"{refresh_s:g}"}
    if home_url is not None:
        meta["home"] = home_url
    return _page(served=True, meta=meta).replace("<!-- data -->", "")


def page_policy(*, served: bool = False) -> str:
    """The content security policy of the page."""
    return _policy(_scripts(), style_sheet(), served=served)


def style_sheet() -> str:
    """The style of the page."""
    return _read("style.css")


def _page(*, served: bool = False, meta: Mapping[str, str] | None = None) -> str:
    return inline_page(_read("page.html"), _scripts(), style_sheet(), served=served, meta=meta or {})


def inline_page(
    template: str, scripts: Sequence[str], style: str, *, served: bool = False, meta: Mapping[str, str]
) -> str:
    """A page with inline scripts and style, and a content security policy that allows no others.

    Args:
        template: HTML with ``<!-- meta -->``, ``/* style */`` and ``<!-- scripts -->``.
        served: the scripts may send requests to the server of the page.
        meta: names and contents of ``<meta>`` elements.
    """
    head = [
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts, style, served=served)}">',
        *(f'<meta name="{escape(name)}" content="{escape(content)}">' for name, content in meta.items()),
    ]
    return (
        template.replace("<!-- meta -->", "\n".join(head))
        .replace("/* style */", style)
        .replace("<!-- scripts -->", "\n".join(f"<script>{script}</script>" for script in scripts))
    )


def _policy(scripts: Sequence[str], style: str, *, served: bool) -> str:
    parts = [
        "default-src 'none'",
        f"script-src {' '.join(map(_hash, scripts))}",
        f"style-src {_hash(style)}",
        "img-src data:",
        *(["connect-src 'self'"] if served else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(parts)


def _hash(content: str) -> str:
    """A source expression of Content Security Policy level 2 for an inline element with this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}'"


@cache
def _read(name: str) -> str:
    return (files("swe_infer.compare") / "page" / name).read_text(encoding="utf-8")


@cache
def _scripts() -> tuple[str, ...]:
    """The libraries, each with its licence, and the page's modules as one script."""
    libraries = [f"/*!\n{_read(name.partition('.')[0] + '.LICENSE')}*/\n{_read(name)}" for name in _VENDOR]
    modules = "\n".join(f"modules['./{name}'] = (() => {{\n{_scoped(_read(name))}\n}})();" for name in _MODULES)
    return (*libraries, f"'use strict';\n{{\nconst modules = {{}};\n{modules}\n}}")


_IMPORT = re.compile(r"^import (\{[^}]*\}) from ('\./\w+\.js');$", re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:const|(?:async )?function|class) (\w+))", re.MULTILINE)


def _scoped(module: str) -> str:
    """The body of a function that does what a module does and returns what it exports.

    Inline modules of a page cannot import each other."""
    names = [match[2] for match in _EXPORT.finditer(module)]
    body = _EXPORT.sub(r"\1", _IMPORT.sub(r"const \1 = modules[\2];", module))
    return f"{body}\nreturn {{ {', '.join(names)} }};"


def _write_details(file: IO[str], names: Sequence[str], details: InstanceDetails) -> list[int]:
    """Writes the patches and outcomes of all instances in chunks. Returns the first instance of each chunk."""
    starts: list[int] = []
    texts: list[str] = []
    size = 0

    def flush() -> None:
        nonlocal texts, size
        _write_packed_text(file, f"chunk-{len(starts) - 1}", f"[{','.join(texts)}]")
        texts, size = [], 0

    for number, name in enumerate(names):
        text = page_json(details.of(name, full=False))
        if texts and size + len(text) > _CHUNK:
            flush()
        if not texts:
            starts.append(number)
        texts.append(text)
        size += len(text)
    if texts:
        flush()
    return starts


def _write_packed(file: IO[str], name: str, value: object) -> None:
    _write_packed_text(file, name, page_json(value))


def _write_packed_text(file: IO[str], name: str, text: str) -> None:
    """Writes an element with compressed text, which the page unpacks on demand."""
    packed = base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")
    file.write(f'<script type="text/plain" id="{name}">{packed}</script>\n')


def page_json(value: object) -> str:
    """ASCII JSON in which no string can close the enclosing element."""
    text = json.dumps(value, separators=(",", ":"))
    if "\\ud" in text:
        text = json.dumps(_without_lone_surrogates(value), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _without_lone_surrogates(value: Any) -> Any:
    """``value`` with lone surrogates replaced: models write them, and browsers handle them differently."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_lone_surrogates(key): _without_lone_surrogates(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_lone_surrogates(inner) for inner in value]
    return value


def _chosen(comparison: Comparison, full: int | Sequence[str]) -> frozenset[str]:
    """The ids of the instances that ``full`` names."""
    if isinstance(full, int):
        names = sorted(comparison.scores, key=lambda name: not differ(comparison.scores[name]))
        return frozenset(names[:full])
    for name in full:
        if name not in comparison.scores:
            raise ConfigError(f"--full {name}: no run has this instance")
    return frozenset(full)
