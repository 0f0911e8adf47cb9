"""``--shell-completion`` for bash, zsh and fish. Hydra is not imported.

As in Hydra, ``install=SHELL`` prints a script for the shell to evaluate, ``uninstall=SHELL`` one that removes it, and
``query=SHELL`` one candidate per line for the word of ``COMP_LINE`` that ends at ``COMP_POINT``.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from swe_infer.conf_files import (
    ROOT_KEYS,
    config_node,
    default_options,
    groups,
    node_of,
    options_of,
    overridden_by,
    parameters_at,
)
from swe_infer.errors import ConfigError

_FLAGS = (
    "--help", "--version", "--multirun", "-m", "--cfg", "--resolve", "--package", "--hydra-help",
    "--config-dir", "--config-name", "--shell-completion",
)  # fmt: skip

_INSTALL = {
    "bash": """\
_swe_infer() {
    local line="${COMP_LINE:0:COMP_POINT}" word found
    word="${line##*[[:space:]]}"
    COMPREPLY=()
    while IFS= read -r found; do
        # Readline replaces only the part after the last word break, such as "=" or ":".
        [[ -n $found ]] && COMPREPLY+=("${found#"${word%"${word##*[$COMP_WORDBREAKS]}"}"}")
    done < <(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" "$1" -sc query=bash 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _swe_infer COMMAND
complete -d -W "--help --host --open --port" swe-infer-view""",
    "zsh": """\
_swe_infer() {
    local -a found
    found=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" "${words[1]}" -sc query=zsh 2>/dev/null)}")
    found=(${found:#})
    if (( $#found )); then
        compadd -Q -S '' -- ${(M)found:#*[=.]}
        compadd -Q -- ${found:#*[=.]}
    else
        _files
    fi
}
compdef _swe_infer COMMAND
_swe_infer_view() { _arguments --help --open '--host:address' '--port:port' '1:folder:_directories' }
compdef _swe_infer_view swe-infer-view""",
    "fish": """\
complete -c COMMAND -f -a '(COMP_LINE=(commandline -cp) COMMAND -sc query=fish 2>/dev/null)'
complete -c swe-infer-view -f -a '(__fish_complete_directories)'
complete -c swe-infer-view -l help
complete -c swe-infer-view -l open
complete -c swe-infer-view -x -l host
complete -c swe-infer-view -x -l port""",
}
_UNINSTALL = {
    "bash": "complete -r COMMAND swe-infer-view; unset -f _swe_infer",
    "zsh": "compdef -d COMMAND swe-infer-view; unfunction _swe_infer _swe_infer_view",
    "fish": "complete -e -c COMMAND; complete -e -c swe-infer-view",
}


def completion(arguments: Sequence[str], command: str) -> str:
    """Returns the output of ``--shell-completion``.

    Args:
        arguments: the other arguments.
        command: the name by which the user calls this program.

    Raises:
        ConfigError: the arguments are not ``install=``, ``uninstall=`` or ``query=`` with a known shell.
    """
    asked = [argument.partition("=") for argument in arguments if not argument.startswith("-")]
    if len(asked) == 1 and (shell := asked[0][2]) in _INSTALL:
        if asked[0][0] == "query":
            line = os.environ.get("COMP_LINE", "")
            return "\n".join(candidates(line, _point(line)))
        scripts = {"install": _INSTALL, "uninstall": _UNINSTALL}.get(asked[0][0])
        if scripts is not None:
            return scripts[shell].replace("COMMAND", command)
    given = " ".join("=".join(filter(None, (name, shell))) for name, _, shell in asked)
    raise ConfigError(f"--shell-completion {given}: must be install=, uninstall= or query= with bash, zsh or fish")


def candidates(line: str, point: int | None = None) -> list[str]:
    """The sorted completions of the word that ends at ``point``.

    Args:
        line: the command line, including the program's name.
        point: the cursor, in characters; None: the end of the line.
    """
    before = line[:point]
    word = before.rpartition(" ")[2].replace("\t", "")
    others = [*before.split()[1:], *line[len(before) :].split()]
    if word and word in others:
        others.remove(word)
    chosen = _chosen(others)
    start, has_value, value = word.partition("=")
    if word.startswith("-"):
        found: Iterable[str] = _FLAGS
    elif has_value:
        earlier = value[: value.rfind(",") + 1]  # of a sweep
        found = (f"{start}={earlier}{one}" for one in _values(start.lstrip("+~"), chosen))
    else:
        sign = word[: len(word) - len(word.lstrip("+~"))]
        found = (sign + name for name in _names(word.lstrip("+~"), chosen))
    return sorted({one for one in found if one.startswith(word)})


def _point(line: str) -> int | None:
    """The cursor, if bytes and characters agree: some shells count bytes, others characters."""
    given = os.environ.get("COMP_POINT", "")
    return int(given) if given.isdecimal() and line.isascii() else None


def _chosen(overrides: Sequence[str]) -> Mapping[str, str]:
    """The chosen option of each group. A model chooses its provider and runner."""
    typed = {group: option for group, _, option in (o.lstrip("+").partition("=") for o in overrides)}
    if typed.get("provider", "").startswith("["):  # a list of providers
        typed["provider"] = "deployments"
    chosen = default_options()
    for group in ("model", "experiment"):
        option = typed.get(group, chosen.get(group, ""))
        if option in options_of(group):
            chosen |= overridden_by(group, option)
    return chosen | {group: option for group, option in typed.items() if option in options_of(group)}


def _names(word: str, chosen: Mapping[str, str]) -> Iterator[str]:
    """Groups, and the keys one level below ``word``."""
    yield from (f"{group}=" for group in groups())
    yield from (f"{key}=" for key in ROOT_KEYS)
    *path, _ = word.split(".")
    if not path:
        yield from (f"{group}." for group in chosen if "/" not in group)
        yield from ("shard.", "budget.", "sweep.")
        return
    node: Any = _node(path[0], chosen)
    for name in path[1:]:
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict):
        for name, value in node.items():
            is_inner = isinstance(value, dict) and bool(value)
            if name != "_target_" and not _is_group(value):
                yield f"{'.'.join([*path, name])}{'.' if is_inner else '='}"


def _node(group: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    option = chosen.get(group, "")
    return node_of(group, option) if option in options_of(group) else config_node(group)


def _is_group(value: Any) -> bool:
    """Whether a value refers to another group's node, such as ``${model}``."""
    return isinstance(value, str) and re.fullmatch(r"\$\{\w+\}", value) is not None


def _values(key: str, chosen: Mapping[str, str]) -> Iterator[str]:
    """The options of a group, or the literal values that a key accepts."""
    yield from options_of(key.partition("@")[0])
    hints = [ROOT_KEYS[key]] if key in ROOT_KEYS else [parameter.hint for parameter in parameters_at(key)]
    for hint in hints:
        yield from _words(hint)


def _words(hint: Any) -> Iterator[str]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _words(member)
    elif origin is typing.Literal:
        yield from map(str, typing.get_args(hint))
    elif hint is bool:
        yield from ("true", "false")
    elif hint is types.NoneType:
        yield "null"
