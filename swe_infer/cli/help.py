"""``--help``: the groups, their options, and the YAML files with their comments. Hydra is not imported.

``--cfg job`` shows a configuration as Hydra composes it, and ``--hydra-help`` Hydra's own flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from swe_infer.conf_files import (
    ROOT_KEYS,
    conf_dir,
    default_options,
    defaults_of,
    file_of,
    groups,
    node_of,
    options_of,
    overridden_by,
    suggestion,
    unknown_option,
)
from swe_infer.errors import ConfigError

_HEADER = """\
swe-infer: SWE-bench inference. Prompts in, patches out; the same command resumes the same run.

Usage: swe-infer [-m] [GROUP=OPTION] [KEY=VALUE] ...
"""
_KEYS = (
    ("model.path=DIR_OR_HUB_ID", "a Llama checkpoint, with model=llama"),
    ("model.name=NAME", "a model behind an API, with model=api"),
    ("provider.base_url=URL", "the server that answers; .max_concurrency=N: requests in flight at most"),
    ("decoding.temperature=T", "also .top_p, .max_new_tokens, .seed, .stop"),
    ("decoding.n=N", "samples of each instance"),
    ("dataset.path=FILE", "instances, with dataset=jsonl, parquet or disk"),
    ("dataset.limit=N", "only the first N instances"),
    ("budget.max_usd=X", "a hard cap in dollars"),
    ("output_dir=DIR", "the run directory; under -m the sweep's folder"),
    ("from=RUN_DIR", "the configuration of that run; with -m, sweep.points=FILE runs named overrides"),
    ("dry_run=true", "counts, tokens, dollars and time; no request is made"),
)
_FOOTER = """\
Examples:
  swe-infer                                                     the bundled default: no network, key or GPU
  swe-infer model=gpt-4o dataset=swebench_lite_oracle budget.max_usd=20
  swe-infer -m decoding=sample decoding.temperature=0.2,0.8     a sweep: one run for each value

Flags: --help GROUP[=OPTION] or KEY explains it; --cfg job shows the configuration; --version; --hydra-help the rest.
Your own classes: --config-dir DIR adds DIR/GROUP/OPTION.yaml; PYTHONPATH=DIR finds the class; docs/extending.md.
Completion: eval "$(swe-infer -sc install=bash)", the same with zsh, or swe-infer -sc install=fish | source
API keys come from the environment alone: OPENAI_API_KEY, AZURE_OPENAI_API_KEY, ANTHROPIC_API_KEY, WANDB_API_KEY, …"""

_WIDTH = 110


def help_text(topics: Sequence[str] = (), config_dir: Path | None = None) -> str:
    """The help of the command, or of groups and options.

    Args:
        topics: ``GROUP``, ``GROUP=OPTION``, ``KEY`` or ``KEY=VALUE``.
        config_dir: a folder with options of the user's own.

    Raises:
        ConfigError: the group or option is unknown.
    """
    parts = list(dict.fromkeys(part for topic in topics for part in _topic(topic, config_dir)))
    return "\n".join(parts) if parts else _overview(config_dir)


def _overview(config_dir: Path | None) -> str:
    default, lines = default_options(), []
    for group, options in groups().items():
        title = f"  {group} ({default[group]})" if group in default else f"  {group}"
        names = [*(path.stem for path in _user_options(config_dir, group)), *options]
        lines.append(f"{title:<26}{_truncated(names, _WIDTH - 26)}")
    return "\n".join(
        [
            _HEADER,
            "Groups, with their defaults:",
            *lines,
            "",
            "Keys that most commands use:",
            *(f"  {key:<28}{meaning}" for key, meaning in _KEYS),
            "",
            _FOOTER,
        ]
    )


def _truncated(names: Sequence[str], width: int) -> str:
    """The names that fit, and the total."""
    text = ", ".join(names)
    if len(text) <= width:
        return text
    end = f", … ({len(names)} in all)"
    return text[: width - len(end)].rpartition(", ")[0] + end


def _user_options(config_dir: Path | None, group: str) -> list[Path]:
    """The user's own options of a group."""
    return [] if config_dir is None else sorted((config_dir / group).glob("*.yaml"))


def _topic(topic: str, config_dir: Path | None) -> Iterator[str]:
    key, is_choice, value = topic.lstrip("+~").partition("=")
    key = key.partition("@")[0]
    options, own = options_of(key), {path.stem: path for path in _user_options(config_dir, key)}
    if (options or own) and is_choice:
        for option in value.strip("[]").split(","):
            if option in own:
                yield f"== {own[option]} ==\n{own[option].read_text(encoding='utf-8')}"
            elif option in options:
                yield from (_file_section(f"{key}/{name}") for name in (option, *defaults_of(key, option)))
            else:
                known = [*own, *options]
                raise ConfigError(
                    unknown_option(key, option, known)
                    if option
                    else f"{topic}: names no option; available: {', '.join(known)}"
                )
        return
    if options or own:
        yield from _group(key, config_dir)
        return
    group, *names = key.split(".")
    if names and options_of(f"{group}/{names[0]}"):
        group, names = f"{group}/{names[0]}", names[1:]
    if options_of(group):
        yield from _key(group, names, config_dir) or _group(group, config_dir)
    elif group in (*ROOT_KEYS, "shard", "budget", "sweep"):
        config = _text_of("config")
        yield _entry(config, key.split(".")) or _entry(config, [group])
    elif group != "hydra":
        raise ConfigError(f"{key}: unknown group{suggestion(key, groups())}")


def _key(group: str, names: Sequence[str], config_dir: Path | None) -> list[str]:
    """A key of a group as the files with keys have it, or the nearest key above it; empty: none has any."""
    texts, shown = _texts(group, config_dir)
    entries: dict[str, list[str]] = {}
    while names and not entries:
        for option in shown:
            if entry := _entry(texts[option], names):
                entries.setdefault(entry, []).append(option)
        names = names[:-1]
    return [f"== {group}={', '.join(options)} ==\n{entry}" for entry, options in entries.items()]


def _entry(text: str, names: Sequence[str]) -> str:
    """The lines of a key in a YAML file, with its comments and the keys below it; empty: the file lacks it."""
    lines = text.splitlines()
    path: list[str] = []
    for at, line in enumerate(lines):
        found = re.match(r"( *)([\w-]+):", line)
        if found is None:
            continue
        indent = len(found[1])
        path = [*path[: indent // 2], found[2]]
        if path != list(names):
            continue
        start = at - 1 if at and lines[at - 1].startswith(f"{found[1]}# ") else at
        end = next((n for n in range(at + 1, len(lines)) if not lines[n].startswith(f"{found[1]}  ")), len(lines))
        return "".join(f"{one[indent:]}\n" for one in lines[start:end])
    return ""


def _group(group: str, config_dir: Path | None) -> Iterator[str]:
    """The options of a group, each with the first comment of its file, and the files that define keys."""
    texts, shown = _texts(group, config_dir)
    width = max(map(len, texts))
    lines = {
        option: f"  {option:{width}}  {_shortened(_first_comment(text), _WIDTH - width - 4)}".rstrip()
        for option, text in texts.items()
    }
    yield "\n".join([f"== {group}: options ==", *(_by_provider(lines) if group == "model" else lines.values()), ""])
    yield from (f"== {group}/{option}.yaml ==\n{texts[option]}" for option in shown)
    if len(shown) < sum(map(_has_keys, texts.values())):
        yield f"The other options have the same keys; --help {group}=OPTION shows one.\n"


def _texts(group: str, config_dir: Path | None) -> tuple[dict[str, str], list[str]]:
    """(the files of a group by option, the options whose files define keys)."""
    files = (*(file_of(group, option) for option in options_of(group)), *_user_options(config_dir, group))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in files}
    with_keys = {option: text for option, text in texts.items() if _has_keys(text)}
    return texts, list(_representatives(with_keys)) or list(texts)


def _has_keys(text: str) -> bool:
    return "\n_target_:" in f"\n{text}"


def _by_provider(lines: Mapping[str, str]) -> Iterator[str]:
    """The lines of models under the providers that serve them, with the dates of retirement."""
    by_provider: dict[str, list[str]] = {}
    for option, line in lines.items():
        is_ours = option in options_of("model")
        provider = overridden_by("model", option).get("provider", "") if is_ours else ""
        retires = node_of("model", option).get("retires") if is_ours else None
        by_provider.setdefault(provider, []).append(f"{line} Retires {retires}." if retires else line)
    for provider, group in sorted(by_provider.items()):
        names = {"none": "local models:", "": "your own options:"}
        yield names.get(provider, f"provider={provider}:")
        yield from group


_MANY = 4


def _representatives(texts: Mapping[str, str]) -> Iterator[str]:
    """The options whose files show the keys of their class. If many have one class, those that are named after it."""
    targets = {option: re.search(r"^_target_: (.+)$", text, re.MULTILINE) for option, text in texts.items()}
    classes = {option: match[1] if match else option for option, match in targets.items()}
    for option, target in classes.items():
        word = target.rpartition(".")[0].rpartition(".")[2].partition("_")[0]
        if list(classes.values()).count(target) < _MANY or option.startswith(word):
            yield option


def _file_section(name: str) -> str:
    """A file of ``conf/`` under a heading."""
    return f"== {name}.yaml ==\n{_text_of(name)}"


def _text_of(name: str) -> str:
    return (conf_dir() / name).with_name(name.rpartition("/")[2] + ".yaml").read_text(encoding="utf-8")


def _shortened(text: str, most: int) -> str:
    """``text`` in at most ``most`` characters: its first sentences, if one fits, or else the beginning."""
    if len(text) <= most:
        return text
    sentences = text[: most + 1].rpartition(". ")[0]
    return f"{sentences}." if sentences else f"{text[: most - 1].rstrip()}…"


def _first_comment(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return lines[0].removeprefix("#").strip() if lines else ""
