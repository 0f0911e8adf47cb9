"""Shell completion: the candidates of a word, and a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swe_infer.cli.completion import candidates, completion
from swe_infer.conf_files import groups

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("swe-infer mod", ["model.", "model/attention=", "model="]),
        ("swe-infer model=gpt-4o-m", ["model=gpt-4o-mini"]),
        ("swe-infer --multirun model=gpt-4o,o3-m", ["model=gpt-4o,o3-mini"]),
        ("swe-infer hydra/laun", ["hydra/launcher="]),
        ("swe-infer decoding.max", ["decoding.max_new_tokens="]),
        ("swe-infer provider.mode=", ["provider.mode=batch", "provider.mode=live"]),
        ("swe-infer dry_run=", ["dry_run=false", "dry_run=true"]),
        ("swe-infer budget.across=l", ["budget.across=ledger"]),
        ("swe-infer locks=s", ["locks=single_writer"]),
        ("swe-infer --vers", ["--version"]),
        # the model chooses provider and runner
        ("swe-infer model=claude-sonnet-4-5 provider.cache", ["provider.cache_ttl="]),
        ("swe-infer model=gpt-4o provider.cache", []),
        ("swe-infer model=gpt-4o runner.re", ["runner.response_cache=", "runner.retry."]),
        ("swe-infer model=gpt-4o runner.retry.tr", ["runner.retry.tries="]),
        ("swe-infer provider=[openai,azure_openai] provider.second.max", ["provider.second.max_concurrency="]),
        # unknown names
        ("swe-infer dataset.name=", []),
        ("swe-infer nobody.x", []),
        ("swe-infer nobody=x", []),
    ],
)  # fmt: skip
def test_candidates(line: str, offered: list[str]) -> None:
    assert candidates(line) == sorted(offered)


def test_every_option_of_every_group_is_a_candidate() -> None:
    for group, options in groups().items():
        assert candidates(f"swe-infer {group}=") == sorted(f"{group}={option}" for option in options)


def test_the_word_at_the_cursor_is_completed() -> None:
    line = "swe-infer provider.cache model=claude-sonnet-4-5"
    assert candidates(line, len("swe-infer provider.cache")) == ["provider.cache_ttl="]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "swe-infer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m swe_infer "$@"\n')
    program.chmod(0o755)
    asked = ["swe-infer model=gpt-4o provider.mo", "swe-infer provider.mode=ba", "swe-infer --multirun model=o1,o3-m"]
    script = """
    complete_line() {
        COMP_LINE="$1" COMP_POINT=${#1} COMPREPLY=()
        _swe_infer swe-infer
        printf '%s\n' "${COMPREPLY[@]}"
    }
    eval "$(swe-infer -sc install=bash)"
    complete -p swe-infer
    """
    script += "".join(f"complete_line '{line}'\n" for line in asked)
    script += r"""eval "$(complete -p swe-infer-view | sed 's/complete/compgen/; s/swe-infer-view$/-- --po/')"; """
    script += 'eval "$(swe-infer -sc uninstall=bash)"; complete -p swe-infer; complete -p swe-infer-view\n'
    result = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    # Readline replaces only the part after "=".
    assert result.stdout.splitlines()[1:] == ["provider.mode=", "batch", "o1,o3-mini", "--port"], result.stderr
    assert result.stderr.count("no completion specification") == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_accept_the_installed_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    for what in ("install", "uninstall"):
        script = completion([f"{what}={shell}"], "swe-infer")
        checked = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
