"""Quoting of values on the command line: strings and paths, error messages, stop strings."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from swe_infer.cli.arguments import hydra_arguments, sweep_directory
from swe_infer.cli.quoting import quote, quote_values, text_value
from swe_infer.errors import ConfigError
from tests.support import commands
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent.parent
ODD = (
    "a(1)",
    "a=b",
    "a#1",
    "it's",
    'a "b"',
    "ä/ß.jsonl",
    "a b",
    "[x]",
    "{x",
    "a;b&c",
    "2024",
    "true",
    "x\\",
    "-",
    "~ö/x",
)
TEXT_KEYS = (
    "output_dir",
    "dataset.path",
    "model.path",
    "model.peft_path",
    "model.name",
    "provider.executable",
    "provider.base_url",
    "provider.first.base_url",
    "runner.response_cache",
    "runner.limits.shared",
    "tracker.notes",
)


def read_by_hydra(override: str) -> object:
    value = OverridesParser.create().parse_override(override).value()
    return getattr(value, "text", value)


@pytest.mark.parametrize("sweep", [False, True])
def test_strings_are_quoted_as_typed(sweep: bool) -> None:
    typed = [(key, value) for key in TEXT_KEYS for value in ODD]
    taken = quote_values([f"{key}={value}" for key, value in typed], sweep=sweep)
    wrong = [
        (key, value, override)
        for (key, value), override in zip(typed, taken, strict=True)
        if read_by_hydra(override) != value
    ]
    assert not wrong


def test_valid_values_are_unchanged() -> None:
    for override in (
        "decoding.temperature=0.5",
        "decoding.stop=[a,b]",
        "output_dir=null",
        'output_dir="a b"',
        "output_dir=a",
        "dataset.path=${oc.env:HOME}/x",
        "model=gpt-4o",
        "~tracker",
        "model.pricing=unknown",
        "+model.extra_body.x={a:1}",
    ):
        assert quote_values([override], sweep=False) == [override]
    for override in ("output_dir=a,b", "model.name=a,b", "decoding.n=range(1,3)", "model=glob(gpt*)"):
        assert quote_values([override], sweep=True) == [override]


def test_a_comma_belongs_to_a_path_and_separates_choices_elsewhere() -> None:
    assert read_by_hydra(quote_values(["output_dir=a,b"], sweep=False)[0]) == "a,b"
    for override in (
        "decoding.temperature=0.2,0.8",
        "decoding.n=range(1,3)",
        "model=gpt-4o,gpt-4.1",
        "model.name=a,b",
        "model=glob(*)",
        "decoding.stop=a,b",
        "decoding.seed=choice(1,2)",
    ):
        with pytest.raises(ConfigError, match="-m") as refused:
            quote_values([override], sweep=False)
        assert override in str(refused.value)


@pytest.mark.parametrize(
    ("override", "sweep"),
    [
        ("dataset.instance_ids=[a=b,c]", False),
        ("decoding.stop=[a(,b]", False),
        ("+model.extra_body.x=a#b", False),
        ("provider.names.first=ü", False),
        ("dataset.path=a(1).jsonl,b(2).jsonl", True),
        ("output_dir=ä,ö", True),
        ("model.name=a,b", False),
    ],
)
def test_errors_show_the_quoted_form(override: str, sweep: bool) -> None:
    with pytest.raises(ConfigError) as refused:
        quote_values([override], sweep=sweep)
    (written,) = shlex.split(str(refused.value).rpartition("written " if "-m" in str(refused.value) else "as ")[2])
    assert quote_values([written], sweep=sweep) == [written]
    OverridesParser.create().parse_override(written)


@pytest.mark.parametrize(
    ("typed", "strings"),
    [
        (r"[\n\n]", ["\n\n"]),
        (r'["\n\n","a\tb"]', ["\n\n", "a\tb"]),
        (r"['\\n']", ["\\n"]),
        (r'["a\\"]', ["a\\"]),
        ('["\n"]', ["\n"]),
        (r'["it\'s\n","\""]', ["it\\'s\n", '"']),
    ],
)
def test_stop_strings_have_escapes(typed: str, strings: list[str]) -> None:
    read = read_by_hydra(quote_values([f"decoding.stop={typed}"], sweep=False)[0])
    assert isinstance(read, list)
    assert [getattr(value, "text", value) for value in read] == strings


def test_parts_of_prompts_have_escapes() -> None:
    for key in ("prompt.prefill", "prompt.system"):
        for typed, text in ((r"--- a/\n", "--- a/\n"), (r'"a\tb"', "a\tb"), ("plain", "plain")):
            read = read_by_hydra(quote_values([f"{key}={typed}"], sweep=False)[0])
            assert getattr(read, "text", read) == text
        assert quote_values([f"{key}=null"], sweep=False) == [f"{key}=null"]


def test_quoting_is_undone_by_hydra() -> None:
    for text in (*ODD, "\"'", "\\'", '\\"', "'\\\\", "", "a\\", "a\nb"):
        assert text_value(f"key={quote(text)}") == text


def test_a_sweep_s_folder_may_have_any_name() -> None:
    for name in ("out(1)", "a=b", "ä", "it's"):
        arguments = hydra_arguments(["-m", f"output_dir={name}", "decoding.temperature=0,1"])
        assert sweep_directory(arguments) == Path(name)


def test_a_run_from_an_odd_path_with_stop_strings(tmp_path: Path) -> None:
    data = tmp_path / "daten (1)=ä, it's #1.jsonl"
    data.write_text(json.dumps({"instance_id": "a__b-1", "text": "Fix it."}) + "\n")
    with ApiServer() as server:
        result = commands.run(
            "swe_infer", "model=gpt-4o", f"provider.base_url={server.openai_url}", "tracker=none", "dataset=jsonl",
            f"dataset.path={data}", f"output_dir={tmp_path}/out (1)", r'decoding.stop=["\n\n"]',
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert [exchange.body["stop"] for exchange in server.log.exchanges] == [["\n\n"]]
    assert result.stdout.splitlines()[-1] == f"{tmp_path}/out (1)"
