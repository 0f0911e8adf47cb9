"""``swe-infer-export``: rows for fine-tuning from recorded answers, through the command itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from swe_infer.cli.export import main
from swe_infer.cli.training_rows import Format, fault_of, training_row
from swe_infer.data.sample import SampleDataset
from swe_infer.files import replacing
from swe_infer.run_directory.records import read_records
from swe_infer.run_directory.verdicts import read_verdicts
from swe_infer.types import Prompt, Turn
from tests.compare.runs import answer, write_run
from tests.support import commands
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test", "HF_HUB_OFFLINE": "1"}
REMOVED = re.compile(r"^-(?!--)(.*\S.*)$", re.MULTILINE)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def loaded(path: Path) -> list[dict[str, Any]]:
    """The rows as a trainer loads them."""
    from datasets import Dataset

    dataset = Dataset.from_json(str(path), cache_dir=str(path.parent / "cache"))
    return [dict(row) for row in dataset]


def prompts() -> dict[str, Prompt]:
    rows = SampleDataset().open()
    return {rows.ids[index]: rows[index].prompt for index in range(len(rows))}


def test_formats_of_the_embedded_run_with_its_verdicts(
    sandbox: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = commands.run(
        "swe_infer", "tracker=none", "dataset.limit=6", "output_dir=run",
        cwd=tmp_path, env=ENVIRONMENT, packages=commands.LOCAL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    outputs = {r["instance_id"]: r["full_output"] for r in read_records(tmp_path / "run" / "records.jsonl")}
    resolved = [verdict.instance_id for verdict in read_verdicts(tmp_path / "run") if verdict.resolved]
    assert 0 < len(resolved) < 6
    for where, names in (("resolved", resolved), ("applies", sorted(outputs))):
        for form in ("chat", "prompt_completion"):
            out = tmp_path / "new" / f"{where}.{form}.jsonl"
            arguments = [str(tmp_path / "run"), "--where", where, "--format", form, "--out", str(out)]
            assert main(arguments) == 0
            assert f"rows: {len(names)}; answers used: {len(names)} of 6" in capsys.readouterr().err
            rows = rows_of(out)
            assert [row["metadata"]["instance_id"] for row in rows] == names
            assert loaded(out) == rows
            for row in rows:
                name = row["metadata"]["instance_id"]
                question, output = prompts()[name], outputs[name]
                if form == "chat":
                    system, user = (
                        {"role": "system", "content": question.system},
                        {"role": "user", "content": question.user},
                    )
                    assert row["messages"] == [system, user, {"role": "assistant", "content": output}]
                else:
                    assert (row["prompt"], row["completion"]) == (question.text, output)
                assert row["metadata"]["model"] == "tiny_llama"
                assert (row["metadata"]["evaluated"], row["metadata"]["resolved"]) == (True, name in resolved)
    before = out.read_bytes()
    command = commands.run("swe_infer.export", *arguments, cwd=tmp_path, env=ENVIRONMENT)
    assert (command.returncode, command.stdout) == (0, f"{out}\n"), command.stderr
    assert out.read_bytes() == before, "its own file is replaced"
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith(".")] == []


class Model:
    """Its first of two answers to the first instance is right, all answers to the second one are, and only further
    turns to the third one."""

    def __init__(self) -> None:
        rows = SampleDataset().open()
        every = [rows[index] for index in range(len(rows))]
        self.instances = [one for one in every if REMOVED.search(str(one.metadata["patch"]))][:3]
        self.gold = [str(one.metadata["patch"]) for one in self.instances]
        self.calls: Counter[str] = Counter()

    def __call__(self, prompt: str) -> str:
        self.calls[prompt] += 1
        number = next(n for n, one in enumerate(self.instances) if one.prompt.user.strip() in prompt)
        thought = f"<think>\nLet me see.\n</think>\n\n{self.gold[number]}"
        if number == 1:
            return thought
        again = "I do not know." in prompt
        right = again if number == 2 else not again and self.calls[prompt] == 1
        return thought if right else "I do not know."


@pytest.mark.parametrize("where", ["resolved", pytest.param("applies", marks=pytest.mark.full)])
def test_pairs_conversations_and_reasoning_of_a_chat_model(sandbox: None, where: str, tmp_path: Path) -> None:
    model = Model()
    names = [one.instance_id for one in model.instances]
    with ApiServer(answer=model) as server:
        result = commands.run(
            "swe_infer", "model=gpt-4o", f"provider.base_url={server.openai_url}", "decoding.n=2", "tracker=none",
            "decoding.temperature=0.5", "feedback=apply_error", f"dataset.instance_ids=[{','.join(names)}]",
            "output_dir=run", cwd=tmp_path, env=ENVIRONMENT,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    out = tmp_path / "rows.jsonl"
    arguments = [str(tmp_path / "run"), "--where", where, "--out", str(out)]

    assert main([*arguments, "--format", "preference"]) == 0
    (pair,) = loaded(out)
    assert pair == rows_of(out)[0]
    first = model.instances[0].prompt
    asked = [{"role": "system", "content": first.system}, {"role": "user", "content": first.user}]
    assert pair["prompt"] == asked
    assert pair["chosen"] == [{"role": "assistant", "content": model.gold[0]}]
    assert pair["rejected"] == [{"role": "assistant", "content": "I do not know."}]
    origins = pair["metadata"]["chosen"], pair["metadata"]["rejected"]
    assert [origin["resolved"] for origin in origins] == [True, False]
    assert {origin["sample"] for origin in origins} == {0, 1}
    assert pair["metadata"]["instance_id"] == names[0]

    assert main([*arguments, "--format", "chat"]) == 0
    rows = rows_of(out)
    assert [row["metadata"]["instance_id"] for row in rows] == names, "the same answer to the same prompt counts once"
    *_, known, feedback, repaired = rows[2]["messages"]
    assert known == {"role": "assistant", "content": "I do not know."}
    assert (feedback["role"], repaired["content"]) == ("user", model.gold[2])
    assert rows[2]["metadata"]["turn"] == 1

    assert main([*arguments, "--format", "prompt_completion"]) == 0
    for row, other in zip(rows_of(out), rows, strict=True):
        assert row["prompt"] + row["completion"] == other["messages"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without verdicts over a file of a test split; one answer of each kind."""
    rows = [{"instance_id": name, "text": f"You help.\nFix {name}.", "repo": "a/b"} for name in "abcdefgh"]
    (tmp_path / "SWE-bench_Lite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": str(tmp_path / "SWE-bench_Lite.jsonl")}
    entries = [
        answer("a", text="a patch"),
        answer("b", "repaired"),
        answer("c", finish="length"),
        answer("d", text="<think>\na draft\n</think>"),
        answer("e", text="half of a \ud83d"),
        answer("f", "unchecked"),
        answer("gone"),
    ]
    return write_run(tmp_path / "run", entries, {"dataset": dataset})


def test_answers_that_cannot_be_learnt_are_left_out_with_a_reason(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    changed = {**json.loads(lines[0]), "instance_id": "g", "prompt_sha256": "0" * 64}
    (run / "records.jsonl").write_text("".join(lines) + json.dumps(changed) + "\n" + lines[0][:40] + "\n")
    out = run.parent / "rows.jsonl"
    assert main([str(run), str(run.parent), "--where", "applies", "--format", "chat", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    (row,) = rows_of(out)
    assert row["messages"][-1]["content"] == "a patch"
    assert (row["metadata"]["repo"], row["metadata"]["resolved"]) == ("a/b", False)
    for text in (
        "SWE-bench_Lite.jsonl: a model that is trained on them cannot be evaluated", "answers used: 1 of 8",
        "patch_status=repaired", "finish_reason=length", "no answer follows the reasoning", "unpaired surrogate",
        "patch_status=unchecked", "the dataset does not have the instance", "differs from the recorded one",
        "is not checked: 1", "unreadable records",
    ):  # fmt: skip
        assert text in printed.err, text


def test_prompts_can_come_from_a_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["prompt"] = {"_target_": "swe_infer.prompts.prompt.PromptRenderer", "style": "given", "template": "x.j2"}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "model": {"prompt_format": "chat"}}))
    out = run.parent / "rows.jsonl"
    arguments = [str(run), "--where", "applies", "--format", "chat", "--out", str(out)]
    assert main(arguments) == 2
    assert "prompt.template names a file" in capsys.readouterr().err
    assert main([*arguments, "--prompts", str(out)]) == 2
    assert f"error: --prompts {out}: file not found" in capsys.readouterr().err
    assert main([*arguments, "--prompts", config["dataset"]["path"]]) == 0
    assert [message["role"] for message in rows_of(out)[0]["messages"]] == ["system", "user", "assistant"]


def test_bad_input_is_one_line_and_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = run.parent
    (home / "notes.jsonl").write_text('{"text": "mine"}\n')
    base = {"model": {"prompt_format": "raw"}, **yaml.safe_load((run / "config.yaml").read_text())}
    shutil.copytree(run, home / "base")
    (home / "base" / "config.yaml").write_text(yaml.safe_dump(base))
    (home / "empty").mkdir()
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    out = str(home / "rows.jsonl")
    for runs, where, form, to, message in (
        ([run], "resolved", "chat", out, "has no verdicts"),
        ([run], "applies", "chat", str(run / "rows.jsonl"), "is in the run directory"),
        ([run], "applies", "chat", str(run / "sub" / "rows.jsonl"), "is in the run directory"),
        ([run], "applies", "chat", str(home / "notes.jsonl"), "was not made by this command"),
        ([run], "applies", "chat", str(home / "rows.parquet"), "name a .jsonl file"),
        ([run], "applies", "chat", str(home / "empty"), "is not a file"),
        ([run], "applies", "preference", out, "no row to write"),
        ([home / "empty"], "applies", "chat", out, "neither a run directory nor"),
        ([home / "nowhere"], "applies", "chat", out, "directory not found"),
        ([run, home / "base"], "applies", "prompt_completion", out, "to plain text"),
    ):
        assert main([*map(str, runs), "--where", where, "--format", form, "--out", to]) == 2
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if not line.startswith("warning")]
        assert len(lines) == 1, printed.err
        assert message in lines[0]
        assert printed.out == ""
    (home / "SWE-bench_Lite.jsonl").rename(home / "moved.jsonl")
    assert main([str(run), "--where", "applies", "--format", "chat", "--out", out]) == 2
    assert "its prompts are not available" in capsys.readouterr().err
    (home / "moved.jsonl").rename(home / "SWE-bench_Lite.jsonl")
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_interrupt_leaves_no_half_of_a_file(run: Path) -> None:
    out = run.parent / "new" / "rows.jsonl"
    data = run.parent / "SWE-bench_Lite.jsonl"
    entries = [answer(f"i{number}", text="a patch") for number in range(2000)]
    rows = [{"instance_id": f"i{number}", "text": f"Fix {number}.\n" + "x" * 20_000} for number in range(2000)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load((run / "config.yaml").read_text())
    many = write_run(run.parent / "many", entries, config)
    command = commands.start(
        "swe_infer.export", str(many), "--where", "applies", "--format", "chat", "--out", str(out),
        cwd=run.parent, env=ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and command.poll() is None and not list(out.parent.glob(".rows.jsonl.*")):
        time.sleep(0.002)
    command.send_signal(signal.SIGINT)
    command.communicate(60)
    assert command.returncode == 130
    assert list(out.parent.iterdir()) == []


def test_an_interrupt_right_after_the_creation_of_a_file_leaves_none(tmp_path: Path) -> None:
    def interrupt(frame: FrameType, event: str, function: object) -> None:
        if event == "c_return" and function is os.open:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "rows.jsonl"):
            raise AssertionError("not interrupted")
    finally:
        sys.setprofile(None)
    assert list(tmp_path.iterdir()) == []


def test_schema_check_refuses_what_the_formats_do_not_allow() -> None:
    prompt = Prompt("You help.", "Fix it.", turns=(Turn("A try.", "It does not apply."),))
    chat = training_row("chat", prompt, ["Done."], {"instance_id": "a"}, standard=False)
    pair = training_row("preference", prompt, ["Done.", "No."], {"instance_id": "a"}, standard=False)
    text = training_row("prompt_completion", Prompt(None, "x ="), [" 1"], {"instance_id": "a"}, standard=True)
    assert [message["role"] for message in chat["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert fault_of(chat, "chat") is fault_of(pair, "preference") is fault_of(text, "prompt_completion") is None
    say = [{"role": "assistant", "content": "x"}]
    ask = [{"role": "user", "content": "x"}]
    cases: list[tuple[Format, dict[str, Any], str]] = [
        ("chat", {**chat, "messages": "text"}, "not a list"),
        ("chat", {**chat, "messages": []}, "alternate"),
        ("chat", {**chat, "messages": ask}, "last role is not assistant"),
        ("chat", {**chat, "messages": say}, "alternate"),
        ("chat", {**chat, "messages": [*ask, *ask, *say]}, "alternate"),
        ("chat", {**chat, "messages": [{"role": "tool", "content": "x"}, *say]}, "alternate"),
        ("chat", {**chat, "messages": [*ask, {"role": "assistant", "content": " "}]}, "blank"),
        ("chat", {**chat, "messages": [*ask, {"role": "assistant", "content": None}]}, "not a string"),
        ("chat", {**chat, "messages": [*ask, {"content": "x"}]}, "a role and a content"),
        ("chat", {**chat, "metadata": {"instance_id": "\ud800"}}, "surrogate"),
        ("chat", {"messages": [*ask, *say]}, "the columns are not"),
        ("preference", {**pair, "prompt": say}, "alternate"),
        ("preference", {**pair, "prompt": [*ask, *say]}, "last role is not user"),
        ("preference", {**pair, "chosen": ask}, "alternate"),
        ("preference", {**pair, "chosen": "text"}, "mixed"),
        ("prompt_completion", {**text, "completion": ""}, "blank"),
        ("prompt_completion", {**text, "completion": "\udc80"}, "surrogate"),
    ]
    for form, row, fault in cases:
        assert fault in str(fault_of(row, form)), (row, fault)
