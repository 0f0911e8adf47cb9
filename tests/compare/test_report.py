"""The page as a file: its content, and that it executes nothing from runs."""

from __future__ import annotations

import base64
import bisect
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from swe_infer.compare import report as report_module
from swe_infer.compare.analysis import compare
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import load_runs
from swe_infer.compare.page_data import page_data
from swe_infer.compare.report import page_json, write_report
from swe_infer.compare.table import tables_of
from swe_infer.errors import ConfigError
from swe_infer.tracking.state import write_state
from tests.compare.runs import HOSTILE, answer, hostile_run, skip, write_run
from tests.support.base_commit import GOLD, BaseCommit


class Page(HTMLParser):
    """Elements and attributes of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append((self.elements[-1][1], data))

    def text(self, name: str) -> str:
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == name)
        return text

    def packed(self, name: str) -> Any:
        return json.loads(zlib.decompress(base64.b64decode(self.text(name))))

    def has(self, name: str) -> bool:
        return any(attributes.get("id") == name for attributes, _ in self.scripts)

    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads(self.text("figures"))
        return figures

    def detail(self, name: str) -> dict[str, Any]:
        """The details of an instance, as the page's script finds them."""
        index = self.packed("index")
        number = index["names"].index(name)
        chunk = bisect.bisect_right(index["chunks"], number) - 1
        details: dict[str, Any] = self.packed(f"chunk-{chunk}")[number - index["chunks"][chunk]]
        return details | (self.packed(f"full-{number}") if self.has(f"full-{number}") else {})

    def prompt(self, name: str) -> str | None:
        parts = self.detail(name)["prompt"]
        return None if parts is None else "".join(part["text"] for part in parts)

    def answers(self, name: str) -> list[list[str]]:
        return [[sample[-1]["answer"] for sample in run] for run in self.detail(name)["turns"]]


def report(tmp_path: Path, *runs: Path, **options: Any) -> Path:
    path = tmp_path / "report.html"
    write_report(compare(load_runs([str(run) for run in runs]), resamples=1000), path, **options)
    return path


def test_both_answers_both_patches_and_the_task_are_in_the_page(tmp_path: Path, dataset: dict[str, Any]) -> None:
    a = write_run(tmp_path / "a", [answer("i-1", text="left", patch="lp"), answer("i-2")], {"dataset": dataset})
    b = write_run(tmp_path / "b", [answer("i-1", text="right", patch="rp"), skip("i-2")], {"dataset": dataset})
    page = Page(report(tmp_path, a, b).read_text())
    detail = page.detail("i-1")
    assert (page.prompt("i-1") or "").startswith("The issue.\n")
    assert detail["patches"] == ["the gold patch", "lp", "rp"]
    assert detail["gold"] == 0
    assert [[sample["patch"] for sample in run] for run in detail["runs"]] == [[1], [2]]
    assert page.answers("i-1") == [["left"], ["right"]]
    assert page.prompt("i-2") is None
    assert page.detail("i-2")["runs"][1][0]["outcome"] == "skipped: ContextOverflow"


def test_details_are_found_by_the_order_of_the_names(tmp_path: Path, dataset: dict[str, Any]) -> None:
    """JavaScript puts integer-like keys first, so the order of an object's keys is not reliable. 300 kB of patches
    are more than one chunk."""
    names = ["b", "10", "2", "a", *(f"long-{number}" for number in range(3))]
    entries = [
        answer(name, text=f"answer of {name}", patch=name * (40_000 if "long" in name else 1)) for name in names
    ]
    page = Page(report(tmp_path, write_run(tmp_path / "a", entries, {"dataset": dataset})).read_text())
    assert page.packed("index")["names"] == sorted(names)
    assert len(page.packed("index")["chunks"]) > 1
    for name in names:
        assert page.detail(name)["id"] == name
        assert page.answers(name) == [[f"answer of {name}"]]
        assert page.detail(name)["patches"][-1].startswith(name)


def test_prompts_and_answers_are_those_of_the_chosen_instances(tmp_path: Path, dataset: dict[str, Any]) -> None:
    a = write_run(tmp_path / "a", [answer(name) for name in ("i-0", "i-1", "7")], {"dataset": dataset})
    b = write_run(tmp_path / "b", [answer("i-0"), answer("i-1", "none"), answer("7")], {"dataset": dataset})
    full = {
        chosen: [name for name in ("i-0", "i-1", "7") if "turns" in page.detail(name)]
        for chosen in (0, 1, 2, ("i-0", "7"))
        for page in [Page(report(tmp_path, a, b, full=chosen).read_text())]
    }
    # The runs differ on i-1, so it is the first.
    assert full == {0: [], 1: ["i-1"], 2: ["i-1", "7"], ("i-0", "7"): ["i-0", "7"]}
    with pytest.raises(ConfigError, match="--full i-9: no run has this instance"):
        report(tmp_path, a, b, full=["i-9"])


def test_all_turns_of_a_conversation_are_in_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [answer("i-1", "does_not_apply", text="first", patch="p1")])
    record = {
        "instance_id": "i-1", "sample": 0, "status": "completed", "full_output": "second", "model_patch": "p2",
        "patch_status": "applies", "turn": 1, "feedback": "It does not apply.", "cost_usd": 0.25, "latency_s": 1,
        "patch_repairs": ["a repair"], "details": {"reasoning": "a thought"},
    }  # fmt: skip
    with (run / "records.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    (run / "evaluation.jsonl").write_text(
        json.dumps({"instance_id": "i-1", "sample": 0, "turn": 1, "resolved": False, "reason": "1 != 2"}) + "\n"
    )
    (sample,) = Page(report(tmp_path, run).read_text()).detail("i-1")["runs"][0]
    assert sample["outcome"] == "not resolved, patch applies"
    assert sample["verdict"] == "not resolved\n1 != 2"
    assert "repair: a repair" in sample["notes"]
    (turns,) = Page(report(tmp_path, run).read_text()).detail("i-1")["turns"][0]
    assert turns == [
        {"feedback": "", "reasoning": "", "answer": "first", "patch": "p1"},
        {"feedback": "It does not apply.", "reasoning": "a thought", "answer": "second", "patch": None},
    ]


def test_the_page_has_the_figures_and_tables_of_the_command(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"t{t}",
            [answer(f"o__r{n % 2}-{n}", "applies" if n < 20 + 5 * t else "none", cost=f"0.{t}") for n in range(40)],
            {"decoding": {"temperature": t / 10}},
        )
        for t in (1, 2)
    ]
    comparison = compare(load_runs([str(run) for run in runs]), resamples=1000)
    data = json.loads(page_json(page_data(comparison)))
    exported = json.loads(json.dumps(as_json(comparison)))
    assert exported.pop("instances").keys() == set(data["index"]["names"])
    assert exported.items() <= data["figures"].items()
    printed = {(table.title, *map(tuple, table.rows)) for table in tables_of(comparison)}
    shown = {(t["title"], *map(tuple, t["rows"])) for t in data["figures"]["tables"].values()}
    assert {title for title, *_ in printed - shown} == {"Instances: the runs differ on 5 of 40"}
    assert data["figures"]["summary"] == [
        "The patches of B (temperature=0.2) apply 12.5 points more often than those of A (temperature=0.1) (95 % "
        "interval 1.7 to 23.3, p = 0.0253), at 2.0 times the cost ($0.2000 and $0.1000 for each instance).",
        "The Pareto frontier of cost and rate, cheapest first: A (62.5 % for $0.1000 an instance) and "
        "B (75.0 % for $0.2000 an instance).",
        "Of 40 instances, the patches of both apply to 25, at least one applies to 30; the runs differ on 5.",
    ]
    assert [one["rates"]["applies"]["text"] for one in data["figures"]["points"]] == [
        row[2] for row in data["figures"]["tables"]["outcomes"]["rows"]
    ]
    assert [row["name"] for row in data["figures"]["repositories"]["rows"]] == ["o/r0", "o/r1"]


def test_the_output_of_the_harness_is_in_the_page(tmp_path: Path) -> None:
    names = ["i-1", "i-2", "i-3", "..", "i/4"]
    run = write_run(tmp_path / "a", [answer(name, patch=f"patch of {name}") for name in names])
    model = run / "evaluation" / "logs" / "run_evaluation" / f"{'0' * 12}.sample0" / "a-model"
    for name, patch, output in (
        ("i-1", "patch of i-1", "x" * 30_000 + "\x1b[31m1 failed\x1b[0m"),
        ("i-2", "an earlier patch", "of the earlier patch"),
    ):
        (model / name).mkdir(parents=True)
        (model / name / "patch.diff").write_text(patch)
        (model / name / "test_output.txt").write_text(output)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "patch.diff").write_text("patch of i-3")
    (tmp_path / "secret" / "test_output.txt").write_text("a secret")
    (model / "i-3").symlink_to(tmp_path / "secret")
    verdict = {"instance_id": "i-1", "sample": 0, "resolved": True, "source": "tests", "judged": "outside"}
    (run / "evaluation.jsonl").write_text(json.dumps(verdict) + "\n")
    page = Page(report(tmp_path, run).read_text())
    ((sample,),) = page.detail("i-1")["runs"]
    assert sample["verdict"] == "resolved (tests, judged outside the process of the patched code)"
    ((output,),) = page.detail("i-1")["outputs"]
    assert output.endswith("xx1 failed")
    assert len(output) < 20_001
    assert [page.detail(name)["outputs"] for name in names[1:]] == [[[None]]] * 4


def test_a_run_on_wandb_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "a", [answer("i-1")])
    options = {"entity": "team", "project": "a project", "mode": "online"}
    state = {"run_id": "x/1", "options": options}
    (run / "wandb").mkdir()
    write_state(run, state, None)
    other = write_run(tmp_path / "b", [answer("i-1")])
    comparison = compare(load_runs([str(run), str(other)]), resamples=1000)

    def links() -> list[str | None]:
        return [one["address"] for one in page_data(comparison)["figures"]["points"]]

    assert links() == ["https://wandb.ai/team/a%20project/runs/x%2F1", None]
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example/")
    assert links()[0] == "https://wandb.example/team/a%20project/runs/x%2F1"
    monkeypatch.setenv("WANDB_BASE_URL", "javascript:alert(1)")
    assert links()[0] == "https://wandb.ai/team/a%20project/runs/x%2F1"
    write_state(run, {**state, "options": {**options, "mode": "offline"}}, None)
    assert links() == [None, None]


def test_prompts_can_be_left_out_and_their_absence_is_explained(tmp_path: Path, dataset: dict[str, Any]) -> None:
    run = write_run(tmp_path / "a", [answer("i-1")], {"dataset": dataset})
    assert Page(report(tmp_path, run, prompts=False).read_text()).prompt("i-1") is None
    gone = {**dataset, "path": str(tmp_path / "gone.jsonl")}
    lost = write_run(tmp_path / "b", [answer("i-1")], {"dataset": gone})
    page = Page(report(tmp_path, lost).read_text())
    assert page.prompt("i-1") is None
    assert any("No prompts:" in note and "gone.jsonl" in note for note in page.figures()["notes"])
    foreign = write_run(tmp_path / "c", [answer("i-1")], {"dataset": {"_target_": "os.system", "path": "x"}})
    assert Page(report(tmp_path, foreign).read_text()).prompt("i-1") is None


def rendered(dataset: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The configuration of a run whose prompts were rendered."""
    context = {"_target_": "swe_infer.context.oracle.OracleContext", "offline": False, "readmes": True}
    prompt = {"_target_": "swe_infer.prompts.prompt.PromptRenderer", "style": "style2", "edit_format": "unified_diff"}
    rules = {"context": "oracle-1", "prompt": "style2-1"}
    nodes: dict[str, dict[str, Any]] = {"context": context, "prompt": prompt, "rules": rules}
    return {"dataset": dataset, **{name: {**node, **changes.get(name, {})} for name, node in nodes.items()}}


def test_prompts_of_rendered_runs_are_rendered_again_from_what_is_here(tmp_path: Path) -> None:
    base = BaseCommit(tmp_path)
    dataset = {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": str(base.rows), "text_column": None}
    clones = {"context": {"repositories": str(base.clones)}}
    run = write_run(tmp_path / "a", [answer("o__n-0")], rendered(dataset, **clones))
    other = write_run(
        tmp_path / "b",
        [answer("o__n-0")],
        rendered(dataset, **clones, prompt={"style": "style3"}, rules={"prompt": "style3-1"}),
    )
    page = Page(report(tmp_path, run, other).read_text())
    assert "[start of src/dos.py]\n1 a = 1\n2 b = 'caf\ufffd'\n" in (page.prompt("o__n-0") or "")
    assert page.detail("o__n-0")["patches"][0] == GOLD
    assert page.figures()["notes"][2:] == ["The prompts of b differ from those that are shown."]


def test_a_recorded_configuration_reads_no_file_and_runs_no_code(tmp_path: Path) -> None:
    base = BaseCommit(tmp_path)
    dataset = {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": str(base.rows), "text_column": None}
    secret = tmp_path / "secret"
    secret.write_text("{{ issue }} a secret")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": {"template": str(secret)}}, "prompt.template names a file"),
        ({"prompt": {"_target_": "os.system"}}, "a class outside this package"),
        ({"context": {"_target_": "os.system"}}, "not a class of this package"),
        ({"context": {"max_tokens": 5}}, "context.max_tokens"),
        ({"context": {"repositories": 5}}, "do not fit"),
        ({"prompt": {"style": "no style"}}, "do not fit"),
        ({"rules": {"context": "oracle-9"}}, "with the rules context=oracle-9, not oracle-1"),
        ({"context": {"repositories": str(tmp_path / "empty")}}, "(context.offline=true)"),
    ]
    for number, (changes, said) in enumerate(cases):
        run = write_run(tmp_path / str(number), [answer("o__n-0")], rendered(dataset, **changes))
        page = Page(report(tmp_path, run).read_text())
        note = page.figures()["notes"][-1]
        assert said in note
        assert "a secret" not in (page.prompt("o__n-0") or "")


def test_output_of_models_adds_no_element_to_the_page(tmp_path: Path, dataset: dict[str, Any]) -> None:
    plain = write_run(tmp_path / "p", [answer("i-1"), answer("i-2")], {"dataset": dataset})
    expected = [tag for tag, _ in Page(report(tmp_path, plain).read_text()).elements]
    runs = [hostile_run(tmp_path / name, dataset) for name in ("a<b>", 'q"')]
    page = Page(report(tmp_path, *runs).read_text())
    assert [tag for tag, _ in page.elements] == expected
    shown = HOSTILE.replace("\ud800", "\ufffd")
    assert shown in page.packed("index")["names"]
    assert page.answers("i-1") == [[shown], [shown]]


def test_the_page_needs_and_may_use_no_network(tmp_path: Path, dataset: dict[str, Any]) -> None:
    text = report(tmp_path, hostile_run(tmp_path / "a", dataset)).read_text()
    page = Page(text)
    assert [a for _, a in page.elements if {"src", "onerror", "onclick"} & a.keys()] == []
    assert {a["href"] for _, a in page.elements if "href" in a and not str(a["href"]).startswith("#")} == {"data:,"}
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"sha256-[A-Za-z0-9+/]{43}=", policy)) == 4  # two libraries, our script, the style
    script = page.scripts[-1][1]
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http:"):
        assert forbidden not in script.replace("await fetch(this.#address", "")  # of a served page


def test_the_libraries_are_those_that_their_list_names() -> None:
    vendor = Path(report_module.__file__).parent / "page" / "vendor"
    listed = dict(
        re.findall(r"^\| `(\S+\.js)` .*`([0-9a-f]{64})` \|$", (vendor / "README.md").read_text(), re.MULTILINE)
    )
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in vendor.glob("*.js")}
    assert listed == found
