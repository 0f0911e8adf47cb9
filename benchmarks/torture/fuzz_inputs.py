"""The fuzzer's inputs, and what the program must make of each kind of them."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hypothesis import strategies as st

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.patches.pipeline import make_patch
from swe_infer.run_directory.records import Record
from swe_infer.run_directory.store import RunStore

__all__ = [
    "Input", "answers", "checkpoints", "json_lines", "overrides", "run_directories", "tables", "try_answer",
    "try_checkpoint", "try_json_lines", "try_overrides", "try_run_directory", "try_table",
]  # fmt: skip

Input = Any

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.0, 1e-320]) | st.integers() | st.floats()
_ODD = JSON | _NUMBERS | st.sampled_from(["", " ", "\x00", "\ud800", "NaN", "null", "../../etc", "/", "\x1b[2J"])
_DEEP = ["[" * 100_000, '{"a":' * 50_000, "[" * 900 + "]" * 900]


# Overrides of the command line.

_KEYS = [
    "model.name", "model.path", "model.pricing", "model.context_window", "model.max_output_tokens", "model.dtype",
    "model.device", "provider.base_url", "provider.max_concurrency", "provider.timeout_s", "provider.mode",
    "provider.api_key_env", "decoding.temperature", "decoding.top_p", "decoding.max_new_tokens", "decoding.n",
    "decoding.seed", "decoding.stop", "dataset.path", "dataset.limit", "dataset.instance_ids",
    "dataset.min_tokens", "dataset.max_tokens", "dataset.text_column", "shard.index", "shard.count",
    "budget.max_usd", "budget.sweep_max_usd", "output_dir", "objective", "runner.retry", "runner.retry.tries",
    "runner.limits.start", "runner.max_batch_tokens", "runner.kv_cache_gb", "tracker.project", "tracker.mode",
    "tracker.tags", "model", "provider", "decoding", "dataset", "runner", "tracker", "experiment", "nonsense",
    "model.nonsense", "model._target_"
]  # fmt: skip
_VALUES = st.sampled_from([
    "null", "true", "false", "0", "-1", "1", "1e400", "-inf", "nan", "1_000", "0x10", ".5", "''", "\"\"", "[]",
    "{}", "[1,2]", "{a:1}", "[null]", "${x}", "${oc.env:NOPE}", "${model}", "???", ".", "/", "~", "a=b", "a,b",
    "'a", "b'", "[", "]", "{", "}", "\\", "$", "%", '\x00', '\u202e', 'é', '🐍', "jsonl", "sample", "api",
    "openai", "gpt-4o", "tiny", "greedy", "none", "claude-2", "os.system", "builtins.print",
    "swe_infer.types.DataShard", "range(1,3)", "choice(1,2)", "interval(0,1)"
])  # fmt: skip


def overrides() -> st.SearchStrategy[list[str]]:
    value = _VALUES | st.integers().map(str) | st.floats().map(str) | st.text(max_size=8)
    pair = st.builds(
        lambda plus, key, sign, text: f"{plus}{key}{sign}{text}",
        st.sampled_from(["", "", "", "", "+", "++", "~"]),
        st.sampled_from(_KEYS) | st.text(min_size=1, max_size=6).filter(lambda key: not key.startswith("-")),
        st.sampled_from(["=", "=", "=", "", "=="]),
        value,
    )
    first = st.sampled_from(["model=gpt-4o", "model=tiny", "model=claude-2", "model=api"])
    return st.builds(lambda base, more: [base, *more], first, st.lists(pair, max_size=3))


def try_overrides(place: Path, arguments: list[str]) -> None:
    """Through the command's own entry point: it ends with 0, or with 2 and its reason in one line."""
    from swe_infer.cli.run import main

    output, errors = io.StringIO(), io.StringIO()
    argv, directory, status = sys.argv, Path.cwd(), None
    variables = {"OPENAI_API_KEY": "sk-fuzz", "ANTHROPIC_API_KEY": "sk-fuzz", "HF_HUB_OFFLINE": "1"}
    try:
        sys.argv = ["swe-infer", *arguments, "dry_run=true"]
        os.environ.update(variables)
        os.chdir(place)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = argv
        os.chdir(directory)
    said = errors.getvalue()
    assert status in (0, 2), f"ended with {status}: {said[-2000:]}"
    assert "Traceback" not in said, said[-3000:]
    if status == 2:
        lines = [line for line in said.splitlines() if "error: " in line]
        assert len(lines) == 1, said[-2000:]


# Datasets.


def json_lines() -> st.SearchStrategy[bytes]:
    row = st.fixed_dictionaries({}, optional={"instance_id": _ODD | st.text(), "text": _ODD | st.text(), "x": JSON})
    line = row.map(_dumped) | st.binary(max_size=40) | JSON.map(_dumped) | st.sampled_from(_DEEP).map(str.encode)
    good = st.integers(0, 5).map(lambda n: _dumped({"instance_id": f"i{n}", "text": "system\nuser"}))
    lines = st.lists(line | good, max_size=6)
    ends = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r"])
    starts = st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PAR1"])
    return st.builds(lambda start, all_lines, end: start + end.join(all_lines) + end, starts, lines, ends)


def try_json_lines(place: Path, content: bytes) -> None:
    from swe_infer.data.jsonl import JsonlDataset

    path = place / "data.jsonl"
    path.write_bytes(content)
    _read_all(JsonlDataset(path=str(path)))


def tables() -> st.SearchStrategy[tuple[str, list[tuple[float, bytes]]]]:
    """A parquet file or a saved dataset, and what is written over it at which places."""
    damage = st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8))
    return st.tuples(st.sampled_from(["parquet", "disk", "disk-json"]), st.lists(damage, min_size=1, max_size=3))


def try_table(place: Path, value: tuple[str, list[tuple[float, bytes]]]) -> None:
    from swe_infer.data.disk import DiskDataset
    from swe_infer.data.parquet import ParquetDataset

    kind, damages = value
    os.environ["HF_HOME"] = os.environ["HF_DATASETS_CACHE"] = str(place / "cache")
    copied = Path(shutil.copytree(_good_tables(), place / "tables"))
    parquet, disk = copied / "good.parquet", copied / "saved"
    target = {"parquet": parquet, "disk": next(disk.glob("*.arrow")), "disk-json": disk / "state.json"}[kind]
    _damage(target, damages)
    dataset = ParquetDataset(path=str(parquet)) if kind == "parquet" else DiskDataset(path=str(disk))
    with contextlib.redirect_stderr(io.StringIO()):
        _read_all(dataset)


def _read_all(dataset: Any) -> None:
    try:
        rows = dataset.open()
        for index in range(len(rows)):
            if rows.fault(index) is None:
                assert rows[index].prompt.text
    except SweInferError as error:
        _is_one_line(error)


@functools.cache
def _good_tables() -> Path:
    import datasets

    datasets.disable_progress_bars()
    place = Path(tempfile.mkdtemp(prefix="fuzz-tables-"))
    rows = {"instance_id": [f"i{n}" for n in range(20)], "text": [f"system\nuser {n}" for n in range(20)]}
    table = datasets.Dataset.from_dict(rows)
    table.save_to_disk(str(place / "saved"))
    table.to_parquet(str(place / "good.parquet"))
    return place


# Run directories.


def run_directories() -> st.SearchStrategy[dict[str, bytes]]:
    usage = st.dictionaries(st.sampled_from(["input_tokens", "output_tokens", "nonsense"]), _ODD, max_size=2)
    fields = st.fixed_dictionaries(
        {},
        optional={
            "instance_id": st.sampled_from(["a", "b"]) | _ODD,
            "sample": st.sampled_from([0, 1, True, -1, 10**6, 10**30]) | _ODD,
            "status": st.sampled_from(["completed", "failed", "skipped"]) | _ODD,
            "usage": usage | _ODD,
            "cost_usd": _NUMBERS | _ODD,
            "model_patch": _ODD,
            "patch_status": _ODD,
            "full_output": _ODD,
            "latency_s": _ODD,
            "attempts": _ODD,
            "error": _ODD,
            "finish_reason": _ODD,
            "patch_repairs": _ODD,
        },
    )
    line = fields.map(lambda odd: _dumped({**_RECORD, **odd})) | st.binary(max_size=30)
    line |= st.sampled_from(_DEEP).map(str.encode)
    records = st.lists(line, max_size=4).map(lambda lines: b"\n".join(lines) + b"\n")
    content = JSON.map(_dumped) | st.binary(max_size=40) | st.sampled_from(_DEEP).map(str.encode)
    optional = dict.fromkeys(("summary.json", "config.yaml", "evaluation.jsonl", "predictions.jsonl"), content)
    return st.fixed_dictionaries({"records.jsonl": records}, optional=optional)


_RECORD: dict[str, Any] = {
    "instance_id": "a", "sample": 0, "status": "completed", "finish_reason": "stop", "full_output": "x",
    "model_patch": "", "patch_status": "none", "usage": {"input_tokens": 3, "output_tokens": 4}, "cost_usd": 0.25,
    "latency_s": 0.5, "attempts": 1, "error": None,
}  # fmt: skip


def try_run_directory(place: Path, files: dict[str, bytes]) -> None:
    """The store opens it, appends, and reads it back; comparison and evaluation read it or say what is wrong."""
    from swe_infer.compare.analysis import compare
    from swe_infer.compare.loading import load_run, read_texts
    from swe_infer.compare.report import write_report
    from swe_infer.evaluate.evaluable import open_run

    for name, content in files.items():
        (place / name).write_bytes(content)
    read: list[Callable[[], object]] = [lambda: open_run(place)]
    for one in read:
        try:
            one()
        except ConfigError as error:
            _is_one_line(error)
    try:
        run = load_run(place)
        read_texts(run)
        if run.results:
            write_report(compare([run, run]), place / "page.html")
    except ConfigError as error:
        _is_one_line(error)
    with RunStore(place, "model") as store:
        before = store.totals.count("completed")
        store.read_summary()
        store.append(cast(Record, {**_RECORD, "instance_id": "new"}))
    with RunStore(place, "model") as store:
        assert store.totals.count("completed") == before + 1
    assert not [path for path in place.parent.glob("*") if path.name == "etc"]


# Checkpoints.


def checkpoints() -> st.SearchStrategy[tuple[str, Any]]:
    key = st.sampled_from([
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
        "rope_scaling", "rope_parameters", "hidden_act", "attention_bias", "tie_word_embeddings", "eos_token_id",
        "dtype", "torch_dtype", "architectures", "model_type", "quantization_config"
    ])  # fmt: skip
    config = st.dictionaries(key, _ODD | st.sampled_from([64, 128, 3, 2**20, 2**40]), min_size=1, max_size=2)
    damage = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=2)
    header = st.dictionaries(
        st.sampled_from(["model.norm.weight", "lm_head.weight", "x", "__metadata__"]), _ENTRY | _ODD
    )
    file = st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
    return st.one_of(
        st.tuples(st.just("config"), config),
        st.tuples(st.just("generation"), st.dictionaries(st.sampled_from(_GENERATION), _ODD, min_size=1)),
        st.tuples(st.just("damage"), damage),
        st.tuples(st.just("cut"), st.floats(0, 1)),
        st.tuples(st.just("header"), header),
        st.tuples(st.just("length"), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("values"), st.sampled_from(["nan", "inf", "-inf"])),
        st.tuples(
            st.just("file"), st.tuples(file, JSON.map(_dumped) | st.binary(max_size=40) | st.just(b"[" * 10**5))
        ),
    )


_GENERATION = ["do_sample", "temperature", "top_p", "eos_token_id"]
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F8", None]),
        "shape": st.lists(st.integers(-2, 2**40), max_size=3) | _ODD,
        "data_offsets": st.tuples(st.integers(-9, 2**40), st.integers(-9, 2**40)) | _ODD,
    }
)


def try_checkpoint(place: Path, value: tuple[str, Any]) -> None:
    """It is loaded and answers, or is refused in one line before much memory is taken."""
    kind, how = value
    directory = Path(shutil.copytree(_good_checkpoint(), place / "model"))
    weights = directory / "model.safetensors"
    match kind:
        case "config" | "generation":
            path = directory / ("config.json" if kind == "config" else "generation_config.json")
            path.write_bytes(_dumped({**json.loads(path.read_text()), **copy.deepcopy(how)}))
        case "damage":
            _damage(weights, how)
        case "cut":
            os.truncate(weights, int(weights.stat().st_size * how))
        case "header":
            _with_header(weights, how)
        case "length":
            weights.write_bytes(struct.pack("<Q", how) + weights.read_bytes()[8:])
        case "values":
            _with_value(weights, float(how))
        case "file":
            (directory / how[0]).write_bytes(how[1])
    _answer_once(directory)


def _answer_once(directory: Path) -> None:
    from swe_infer.llama.engine import Engine, EngineOptions
    from swe_infer.llama.sequence import GenerationRequest
    from swe_infer.llama.stopping import StopParams
    from swe_infer.runners.llama import LlamaRunner
    from swe_infer.types import Decoding, LlamaModel, Prompt

    model = LlamaModel(path=str(directory), device="cpu")
    try:
        LlamaRunner(model=model, decoding=Decoding(max_new_tokens=1)).check()
        engine = Engine.load(model, EngineOptions(kv_cache_gb=0.001))
        ids = engine.tokenizer.encode(Prompt("a", "b"))
        request = GenerationRequest("a", tuple(ids), StopParams(2, engine.end_tokens), 0.0, None, 0)
        list(engine.generate([request], lambda request, why: None))
    except SweInferError as error:
        _is_one_line(error)


@functools.cache
def _good_checkpoint() -> Path:
    import torch

    from tests.support.checkpoints import make_checkpoint

    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(prefix="fuzz-checkpoint-"))
    made = make_checkpoint(directory, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    if not (made / "generation_config.json").exists():
        (made / "generation_config.json").write_text("{}")
    return made


def _with_header(path: Path, header: dict[str, Any]) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    changed = _dumped({**json.loads(raw[8 : 8 + length]), **header})
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + raw[8 + length :])


def _with_value(path: Path, value: float) -> None:
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("<f", value))


# Answers.


def answers() -> st.SearchStrategy[str]:
    pieces = st.sampled_from([
        '```diff\n', "```", "<patch>", "</patch>", '--- a/f.py\n', '+++ b/f.py\n', '@@ -1 +1 @@\n',
        '@@ -0,0 +1,9999999999 @@\n', '-a\n', '+b\n', ' c\n', '\x1b]0;x\x07', '\u202e', '\ud800', '\x00',
        'diff --git a/../../x b/../../x\n', '\r\n', '<<<<<<< SEARCH\n', '=======\n', '>>>>>>> REPLACE\n',
        "<think>", "</think>", '\\ No newline at end of file\n', '@@ -99999999999999999999 +1 @@\n',
        'rename from a\nrename to /etc/passwd\n', 'GIT binary patch\n'
    ])  # fmt: skip
    text = st.lists(pieces | st.text(max_size=20), max_size=25).map("".join)
    return st.builds(lambda one, times: one * times, text, st.sampled_from([1, 1, 1, 1, 500]))


def try_answer(place: Path, answer: str) -> None:
    """It becomes a patch, or a reason why not, which stays inside the repository."""
    result = make_patch(answer, {"f.py": "a\nc\n", "g.py": ""})
    assert result.status in ("applies", "repaired", "does_not_apply", "unchecked", "none")
    if result.status in ("applies", "repaired", "unchecked"):
        for line in result.patch.split("\n"):
            if line.startswith(("+++ ", "--- ", "rename to ")):
                assert ".." not in line.split("\t")[0].split("/"), line


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")


def _damage(path: Path, damages: list[tuple[float, bytes]]) -> None:
    content = bytearray(path.read_bytes())
    for where, new in damages:
        at = int(where * max(0, len(content) - len(new)))
        content[at : at + len(new)] = new
    path.write_bytes(content)


def _is_one_line(error: BaseException) -> None:
    assert str(error), f"{type(error).__name__} says nothing"
    assert "\n" not in str(error), f"more than one line: {str(error)[:500]!r}"
