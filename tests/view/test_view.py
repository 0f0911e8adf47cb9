"""``swe-infer-view``: runs in progress, rates as in a comparison, requests that are refused, and hostile folders."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from swe_infer.cli.runs import main as list_runs
from swe_infer.cli.view import TOKEN, main
from swe_infer.compare.analysis import compare
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import load_runs
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.figures import resolved_figures
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, PatchResult, Usage
from swe_infer.view.comparisons import Comparisons, UnknownRun
from swe_infer.view.folder import WatchedFolder
from swe_infer.view.tail import RecordsReplaced, RecordTail
from tests.compare.runs import Entry, answer, failure
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.browser import CHROMIUM, Browser
from tests.support.instances import prompt_text, write_instances

IDS = tuple(f"r__x-{number}" for number in range(7))
MARKUP = "<img src=x onerror=document.title=1>"
TIMEOUT_S = 120.0
AXE = Path(__file__).parent.parent / "compare" / "vendor" / "axe.min.js"

Headers = Mapping[str, str]
Answer = tuple[int, dict[str, str], str]


class View:
    """A running ``swe-infer-view``."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.port = int(re.search(r":(\d+)/", address)[1])  # type: ignore[index]
        self.cursor = ""
        self.rows: dict[str, dict[str, Any]] = {}

    def get(self, path: str, headers: Headers | None = None, method: str = "GET") -> Answer:
        """Status, headers and text of the response to a request on loopback."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read().decode()
        finally:
            connection.close()

    def poll(self) -> dict[str, dict[str, Any]]:
        """The rows by name, as a page keeps them that requests only what changed."""
        status, _, text = self.get(f"/data/runs.json?since={self.cursor}")
        assert status == 200, text
        data = json.loads(text)
        if data["whole"]:
            self.rows.clear()
        self.rows.update({row["name"]: row for row in data["runs"]})
        self.rows = {name: row for name, row in self.rows.items() if row["id"] not in data["removed"]}
        self.cursor = data["cursor"]
        return self.rows

    def wait_for(self, condition: Callable[[dict[str, dict[str, Any]]], object]) -> list[dict[str, dict[str, Any]]]:
        """Polls until a condition on the rows holds; returns the rows of every poll."""
        seen: list[dict[str, dict[str, Any]]] = []
        deadline = time.monotonic() + TIMEOUT_S
        while not (seen and condition(seen[-1])):
            assert time.monotonic() < deadline, seen[-1:]
            seen.append(dict(self.poll()))
            time.sleep(0.1)
        return seen


@contextmanager
def view(folder: Path, *options: str, **environment: str) -> Iterator[View]:
    """Serves a folder until the end of the block, which a Ctrl-C brings: exit status 130, and no traceback."""
    process = commands.start(
        "swe_infer.view", str(folder), *options, cwd=Path.cwd(), env={**os.environ, **environment}
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), process.communicate()[1]
        yield View(address)
    finally:
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(TIMEOUT_S)
    assert process.wait() == 130
    assert "Traceback" not in errors, errors


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert list_runs(["list", str(folder), "--json"]) == 0
    return {run["name"]: run for run in json.loads(capsys.readouterr().out)}


def is_done(samples: int) -> Callable[[dict[str, dict[str, Any]]], bool]:
    """A condition for :meth:`View.wait_for`: the run has so many samples that need no request."""
    return lambda rows: "run" in rows and rows["run"]["done"] == samples


def compares_remaining(page: View, remaining: int, rows: dict[str, dict[str, Any]]) -> bool:
    """Whether the comparison of the run, which may be some seconds old, states this number of remaining samples."""
    data = json.loads(page.get(f"/data/comparison.json?run={rows['run']['id']}")[2])
    return bool(data["figures"]["runs"][0]["remaining"] == remaining)


def test_a_run_is_followed_from_its_first_to_its_last_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    rows = write_instances(tmp_path / "rows.jsonl", 10)
    with ApiServer() as server, view(folder) as page:
        command = (
            "swe_infer", "model=gpt-4o", f"provider.base_url={server.openai_url}", "provider.max_concurrency=1",
            "dataset=jsonl", f"dataset.path={rows}", "tracker=none", f"output_dir={folder / 'run'}",
        )  # fmt: skip
        environment = {**os.environ, "OPENAI_API_KEY": "sk-test-0123456789"}
        assert page.poll() == {}
        running = []
        for answered, done in ((2, 2), (3, 5)):
            server.script(*[None] * answered, "hang")
            process = commands.start(*command, cwd=tmp_path, env=environment)
            running += page.wait_for(is_done(done))[-1:]
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(TIMEOUT_S)
            page.wait_for(lambda rows: rows["run"]["state"] == "interrupted")
            assert page.rows["run"]["done"] == listed(folder, capsys)["run"]["done"] == done
            page.wait_for(partial(compares_remaining, page, 10 - done))
        server.reset()
        process = commands.start(*command, cwd=tmp_path, env=environment)
        page.wait_for(lambda rows: rows["run"]["state"] == "complete")
        process.communicate(TIMEOUT_S)
        assert process.wait() == 0
        page.wait_for(lambda rows: rows["run"]["finished"] is None)
        page.wait_for(partial(compares_remaining, page, 0))
        path = f"/data/comparison.json?run={page.rows['run']['id']}"
        status, headers, text = page.get(path)
        assert status == 200
        assert page.get(path, {"If-None-Match": headers["etag"]})[::2] == (304, "")
        instance = f"/data/instance.json?run={page.rows['run']['id']}&id="
        details = json.loads(page.get(f"{instance}example__pkg-3")[2])
        assert "".join(part["text"] for part in details["prompt"]) == prompt_text(3)
        assert details["turns"][0][0][0]["answer"].startswith("Here is the change.")
        assert page.get(f"{instance}../../x")[0] == 404

    first, second = (rows["run"] for rows in running)
    assert (first["state"], first["total"], first["remaining"]) == ("running", 10, 8)
    assert (second["state"], second["total"], second["remaining"]) == ("running", 10, 5)
    assert 0 < first["cost_usd"] < second["cost_usd"]
    widths = [row["finished"]["wilson_95"][1] - row["finished"]["wilson_95"][0] for row in (first, second)]
    assert widths[0] > widths[1]
    final, in_list = page.rows["run"], listed(folder, capsys)["run"]
    assert (final["done"], final["failed"], final["cost_usd"]) == (10, 0, in_list["cost"])
    assert final["applies"]["value"] == in_list["applies"]
    figures = as_json(compare(load_runs([str(folder / "run")])))["runs"][0]
    assert final["applies"]["wilson_95"] == figures["applies"]["wilson_95"]
    assert json.loads(text)["figures"]["runs"][0]["applies"] == figures["applies"]


def scanned(folder: Path) -> dict[str, dict[str, Any]]:
    watched = WatchedFolder(folder)
    watched.scan()
    return {row["name"]: row for row in watched.changes()["runs"]}


def made(
    directory: Path,
    entries: Sequence[Entry],
    *,
    ids: Sequence[str] = IDS,
    samples: int = 1,
    resolved: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A run directory with the files that a run writes."""
    with RunStore(directory, "model") as store:
        store.set_coverage(Coverage(tuple(ids)), Coverage(None))
        for instance_id, sample, outcome, patch in entries:
            store.append(record_of((instance_id, sample), outcome, patch))
        summary = store.totals.summary(instances=len(ids), samples=samples, wall_s=2.0)
        if resolved is not None:
            verdicts = [(entry[0], entry[0] in resolved) for entry in entries]
            summary |= resolved_figures(verdicts, summary)
            lines = [{"instance_id": e[0], "sample": e[1], "resolved": e[0] in resolved} for e in entries]
            (directory / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (directory / "config.yaml").write_text(json.dumps(config or {"model": {"name": directory.name}}))
        store.write_summary(summary)
    return directory


def test_rates_and_intervals_are_those_of_a_comparison(tmp_path: Path) -> None:
    some = [answer(name, "applies" if name < IDS[3] else "none") for name in IDS[:5]]
    made(tmp_path / "interrupted", [*some, failure(IDS[5])])
    made(tmp_path / "evaluated", [answer(name) for name in IDS], resolved=IDS[:2])
    several = [
        answer(name, "applies" if (number + sample) % 3 else "does_not_apply", sample=sample)
        for number, name in enumerate(IDS[:6])
        for sample in range(3)
    ]
    made(tmp_path / "several", [*several, failure(IDS[6], error="RateLimited")], samples=3, resolved=IDS[:4])
    (made(tmp_path / "killed", some) / "summary.json").unlink()

    found = scanned(tmp_path)
    runs = as_json(compare(load_runs([str(tmp_path)])))["runs"]
    assert {run["name"] for run in runs} == set(found) == {"interrupted", "evaluated", "several", "killed"}
    for run in runs:
        row = found[run["name"]]
        for rate in ("applies", "resolved") if run["name"] in ("evaluated", "several") else ("applies",):
            assert row[rate]["value"] == run[rate]["value"], (run["name"], rate)
            assert row[rate]["wilson_95"] == run[rate]["wilson_95"], (run["name"], rate)
    assert found["interrupted"]["applies"]["text"].startswith("42.9 % [")  # 3 of the 7 that were requested
    assert found["interrupted"]["finished"]["text"].startswith("50.0 % [")  # 3 of the 6 that have a result
    assert found["evaluated"]["finished"] is None
    assert found["several"]["errors"] == {"RateLimited": 1}


def opened_files(work: Callable[[], object]) -> list[str]:
    """The files that a function opens."""
    opened: list[str] = []
    on = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if on and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            opened.append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)
    try:
        work()
    finally:
        on.clear()  # a hook cannot be removed
    return opened


def test_only_directories_that_changed_are_read_again(tmp_path: Path) -> None:
    for number in range(20):
        made(tmp_path / f"run{number:02}", [answer("r__x-1")])
    watched = WatchedFolder(tmp_path)
    assert len({Path(path).parent.name for path in opened_files(watched.scan)}) == 20
    first = watched.changes()
    assert [first["whole"], len(first["runs"])] == [True, 20]

    assert opened_files(watched.scan) == []
    assert watched.changes(first["cursor"])["runs"] == []

    made(tmp_path / "run07", [answer("r__x-2")])
    shutil.rmtree(tmp_path / "run08")
    opened = opened_files(watched.scan)
    assert {Path(path).parent.name for path in opened if str(tmp_path) in path} == {"run07"}
    second = watched.changes(first["cursor"])
    assert [(row["name"], row["done"]) for row in second["runs"]] == [("run07", 2)]
    (gone,) = [row["id"] for row in first["runs"] if row["name"] == "run08"]
    assert (second["whole"], second["removed"]) == (False, [gone])
    for strange in ("", "x", first["cursor"] + "9" * 30, "0-0", "\ud800-1", second["cursor"].replace("-", "-\u0663")):
        assert watched.changes(strange)["whole"], strange


def test_records_are_read_on_from_where_they_ended(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    tail = RecordTail(path)
    assert list(tail.read()) == []
    lines = [json.dumps(record_of((name, 0), *answer(name)[2:]), default=float) + "\n" for name in ("a", "b", "c")]
    written = lines[0] + lines[1] + lines[0] + lines[2]
    read = []
    for end in (10, len(lines[0]), len(lines[0]) + 1, len(written) - 1, len(written)):
        path.write_text(written[:end])
        read.append([record["instance_id"] for record in tail.read()])
    assert read == [[], ["a"], [], ["b"], ["c"]]
    assert tail.is_complete
    path.write_text(lines[2])
    with pytest.raises(RecordsReplaced):
        list(tail.read())
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic link"):
        list(RecordTail(path).read())


def test_a_run_that_was_moved_is_not_shown_as_an_empty_one(tmp_path: Path) -> None:
    made(tmp_path / "outputs" / "run", [answer("r__x-1")])
    folder = WatchedFolder(tmp_path / "outputs")
    folder.scan()
    (run,) = folder.changes()["runs"]
    comparisons = Comparisons(folder)
    assert comparisons.of([run["id"]]).instance("r__x-1")
    (tmp_path / "outputs" / "run").rename(tmp_path / "moved")
    for _ in range(2):  # before the next scan, and after it
        for comparison in (comparisons.of, comparisons.latest):
            with pytest.raises(UnknownRun, match="no run of this folder"):
                comparison([run["id"]])
        folder.scan()


@pytest.fixture
def hostile(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of one good run and many bad ones, and a secret beside it."""
    folder = tmp_path / "outputs"
    good = made(folder / "good", [answer("r__x-1", text="a good answer")], resolved=[])
    private = answer("SECRET", text="SECRET", patch="SECRET")
    secret = made(tmp_path / "elsewhere", [private], ids=["SECRET"], resolved=[])
    (tmp_path / "private.jsonl").write_text('{"instance_id": "r__x-1", "text": "SECRET", "patch": "SECRET"}\n')

    def bad(name: str) -> Path:
        return Path(shutil.copytree(good, folder / "bad" / name))

    (folder / "link").symlink_to(secret)
    (folder / "again").symlink_to(good)
    (secret / "wandb").mkdir()
    state = {"options": {"entity": "SECRET", "project": "SECRET"}, "run_id": "SECRET"}
    (secret / "wandb" / "state.json").write_text(json.dumps(state))
    (bad("link to wandb") / "wandb").symlink_to(secret / "wandb")
    for name in ("records.jsonl", "summary.json", "config.yaml", "asked.json", "evaluation.jsonl"):
        place = bad(f"link to {name}")
        (place / name).unlink()
        (place / name).symlink_to(secret / name)
        place = bad(f"pipe {name}")
        (place / name).unlink()
        os.mkfifo(place / name)
    place = bad("pipe .lock")
    (place / ".lock").unlink()
    os.mkfifo(place / ".lock")
    (bad("deep") / "summary.json").write_text("[" * 100_000)
    (bad("figures") / "summary.json").write_text('{"instances": 1e400, "samples": -3, "completed": "x", "failed": 1}')
    (bad("huge figures") / "summary.json").write_text(
        '{"instances": 1000000000000000000, "samples": 1000000000000, "completed": 999999999999999999,'
        '"remaining": 0, "patches": {"applies": 999999999999999999}, "resolved": 999999999999999999}'
    )
    if request.config.getoption("full"):  # its pages take seconds
        long = bad("long")
        os.truncate(long / "records.jsonl", 1 << 30)
        (long / "summary.json").unlink()
    (bad("broken") / "records.jsonl").write_bytes(b'\xff\x00{"instance_id": "../../x", "sample": 0\n' * 50)
    (bad("dataset") / "config.yaml").write_text(
        json.dumps(
            {
                "dataset": {
                    "_target_": "swe_infer.data.jsonl.JsonlDataset",
                    "path": str(tmp_path / "private.jsonl"),
                    "text_column": "text",
                },
                "model": {"name": MARKUP},
            }
        )
    )
    made(
        folder / "bad" / MARKUP.replace("/", ""),
        [answer("../../SECRET"), answer(MARKUP)],
        ids=["../../SECRET", MARKUP],
    )
    sweep = folder / "sweep"
    sweep.mkdir()
    (sweep / "runs.jsonl").write_text(json.dumps({"overrides": ["a=1"], "run": str(secret)}) + "\n[[[\n")
    return folder


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (status.st_mode, status.st_size, status.st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
        if not stat.S_ISFIFO((status := path.lstat()).st_mode)
    }


def test_a_hostile_folder_is_shown_read_only_and_shows_nothing_outside(hostile: Path) -> None:
    before = tree(hostile)
    with view(hostile) as page:
        rows = page.wait_for(lambda rows: len(rows) >= 20 and rows["good"]["applies"])[-1]
        assert set(rows) == {str(path.parent.relative_to(hostile)) for path in hostile.rglob("records.jsonl")} | {
            "link", "bad/pipe records.jsonl"
        }  # fmt: skip
        marked = {name for name, row in rows.items() if row["error"]}
        assert marked == {
            "link", "bad/deep", "bad/figures", "bad/pipe config.yaml", "bad/pipe records.jsonl",
            "bad/pipe summary.json", "bad/link to config.yaml", "bad/link to records.jsonl",
            "bad/link to summary.json",
        }  # fmt: skip
        assert "outside this folder" in rows["link"]["error"]
        assert rows["good"]["error"] is None
        texts = [page.get("/data/runs.json")[2]]
        for name, row in rows.items():
            query = f"run={row['id']}"
            instances = (
                f"/data/instance.json?{query}&id={name}" for name in ("r__x-1", "SECRET", "..%2f..%2fSECRET")
            )
            for path in (f"/data/comparison.json?{query}", f"/compare?{query}", *instances):
                status, _, text = page.get(path)
                assert status == 404 or row["state"] != "damaged"
                assert status in (200, 404, 409), (name, text)
                texts.append(text)
        several = f"run={rows['good']['id']}&run={rows['bad/dataset']['id']}&run={rows['bad/broken']['id']}"
        status, _, text = page.get(f"/data/comparison.json?{several}")
        assert status == 200
        one = json.loads(page.get(f"/data/instance.json?{several}&id=r__x-1")[2])
        assert (one["prompt"], one["gold"]) == (None, None)
        assert "a good answer" in json.dumps(one)
        assert "SECRET" not in "".join([*texts, text]).replace("../../SECRET", "").replace(str(hostile.parent), "")
        for path in (
            "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/data/../../x", "/list.js/../../x", "//etc/passwd",
            "/data/comparison.json?run=../../etc/passwd", "/compare?run=%00", "/compare", "/style.css%00",
            "/compare?" + "&".join(f"run={n}" for n in range(200)),
        ):  # fmt: skip
            status, headers, text = page.get(path)
            assert status == 404, path
            assert "root:" not in text
            assert headers["content-type"].startswith("text/plain")
        assert page.get("/")[0] == 200
        assert tree(hostile) == before
        os.rename(hostile / "bad", hostile / ".bad")
        (hostile / "bad").symlink_to(hostile.parent)
        os.rename(hostile.parent / "elsewhere", hostile.parent / "broken")
        status, _, text = page.get(f"/data/comparison.json?run={rows['bad/broken']['id']}")
        assert (status, "SECRET" in text) == (404, False), "a folder was replaced by a link"


def test_requests_are_refused_without_a_known_host_or_the_token(tmp_path: Path) -> None:
    made(tmp_path / "run", [answer("r__x-1")])
    with view(tmp_path) as page:
        for host, expected in {
            f"127.0.0.1:{page.port}": 200, "localhost": 200, f"LOCALHOST:{page.port}": 200, "localhost:1": 200,
            "[::1]": 200, "evil.example": 421, f"evil.example:{page.port}": 421, "127.0.0.1.evil.example": 421,
            "10.0.0.1": 421, "localhost@evil.example": 421, "": 421, "localhost:x": 421,
        }.items():  # fmt: skip
            assert page.get("/", {"Host": host})[0] == expected, host
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
            status, headers, _ = page.get("/data/runs.json", method=method)
            assert (status, headers["allow"]) == (405, "GET, HEAD")
        status, headers, text = page.get("/data/runs.json", method="HEAD")
        assert (status, text) == (200, "")
        for path, expected in {"/": 200, "/data/runs.json": 200, "/compare?run=x": 404, "/x": 404}.items():
            status, headers, _ = page.get(path)
            assert status == expected
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert "access-control-allow-origin" not in headers

    token = "a-token-of-the-environment"
    with view(tmp_path, "--host", "0.0.0.0", **{TOKEN: token}) as page:
        assert token not in page.address
        assert page.get("/")[0] == 401
        for wrong in (f"{token}x", "", token[:-1], "\u00e9"):
            query = "".join(f"%{byte:02x}" for byte in wrong.encode())
            assert page.get(f"/?token={query}")[0] == 401, wrong
            assert page.get("/data/runs.json", {"Cookie": f"swe_infer_view_{page.port}={query}"})[0] == 401
        assert page.get("/data/runs.json", {"Authorization": f"Bearer {token}"})[0] == 200
        assert page.get("/", {"Host": "evil.example", "Authorization": f"Bearer {token}"})[0] == 421
        assert page.get("/", {"Host": "10.1.2.3", "Authorization": f"Bearer {token}"})[0] == 200
        status, headers, _ = page.get(f"//evil.example/compare?run=1&token={token}&run=2")
        assert (status, headers["location"]) == (303, "/evil.example/compare?run=1&run=2")
        cookie = headers["set-cookie"]
        assert token not in cookie
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert page.get("/data/runs.json", {"Cookie": f"a=b; {cookie.partition(';')[0]}; c=d"})[0] == 200

    with view(tmp_path, "--host", "0.0.0.0") as page:
        found = re.fullmatch(r"http://[^/]+/\?token=([\w-]{32,})", page.address)
        assert found is not None
        assert page.get(f"/?token={found[1]}")[0] == 303
        assert page.get("/")[0] == 401


SLOW = """
import time
from swe_infer.serving import listening, serve

async def app(scope, receive, send):
    print("asked", flush=True)
    time.sleep(3)  # longer than the end waits

listener = listening("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
try:
    serve(app, listener)
except KeyboardInterrupt:
    time.sleep(3)  # what the server's thread still does is seen
"""


def test_a_server_that_is_busy_at_its_end_fails_in_no_thread() -> None:
    process = commands.start("-c", SLOW, cwd=Path.cwd(), env=os.environ)
    connection = http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=TIMEOUT_S)
    connection.request("GET", "/")
    assert process.stdout.readline() == "asked\n"
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(TIMEOUT_S)
    connection.close()
    assert "Exception in thread" not in errors, errors


def test_a_bad_folder_port_or_token_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    def refused(*arguments: str) -> str:
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "nowhere: directory not found" in refused(str(tmp_path / "nowhere"))
    assert "file: directory not found" in refused(str(tmp_path / "file"))
    with ApiServer() as server:
        port = re.search(r":(\d+)/", server.openai_url)[1]  # type: ignore[index]
        assert f"--port {port}: another process uses it" in refused(str(tmp_path), "--port", port)
    assert "--host a..b: no such address" in refused(str(tmp_path), "--host", "a..b")
    monkeypatch.setenv(TOKEN, "short")
    assert refused(str(tmp_path)).startswith(f"error: {TOKEN}: must have at least 16")
    for port in ("x", "65536", "-1"):
        with pytest.raises(SystemExit, match="2"):
            main([f"--port={port}", str(tmp_path)])
        assert "must be a number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_chromium_follows_a_run_and_opens_a_comparison(hostile: Path, tmp_path: Path) -> None:
    with view(hostile) as page, Browser(tmp_path / "profile") as tab:
        rows = "[...document.querySelectorAll('#body tr')]"
        row = f"{rows}.find((tr) => tr.querySelector('th').textContent.startsWith('live'))"
        tab.open(page.address)
        tab.wait(f"{rows}.length >= 20")
        assert tab.evaluate("document.querySelectorAll('#runs img').length") == 0
        assert tab.evaluate("document.getElementById('runs').textContent.includes('<img src=x')")
        with RunStore(hostile / "live", "model") as store:
            store.set_coverage(Coverage(IDS), Coverage(None))
            for number, name in enumerate(IDS):
                outcome = Completion("an answer", "stop", Usage(10, output_tokens=5), Decimal("0.5"), 1.0)
                store.append(record_of((name, 0), outcome, PatchResult("--- a/x\n+++ b/x\n", "applies")))
                if number % 3 == 0:
                    tab.wait(f"{row}?.textContent.includes('{number + 1} / 7')")
                    assert "running" in tab.evaluate(f"{row}.textContent")
                    assert f"${(number + 1) / 2:.4f}" in tab.evaluate(f"{row}.textContent")
            tab.wait("document.title.startsWith('(1 running)')")
            tab.evaluate(f"{row}.querySelector('a').click()")
            tab.wait("document.querySelectorAll('#instances-table tbody tr').length === 7")
            store.write_summary(store.totals.summary(instances=7, samples=1, wall_s=2.0))
        assert tab.problems == []
        tab.open(page.address)
        tab.wait(f"{row}?.textContent.includes('complete')")
        tab.evaluate(f"{row}.querySelector('input').click()")
        tab.evaluate("document.getElementById('search').value = 'pipe .lock'")
        tab.evaluate("document.getElementById('search').dispatchEvent(new Event('input'))")
        assert tab.evaluate(f"{rows}.length") == 1
        tab.evaluate("document.getElementById('select-all').click()")
        assert tab.evaluate("document.getElementById('selected').textContent") == "2 selected"
        tab.evaluate("document.getElementById('compare').click()")
        tab.wait("location.pathname === '/compare' && document.querySelector('#instances-table table')")
        assert tab.evaluate("document.title") == "Comparison of 2 runs"
        tab.open(page.address)
        tab.wait(f"{rows}.length === 1")  # the search is kept
        tab.evaluate("document.getElementById('search').value = ''")
        tab.evaluate("document.getElementById('search').dispatchEvent(new Event('input'))")
        for width, dark in ((400, False), (1000, True), (2000, False)):
            tab.open(page.address, width=width, height=800, dark=dark)
            tab.wait(f"{rows}.length >= 20")
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            assert tab.evaluate(f"{row}.querySelector('input').checked"), "the selection is kept"
            tab.evaluate(AXE.read_text(encoding="utf-8"))
            found = tab.evaluate("axe.run().then(({violations}) => violations)")
            assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], width
        assert tab.problems == []
