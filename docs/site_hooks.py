"""MkDocs hooks: pages from files outside ``docs/``, and links between any two files of the repository.

Pages are written with links that work in a checkout, such as ``../SECURITY.md``. On the site a link to a file that is
a page leads to that page, and a link to any other file of the repository becomes its text.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "index.md": "README.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "examples.md": "examples/README.md",
    "tests.md": "tests/README.md",
    "benchmarks.md": "benchmarks/README.md",
}
"""Pages of the site that are files outside ``docs/``."""
FOLDERS = {"examples": "examples.md", "tests": "tests.md", "benchmarks": "benchmarks.md"}

LINK = re.compile(r"(?P<image>!?)\[(?P<label>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, config: Any) -> Files:
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    name = page.file.src_uri
    source = ROOT / PAGES.get(name, f"docs/{name}")

    def rewritten(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link["target"]))
        if not target.exists():
            log.warning("%s links to %s, which does not exist", source.relative_to(ROOT), link["target"])
        place = target.relative_to(ROOT).as_posix()
        of_page = {path: uri for uri, path in PAGES.items()} | FOLDERS
        if place in of_page:
            uri = of_page[place]
        elif place.startswith("docs/"):
            uri = place.removeprefix("docs/")
        else:
            return link["label"]
        return f"{link['image']}[{link['label']}]({uri}{link['anchor'] or ''})"

    return LINK.sub(rewritten, markdown)
