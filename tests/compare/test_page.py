"""The page in Chromium: charts, list, instances, keyboard, accessibility, hostile content, a server's data."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from swe_infer.compare.analysis import Comparison, compare
from swe_infer.compare.loading import load_runs
from swe_infer.compare.page_data import InstanceDetails, page_data
from swe_infer.compare.report import page_json, served_page, write_report
from tests.compare.runs import HOSTILE, answer, failure, hostile_run, skip, write_run
from tests.support.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
DRAWN = "document.querySelector('#instances-table table')"
IS_OPEN = "document.getElementById('view').open && document.getElementById('close')"
PATCH = """diff --git a/lib/a.py b/lib/a.py
--- a/lib/a.py
+++ b/lib/a.py
@@ -2,3 +2,3 @@
 two
-three
+three {}
 four
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def comparison_of(*runs: Path) -> Comparison:
    return compare(load_runs([str(run) for run in runs]), resamples=1000)


def opened(browser: Browser, tmp_path: Path, *runs: Path, fragment: str = "", **size: Any) -> Path:
    path = tmp_path / "page.html"
    write_report(comparison_of(*runs), path)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path.as_uri() + fragment, **size)
    browser.wait(IS_OPEN if fragment else DRAWN)
    return path


def text(browser: Browser, selector: str) -> str:
    return str(browser.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))


def swept_runs(tmp_path: Path, temperatures: int = 3, tops: int = 1, instances: int = 60) -> list[Path]:
    return [
        write_run(
            tmp_path / f"t{t}p{p}",
            [
                answer(
                    f"org__repo{n % 3}-{n}",
                    "applies" if (n * 7 + s) % 20 < 6 + 3 * t + p else "none",
                    sample=s,
                    cost=f"0.{t + 1}{p}",
                    patch=PATCH.format(s),
                )
                for n in range(instances)
                for s in (0, 1)
            ],
            {"decoding": {"temperature": t / 10, "top_p": 1 - p / 10}, "model": {"name": "a-model/with_a-long.name"}},
        )
        for t in range(temperatures)
        for p in range(tops)
    ]


def violations(browser: Browser) -> list[str]:
    browser.evaluate(f"(0, eval)({json.dumps(AXE.read_text(encoding='utf-8'))}), 0")
    found = browser.evaluate("axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)")
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in found for node in one["nodes"]]


def test_charts_and_tables_answer_the_questions(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, *swept_runs(tmp_path, tops=2))
    assert "Of 6 runs, the patches of F (" in text(browser, "#sentences .lead")
    assert "points more often than" in text(browser, "#sentences")
    assert "Pareto frontier of cost and rate" in text(browser, "#sentences")
    for plot in ("rates", "cost", "sweep", "passk", "repositories"):
        assert browser.evaluate(f"document.querySelectorAll('#{plot}-plot svg[role=img] path').length") > 0, plot
        drawn, given = browser.evaluate(
            f"[...document.querySelectorAll('#{plot}-plot svg, #{plot}-plot')].map((e) => e.clientWidth)"
        )
        assert given - 4 < drawn <= given, f"{plot}: {drawn} of {given} pixels"
    assert browser.evaluate("document.querySelectorAll('#sweep-plot .legend li').length") == 2
    assert "decoding.temperature" in text(browser, "#configuration-table").replace("\n", "")
    assert "a-model" not in text(browser, "#configuration-table")  # it does not differ
    assert browser.problems == []
    assert all(request.startswith(("file:", "about:", "data:")) for request in browser.requests)


def test_instances_are_filtered_and_sorted(browser: Browser, tmp_path: Path) -> None:
    runs = swept_runs(tmp_path)
    names = comparison_of(*runs).scores
    opened(browser, tmp_path, *runs)

    def listed() -> list[str]:
        rows = browser.evaluate("[...document.querySelectorAll('#instances-table tbody th')].map((e) => e.innerText)")
        return [str(row).replace("\u200b", "") for row in rows]

    def choose(menu: str, value: str) -> None:
        browser.evaluate(
            f"(() => {{ const menu = document.getElementById('{menu}'); menu.value = '{value}';"
            "menu.dispatchEvent(new Event('change')); })()"
        )

    assert listed() == list(names)[:30]
    browser.evaluate("document.getElementById('next-page').click()")
    assert listed() == list(names)[30:]
    choose("show", "differ")
    assert listed() == [name for name, row in names.items() if len(set(row)) > 1]
    choose("show", "all")
    choose("solved-by", "C")
    choose("not-by", "A")
    assert listed() == [name for name, row in names.items() if row[2] and not row[0]]
    browser.evaluate("document.getElementById('reset').click()")
    choose("problem", "2")
    assert listed() == [name for name, row in names.items() if 0 in row or 0.5 in row][:30]
    browser.evaluate("document.getElementById('reset').click(); document.getElementById('sort-B').click()")
    assert listed() == sorted(names, key=lambda name: (-(names[name][1] or 0), list(names).index(name)))[:30]
    browser.evaluate("document.querySelector('#overlap-table button').click()")
    assert len(listed()) == int(text(browser, "#overlap-table button"))
    assert "Solved by" in text(browser, "#exactly")


def test_the_keyboard_reaches_everything(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, *swept_runs(tmp_path))
    browser.evaluate("document.getElementById('search').focus()")
    for letter in "repo1":
        browser.press(letter, text=letter)
    assert browser.evaluate("document.activeElement.id") == "search"
    assert "1 to 20 of 20" in text(browser, "#instances-count")
    for _ in range(30):
        browser.press("Tab", 9)
        if browser.evaluate("document.activeElement.matches('#instances-table a')"):
            break
    first = browser.evaluate("document.activeElement.getAttribute('href')")
    browser.press("Enter", 13, "\r")
    browser.wait(IS_OPEN)
    assert browser.evaluate("document.getElementById('view').contains(document.activeElement)")
    title = text(browser, "#view-title")
    browser.press("j", text="j")
    browser.wait(f"document.getElementById('view-title').innerText !== {json.dumps(title)}")
    browser.press("k", text="k")
    browser.wait(f"document.getElementById('view-title').innerText === {json.dumps(title)}")
    browser.press("Escape", 27)
    browser.wait("!document.getElementById('view').open")
    assert browser.evaluate("document.activeElement.getAttribute('href')") == first
    assert browser.problems == []


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_and_nothing_overlaps(browser: Browser, tmp_path: Path, dark: bool) -> None:
    runs = swept_runs(tmp_path, tops=2)
    problems = []
    for width in (400, 1000, 2000):
        opened(browser, tmp_path, *runs, width=width, dark=dark)
        problems += [f"{width}: {found}" for found in violations(browser)]
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        overlaps = browser.evaluate(_OVERLAPS)
        assert overlaps == [], f"{width}: {overlaps}"
        browser.evaluate("document.querySelector('#instances-table a').click()")
        browser.wait(IS_OPEN)
        problems += [f"{width}, instance: {found}" for found in violations(browser)]
        assert browser.evaluate("document.getElementById('view').scrollWidth") <= width
    assert problems == []


_OVERLAPS = """[...document.querySelectorAll('figure')].flatMap((figure) => {
  const boxes = [...figure.querySelectorAll('svg text')].filter((text) => text.textContent.trim())
    .map((text) => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], index) => boxes.slice(index + 1)
    .filter(([, b]) => a.left < b.right - 1 && a.right > b.left + 1 && a.top < b.bottom - 2 && a.bottom > b.top + 2)
    .map(([other]) => [figure.id, one, other]));
})"""


def test_patches_are_shown_within_the_real_file(browser: Browser, tmp_path: Path) -> None:
    prompt = (
        "system\nissue\n[start of lib/a.py]\n1 one\n2 two\n3 three\n4 four\n5 five\n6 six\n[end of lib/a.py]\nend"
    )
    rows = tmp_path / "data.jsonl"
    rows.write_text(json.dumps({"instance_id": "1", "text": prompt, "patch": PATCH.format("gold")}) + "\n")
    dataset = {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": str(rows), "text_column": "text"}
    a = write_run(tmp_path / "a", [answer("1", patch=PATCH.format("a"))], {"dataset": dataset})
    b = write_run(tmp_path / "b", [answer("1", "none")], {"dataset": dataset})
    opened(browser, tmp_path, a, b, fragment="#1")
    assert browser.evaluate("document.querySelectorAll('#view article').length") == 2
    assert "No patch." in text(browser, "#view article:last-child")
    lines = "[...document.querySelectorAll('#view article:first-child .diff tbody tr')].map((row) => row.innerText)"
    rows_shown = browser.evaluate(lines)
    assert rows_shown[3].startswith("@@ -2,3 +2,3 @@")
    assert len(rows_shown) == 8
    assert browser.evaluate("[...document.querySelectorAll('#view mark')].map((m) => m.textContent)") == [" a"]
    browser.evaluate("document.getElementById('whole').click()")
    shown = browser.evaluate(lines)
    assert [row.split("\t")[-1].strip() for row in shown[3:]] == [
        "one", "two", "-three", "+three a", "four", "five", "six",
    ]  # fmt: skip
    browser.evaluate("document.getElementById('split').click()")
    assert [row.split("\t")[0] for row in browser.evaluate(lines)[3:]] == ["1", "2", "3", "4", "5", "6"]
    assert "lib/a.py, 6 lines" in text(browser, "#view > details summary")
    assert browser.problems == []


def test_output_of_models_is_shown_as_text(browser: Browser, tmp_path: Path, dataset: dict[str, Any]) -> None:
    runs = [hostile_run(tmp_path / name, dataset) for name in ("a<b>", 'q"')]
    opened(browser, tmp_path, *runs, fragment="#i-1")
    shown = text(browser, "#view")
    browser.evaluate("for (const one of document.querySelectorAll('#view details')) one.open = true")
    shown = str(browser.evaluate("document.getElementById('view').textContent"))
    assert shown.count('</script><script>document.title="taken"') >= 5  # 2 patches, 2 answers, the prompt
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.title") == "Comparison of 2 runs"
    path = opened(browser, tmp_path, *runs)
    browser.evaluate("document.querySelector('#instances-table a').click()")
    browser.wait(IS_OPEN)
    assert HOSTILE.split("\u2028")[0] in text(browser, "#view-title").replace("\u200b", "")
    browser.open(f"{path.as_uri()}#i-1")
    browser.wait(IS_OPEN)
    browser.evaluate("for (const one of document.querySelectorAll('#view details')) one.open = true")
    assert violations(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1280
    patch = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\u202e\u2066c\n"
    opened(browser, tmp_path, write_run(tmp_path / "bidi", [answer("i-1", patch=patch)]), fragment="#i-1")
    assert "b[U+202E][U+2066]c" in text(browser, "#view .diff")
    assert browser.problems == []


def test_integer_ids_open_their_own_instance(browser: Browser, tmp_path: Path) -> None:
    names = ["b", "10", "2", "a", "-1", "01", "instances"]
    run = write_run(tmp_path / "x", [answer(name, text=f"answer of {name}") for name in names])
    path = opened(browser, tmp_path, run)
    for name in names:
        browser.open(f"{path.as_uri()}#{'instance=' if name == 'instances' else ''}{name}")
        browser.wait(IS_OPEN)
        assert f"answer of {name}" in str(browser.evaluate("document.getElementById('view').textContent"))
    browser.open(f"{path.as_uri()}#instances")  # the section of this name
    browser.wait(DRAWN)
    assert not browser.evaluate("document.getElementById('view').open")
    browser.evaluate("[...document.querySelectorAll('#instances-table a')].at(-1).click()")
    browser.wait(IS_OPEN)
    assert text(browser, "#view-title") == "instances"


def test_long_and_empty_names_fit(browser: Browser, tmp_path: Path) -> None:
    long = "x" * 3000
    entries = [answer(""), answer(long)]
    runs = [
        write_run(tmp_path / f"r{n}", entries, {"decoding": {"temperature": n}, "model": {"name": long + str(n)}})
        for n in (0, 1)
    ]
    opened(browser, tmp_path, *runs, width=400)
    assert not browser.evaluate("document.getElementById('view').open")  # a URL without a fragment names no instance
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    cut = (
        "[...document.querySelectorAll('#rates-plot svg text')].filter((one) => one.getBoundingClientRect().left < 0)"
    )
    assert browser.evaluate(f"{cut}.length") == 0
    for name in ("", long):
        browser.evaluate(
            f"[...document.querySelectorAll('#instances-table a')].find((a) => a.text === '{name}').click()"
        )
        browser.wait(f"{IS_OPEN} && document.getElementById('view-title').textContent === '{name}'")
        assert browser.evaluate("document.getElementById('view').scrollWidth") <= 400
    assert browser.problems == []


def test_one_run_and_fifty_and_different_datasets_and_an_interrupted_run(browser: Browser, tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [answer("i-1"), failure("i-2"), skip("i-3")], remaining=7)
    opened(browser, tmp_path, one)
    assert "Not finished: A (7 samples remain)." in text(browser, "#sentences")
    assert browser.evaluate("document.title") == "One run"
    other = write_run(tmp_path / "other", [answer("j-1")])
    opened(browser, tmp_path, one, other)
    assert "have no instance in common" in text(browser, "#sentences")
    assert browser.evaluate("document.querySelectorAll('#instances-table tbody tr').length") == 4
    many = swept_runs(tmp_path, temperatures=50, instances=12)
    opened(browser, tmp_path, *many, width=400)
    assert "Of 50 runs," in text(browser, "#sentences")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    assert violations(browser) == []
    opened(browser, tmp_path, write_run(tmp_path / "none", [], remaining=3))
    assert "No instance" in text(browser, "#instances-count")
    assert browser.problems == []


class _Server(http.server.ThreadingHTTPServer):
    """Serves the page of a comparison that changes."""

    comparison: Comparison
    refused = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        name = address.path.rpartition("/")[2]
        if self.server.refused and "json" in name:
            body = self.server.refused
        elif name == "comparison.json":
            body = page_json(page_data(self.server.comparison))
        elif name == "instance.json":
            with InstanceDetails(self.server.comparison) as details:
                body = page_json(details.of(parse_qs(address.query)["id"][0]))
        else:
            body = served_page("data/", refresh_s=0, home_url="/")
        self.send_response(409 if self.server.refused else 200)
        self.send_header("Content-Type", "application/json" if "json" in name else "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_served_page_follows_its_runs(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [answer("i-1", text="first answer")], remaining=2)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.comparison = comparison_of(run)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.problems.clear()
        browser.open(f"http://127.0.0.1:{server.server_address[1]}/compare?run=a#i-1")
        browser.wait(IS_OPEN)
        assert "first answer" in str(browser.evaluate("document.getElementById('view').textContent"))
        browser.press("Escape", 27)
        browser.evaluate("document.getElementById('search').focus()")
        browser.press("2", text="2")
        assert "No instance" in text(browser, "#instances-count")
        write_run(tmp_path / "a", [answer("i-2", text="second answer")], remaining=1)
        server.comparison = comparison_of(run)
        browser.evaluate("document.dispatchEvent(new Event('swe-infer:refresh'))")
        browser.wait("document.querySelectorAll('#instances-table tbody tr').length === 1")
        assert browser.evaluate("[document.activeElement.id, document.activeElement.value]") == ["search", "2"]
        assert "Not finished: A (1 sample remains)." in text(browser, "#sentences")
        assert any("run=a&id=i-1" in request for request in browser.requests)
        opened_one = "document.querySelector('#view h2')?.textContent"
        browser.evaluate("window.location.hash = 'i-2'")
        browser.wait(f"{opened_one} === 'i-2'")
        server.refused = "a run was moved\n"
        for name in ("search", "i-1", "i-2"):
            browser.evaluate(f"window.location.hash = '{name}'")
        browser.wait(
            f"{opened_one} === 'i-2' && document.getElementById('view').innerText.includes('a run was moved')"
        )
        browser.evaluate("document.dispatchEvent(new Event('swe-infer:refresh'))")
        browser.wait("document.getElementById('status').innerText.startsWith('a run was moved; the figures are of')")
        server.refused = ""
        write_run(tmp_path / "a", [answer("i-0"), answer("i-3")])
        server.comparison = comparison_of(run)
        browser.evaluate("document.dispatchEvent(new Event('swe-infer:refresh'))")
        browser.wait(f"document.getElementById('side-0') && {opened_one} === 'i-2'")  # it is loaded after all
        server.shutdown()
        server.server_close()
        browser.evaluate("document.dispatchEvent(new Event('swe-infer:refresh'))")
        browser.wait("document.getElementById('status').innerText.includes('does not answer')")
