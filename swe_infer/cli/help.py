"""``--help``: the groups, their options, and the YAML files with their comments. Hydra is not imported.

``--cfg job`` shows a configuration as Hydra composes it, and ``--hydra-help`` Hydra's own flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from swe_infer.conf_files import (
    ROOT_KEYS,
    conf_dir,
    default_options,
    defaults_of,
    file_of,
    groups,
    options_of,
    suggestion,
)
from swe_infer.errors import ConfigError

_HEADER = """\
swe-infer: SWE-bench inference. Prompts in, patches out; the same command resumes the same run.

Usage: swe-infer [-m] [GROUP=OPTION] [KEY=VALUE] ...
"""
_FOOTER = """\
Flags: -m a sweep, one run for each point; --cfg job shows a configuration without running it; --help GROUP shows the
options of a group and their keys, --help GROUP=OPTION one option; --version; --hydra-help shows the rest.

Examples:
  swe-infer                                                     the embedded default: no network, key or GPU
  swe-infer model=gpt-4o dataset=swebench_lite_oracle budget.max_usd=20
  swe-infer -m decoding=sample decoding.temperature=0.2,0.8
  swe-infer --cfg job model=claude-sonnet-4-5
  swe-infer --help provider=anthropic

Completion: eval "$(swe-infer -sc install=bash)", the same with zsh, or swe-infer -sc install=fish | source

API keys come from the environment alone: OPENAI_API_KEY, AZURE_OPENAI_API_KEY, ANTHROPIC_API_KEY, WANDB_API_KEY."""

_WIDTH = 118


def help_text(topics: Sequence[str] = ()) -> str:
    """The help of the command, or of groups and options.

    Args:
        topics: ``GROUP``, ``GROUP=OPTION``, ``KEY`` or ``KEY=VALUE``; a dotted key stands for its group.

    Raises:
        ConfigError: there is no such group or option.
    """
    parts = list(dict.fromkeys(part for topic in topics for part in _topic(topic)))
    return "\n".join(parts) if parts else _overview()


def _overview() -> str:
    default = default_options()
    lines = [
        f"{group}{f' (default {default[group]})' if group in default else ''}: {', '.join(options)}"
        for group, options in groups().items()
    ]
    return "\n".join(
        [_HEADER, "== Groups and their options ==", *lines, "", _shown("config"), _FOOTER],
    )


def _topic(topic: str) -> Iterator[str]:
    key, is_choice, value = topic.lstrip("+~").partition("=")
    key = key.partition("@")[0]
    options = options_of(key)
    if options and is_choice:
        for option in value.strip("[]").split(","):
            if option not in options:
                raise ConfigError(
                    f"{key}={option}: no such option{suggestion(option, options)}"
                    if option
                    else f"{topic}: no option is named; there are {', '.join(options)}"
                )
            yield from (_shown(f"{key}/{name}") for name in (option, *defaults_of(key, option)))
    elif options:
        yield from _group(key)
    elif options_of(key.partition(".")[0]):
        yield from _group(key.partition(".")[0])
    elif key not in ROOT_KEYS and key.partition(".")[0] not in ("shard", "budget", "hydra"):
        raise ConfigError(f"{key}: there is no such group{suggestion(key, groups())}")


def _group(group: str) -> Iterator[str]:
    """The options of a group, each with the first line of its file, and the files that hold the keys."""
    options = options_of(group)
    width = max(map(len, options))
    texts = {option: file_of(group, option).read_text(encoding="utf-8") for option in options}
    lines = [f"  {option:{width}}  {_first_comment(text)}"[:_WIDTH].rstrip() for option, text in texts.items()]
    yield "\n".join([f"== {group}: options ==", *lines, ""])
    with_keys = [option for option, text in texts.items() if "\n_target_:" in f"\n{text}"]
    yield from (_shown(f"{group}/{option}") for option in with_keys or options)


def _shown(name: str) -> str:
    """A file of ``conf/`` as it is."""
    return f"== {name}.yaml ==\n{(conf_dir() / name).with_name(name.rpartition('/')[2] + '.yaml').read_text()}"


def _first_comment(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return lines[0].removeprefix("#").strip() if lines else ""
