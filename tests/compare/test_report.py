"""The page: its content, that it executes nothing from runs, and its rendering in Chromium if available."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import load_runs
from swe_infer.compare.report import write_report
from tests.compare.runs import answer, skip, write_run
from tests.support.base_commit import GOLD, BaseCommit

HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror="document.title=1"><!--\u2028\ud800 & é'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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

    def data(self) -> dict[str, Any]:
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == "data")
        data: dict[str, Any] = json.loads(text)
        return data

    def detail(self, number: int) -> dict[str, Any]:
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == f"detail-{number}")
        detail: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
        return detail


@pytest.fixture
def dataset(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "data.jsonl"
    row = {"instance_id": "i-1", "text": f"The issue.\n{HOSTILE}", "patch": "the gold patch"}
    path.write_text(json.dumps({**row, "text": row["text"].replace("\ud800", "")}) + "\n")
    return {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": str(path), "text_column": "text", "limit": None}


def report(tmp_path: Path, *runs: Path, prompts: bool = True) -> Path:
    path = tmp_path / "report.html"
    write_report(compare(load_runs([str(run) for run in runs]), resamples=1000), path, prompts=prompts)
    return path


def test_both_answers_both_patches_and_the_task_are_in_the_page(tmp_path: Path, dataset: dict[str, Any]) -> None:
    a = write_run(tmp_path / "a", [answer("i-1", text="left", patch="lp"), answer("i-2")], {"dataset": dataset})
    b = write_run(tmp_path / "b", [answer("i-1", text="right", patch="rp"), skip("i-2")], {"dataset": dataset})
    page = Page(report(tmp_path, a, b).read_text())
    detail = page.detail(0)
    assert detail["prompt"].startswith("The issue.\n")
    assert detail["gold"] == "the gold patch"
    assert [[sample["answer"] for sample in run] for run in detail["runs"]] == [["left"], ["right"]]
    assert [[sample["patch"] for sample in run] for run in detail["runs"]] == [["lp"], ["rp"]]
    assert page.detail(1)["prompt"] is None
    assert page.data()["cells"]["i-2"][1][0]["status"] == "skipped"


def test_the_page_contains_the_order_of_its_instances(tmp_path: Path, dataset: dict[str, Any]) -> None:
    """JavaScript puts integer-like keys first, so the order of an object's keys is not reliable."""
    names = ["b", "10", "2", "a"]
    run = write_run(tmp_path / "a", [answer(name, text=f"answer of {name}") for name in names], {"dataset": dataset})
    page = Page(report(tmp_path, run).read_text())
    order = page.data()["order"]
    assert sorted(order) == sorted(names)
    assert order == list(page.data()["cells"])
    for number, name in enumerate(order):
        assert page.detail(number)["runs"][0][0]["answer"] == f"answer of {name}"


def test_prompts_can_be_left_out_and_their_absence_is_explained(tmp_path: Path, dataset: dict[str, Any]) -> None:
    run = write_run(tmp_path / "a", [answer("i-1")], {"dataset": dataset})
    assert Page(report(tmp_path, run, prompts=False).read_text()).detail(0)["prompt"] is None
    gone = {**dataset, "path": str(tmp_path / "gone.jsonl")}
    lost = write_run(tmp_path / "b", [answer("i-1")], {"dataset": gone})
    page = Page(report(tmp_path, lost).read_text())
    assert page.detail(0)["prompt"] is None
    assert any("No prompts:" in note and "gone.jsonl" in note for note in page.data()["notes"])
    foreign = write_run(tmp_path / "c", [answer("i-1")], {"dataset": {"_target_": "os.system", "path": "x"}})
    assert Page(report(tmp_path, foreign).read_text()).detail(0)["prompt"] is None


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
    assert "[start of src/dos.py]\n1 a = 1\n2 b = 'caf\ufffd'\n" in page.detail(0)["prompt"]
    assert page.detail(0)["gold"] == GOLD
    assert page.data()["notes"][2:] == ["The prompts of b differ from those that are shown."]


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
        note = page.data()["notes"][-1]
        assert said in note
        assert (page.detail(0)["prompt"] or "").count("secret") == 0


def hostile_run(directory: Path, dataset: dict[str, Any]) -> Path:
    name = HOSTILE.replace("\ud800", "")
    config = {"dataset": dataset, "model": {"name": name + directory.name}}
    return write_run(directory, [answer("i-1", text=HOSTILE, patch=HOSTILE), answer(HOSTILE)], config)


def test_output_of_models_adds_no_element_to_the_page(tmp_path: Path, dataset: dict[str, Any]) -> None:
    plain = write_run(tmp_path / "p", [answer("i-1"), answer("i-2")], {"dataset": dataset})
    expected = [tag for tag, _ in Page(report(tmp_path, plain).read_text()).elements]
    runs = [hostile_run(tmp_path / name, dataset) for name in ("a<b>", 'q"')]
    page = Page(report(tmp_path, *runs).read_text())
    assert [tag for tag, _ in page.elements] == expected
    shown = HOSTILE.replace("\ud800", "\ufffd")
    assert shown in page.data()["instances"]
    assert page.detail(list(page.data()["instances"]).index("i-1"))["runs"][0][0]["answer"] == shown


def test_the_page_needs_and_may_use_no_network(tmp_path: Path, dataset: dict[str, Any]) -> None:
    text = report(tmp_path, hostile_run(tmp_path / "a", dataset)).read_text()
    page = Page(text)
    assert [a for _, a in page.elements if {"src", "onerror", "onclick"} & a.keys()] == []
    assert {a["href"] for _, a in page.elements if "href" in a and not str(a["href"]).startswith("#")} == {"data:,"}
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"sha256-[A-Za-z0-9+/]{43}=", policy)) == 2
    script = page.scripts[-1][1]
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http:"):
        assert forbidden not in script.replace("http://www.w3.org/2000/svg", "")


def browsed(page: Path, tmp_path: Path, fragment: str = "") -> str:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=3000 --dump-dom"
    )
    done = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri() + fragment],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_chromium_draws_the_plots_and_lists_the_instances(tmp_path: Path, dataset: dict[str, Any]) -> None:
    runs = [
        write_run(
            tmp_path / f"t{t}",
            [
                answer(f"i-{n}", "applies" if s < n < 3 + t else "none", sample=s, cost=f"0.{t}")
                for n in range(8)
                for s in (0, 1)
            ],
            {"decoding": {"temperature": t / 10}},
        )
        for t in (1, 2, 3)
    ]
    dom = browsed(report(tmp_path, *runs), tmp_path)
    assert "<title>Comparison of 3 runs</title>" in dom
    for plot in ("cost-plot", "sweep-plot", "passk-plot"):
        start = dom.index(f'id="{plot}"')
        drawn = dom[start : dom.index("</svg>", start)]
        assert drawn.count('tabindex="0"') == (6 if plot == "passk-plot" else 3)
        assert "<polyline" in drawn
    assert dom.count('<a href="#i-') == 8
    assert "solved by A, B, C" in dom
    assert "56.2 % [" in dom  # 9 of 16, rounded as in the command's tables


@pytest.mark.full
def test_chromium_shows_the_instance_of_the_address_as_text(tmp_path: Path, dataset: dict[str, Any]) -> None:
    runs = [hostile_run(tmp_path / name, dataset) for name in ("a", "b")]
    dom = browsed(report(tmp_path, *runs), tmp_path, "#i-1")
    view = dom[dom.index('<dialog id="view"') : dom.index("</dialog>")]
    assert ' open=""' in view[: view.index(">")]
    assert view.count("<article") == 2
    assert view.count('&lt;/script&gt;&lt;script&gt;document.title="taken"') == 5  # 2 patches, 2 answers, the prompt
    assert "<img" not in dom
    assert "<title>Comparison of 2 runs</title>" in dom


@pytest.mark.full
def test_chromium_shows_the_answer_of_the_instance_that_was_asked_for(
    tmp_path: Path, dataset: dict[str, Any]
) -> None:
    names = ["b", "10", "2", "a", "-1", "01"]
    runs = [
        write_run(tmp_path / run, [answer(n, text=f"answer of {n} in {run}") for n in names], {"dataset": dataset})
        for run in ("x", "y")
    ]
    page = report(tmp_path, *runs)
    for name in names:
        dom = browsed(page, tmp_path, f"#{name}")
        view = dom[dom.index('<dialog id="view"') : dom.index("</dialog>")]
        assert set(re.findall(r"answer of (\S+) in", view)) == {name}
