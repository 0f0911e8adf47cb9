"""Compares patches by the files that result from them.

As in Agentless (``normalize_patch``, https://github.com/OpenAutoCoder/Agentless), Python files are compared by their
syntax tree without docstrings, so formatting, comments and docstrings do not count. Other files, and Python files
that do not parse, are compared by their lines without differences in white space.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Iterable, Mapping

from swe_infer.patches.apply import apply_patch
from swe_infer.patches.diff import FilePatch, PatchError, parse_as_git

ResultKey = tuple[str, ...]
"""Equal for patches with the same result."""

_PYTHON = (".py", ".pyi")
_INDENTED = (*_PYTHON, ".pyx", ".pxd", ".yml", ".yaml")
"""Files whose indentation counts."""
_MOST_CHARACTERS = 1 << 19
"""Longer files are not parsed: the parser takes memory in proportion."""


class PatchResults:
    """The results of patches to one instance.

    Args:
        files: of the instance, path to content.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files
        self._keys: dict[str, ResultKey] = {}
        self._digests: dict[tuple[str, str], str] = {}

    def key(self, patch: str) -> ResultKey:
        """Identifies the files that result from a patch. A patch that does not apply to the files, or whose files are
        not known, is identified by its changed lines without differences in white space."""
        if patch not in self._keys:
            self._keys[patch] = self._of_files(patch) or _of_text(patch)
        return self._keys[patch]

    def _of_files(self, patch: str) -> ResultKey | None:
        try:
            applied = apply_patch(patch, self._files)
        except PatchError:
            return None
        if applied.unknown_files:
            return None
        parts = []
        for path, content in sorted(applied.files.items()):
            before = self._files.get(path)
            if content != before and (now := self._digest(path, content)) != self._digest(path, before):
                parts += [path, now]
        return ("files", *parts)

    def _digest(self, path: str, content: str | None) -> str:
        if content is None:
            return "removed"
        key = (path, hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest())
        if key not in self._digests:
            text = normalised(path, content)
            self._digests[key] = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        return self._digests[key]


def normalised(path: str, content: str) -> str:
    """The content of a file without what does not count."""
    if path.endswith(_PYTHON) and (tree := _syntax_tree(content)) is not None:
        return tree
    return "\n".join(_words(content.split("\n"), keep_indentation=path.endswith(_INDENTED)))


def _syntax_tree(content: str) -> str | None:
    """The syntax tree of Python code without positions and docstrings; None if the code does not parse."""
    if len(content) > _MOST_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like
            tree = ast.parse(content)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                _remove_docstring(node)
            elif isinstance(node, ast.Constant):
                node.kind = None  # the prefix of u"…"
        return ast.dump(tree, annotate_fields=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _remove_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    if ast.get_docstring(node, clean=False) is None:
        return
    del node.body[0]
    if not node.body and not isinstance(node, ast.Module):
        node.body.append(ast.Pass())


def _words(lines: Iterable[str], *, keep_indentation: bool) -> Iterable[str]:
    """The lines without differences in white space; blank ones are left out."""
    for line in lines:
        if text := " ".join(line.split()):
            width = len(wide := line.expandtabs()) - len(wide.lstrip()) if keep_indentation else 0
            yield " " * width + text


def _of_text(patch: str) -> ResultKey:
    try:
        return ("changes", *(part for file in parse_as_git(patch) for part in _changes(file)))
    except PatchError:
        return ("text", *_words(patch.split("\n"), keep_indentation=False))


def _changes(file: FilePatch) -> Iterable[str]:
    yield f"{file.old_path}\0{file.new_path}"
    for hunk in file.hunks:
        for line in hunk.lines:
            if line.tag != " " and (words := " ".join(line.text.split())):
                yield line.tag + words
