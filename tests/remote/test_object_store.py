"""Runs, sweeps and datasets in an object store with the S3 protocol, by the real commands."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from swe_infer.cli.arguments import hydra_arguments, mirror_of_sweep
from swe_infer.compare.command import run as compare
from swe_infer.errors import ConfigError, RemoteStoreError, StoreError, UploadIncomplete
from swe_infer.interrupts import INTERRUPTS
from swe_infer.remote.files import read_entry
from swe_infer.remote.manifest import FileEntry, Manifest
from swe_infer.remote.mirror import Mirror
from swe_infer.remote.paths import plain_path, working_path
from swe_infer.remote.reading import dataset_path, readable_path
from swe_infer.remote.writing import remove_mirrored, written_file
from swe_infer.resources import expanded
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.object_store import SECRET, ObjectStore, StoreProcess, environment, keys_of, object_store

pytestmark = pytest.mark.skipif(importlib.util.find_spec("s3fs") is None, reason="needs the extra s3")

ROOT = Path(__file__).resolve().parent.parent.parent
_MANY = 200
"""Instances, more than a run answers before it is killed."""
RUN = "s3://bucket/runs/one"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    with object_store(tmp_path / "store") as found:
        yield found


class Machine:
    """A machine: a state directory, a cache and a folder of its own."""

    def __init__(self, directory: Path, store_url: str, server: ApiServer | None = None) -> None:
        self.directory = directory
        directory.mkdir()
        self.state = directory / "state"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {
            **os.environ,
            **environment(store_url),
            "PYTHONPATH": path,
            "OPENAI_API_KEY": "sk-test",
            "XDG_STATE_HOME": str(self.state),
            "XDG_CACHE_HOME": str(directory / "cache"),
        }
        self.model = (
            ["tracker=none", "model=gpt-4o", "dataset=jsonl", "dataset.path=s3://bucket/instances.jsonl"]
            if server is None
            else [
                "tracker=none", "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl",
                "dataset.path=s3://bucket/instances.jsonl", "upload_interval_s=0.2",
            ]
        )  # fmt: skip

    def command(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(module, *arguments, cwd=self.directory, env=self.environment)

    def infer(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.command("swe_infer", *self.model, *arguments)

    def start(self, *arguments: str) -> commands.Command:
        return commands.start("swe_infer", *self.model, *arguments, cwd=self.directory, env=self.environment)


def put_instances(folder: Path, scratch: Path, count: int) -> None:
    path = write_instances(scratch / "instances.jsonl", count)
    (folder / "bucket" / "instances.jsonl").write_bytes(path.read_bytes())


def stored(folder: Path, url: str = RUN) -> Manifest | None:
    """The state of a mirrored folder, from the files of the store."""
    prefix = f"{url.removeprefix('s3://bucket/')}/.swe_infer/manifest-"
    found = {key: content for key, content in keys_of(folder).items() if key.startswith(prefix)}
    if not found:
        return None
    key = max(found)
    return Manifest.decoded(int(key[-13:-5]), found[key])


def records_in_store(folder: Path, url: str = RUN) -> list[dict[str, object]]:
    base = f"{url.removeprefix('s3://bucket/')}/.swe_infer/"
    while True:
        manifest = stored(folder, url)
        if manifest is None or "records.jsonl" not in manifest.files:
            return []
        entry, objects = manifest.files["records.jsonl"], keys_of(folder)
        with suppress(KeyError):  # replaced meanwhile
            content = entry.content or b"".join(objects[base + part.name] for part in entry.parts)
            return [json.loads(line) for line in content.splitlines()]


def wait_for(condition: Callable[[], object], process: commands.Command) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(process: commands.Command) -> None:
    process.kill()
    process.communicate(60)


def test_a_run_goes_on_on_another_machine_and_is_read_there(tmp_path: Path, store: ObjectStore) -> None:
    put_instances(store.folder, tmp_path, 6)
    with ApiServer() as server:
        first = Machine(tmp_path / "first", store.url, server)
        done = first.infer("dataset.limit=4", f"output_dir={RUN}")
        assert (done.returncode, done.stdout) == (0, f"{RUN}\n"), done.stderr
        assert f"swe-infer-compare {RUN} --html" in done.stderr
        assert len(server.log.asked()) == 4
        objects = keys_of(store.folder)
        assert len(objects["runs/one/records.jsonl"].splitlines()) == 4
        assert {"runs/one/summary.json", "runs/one/config.yaml", "runs/one/predictions.jsonl"} <= objects.keys()

        second = Machine(tmp_path / "second", store.url, server)
        dry = second.infer("dataset.limit=6", f"output_dir={RUN}", "dry_run=true")
        assert "2 for 2 instances" in dry.stderr + dry.stdout, dry.stderr
        done = second.infer("dataset.limit=6", f"output_dir={RUN}")
        assert (done.returncode, len(server.log.asked())) == (0, 6), done.stderr
        assert len(records_in_store(store.folder)) == 6

    reader = Machine(tmp_path / "reader", store.url)
    patched = reader.command("swe_infer.patches", RUN)
    assert patched.stdout.startswith(f"{RUN}: 0 of 6 patches changed"), patched.stderr
    other = reader.command("swe_infer.merge", RUN, RUN)
    assert f"{RUN}: is not the run of a shard" in other.stderr
    compared = reader.command("swe_infer.compare", "s3://bucket/runs", "--json", "out.json")
    assert compared.returncode == 0, compared.stderr
    before = len(store.requests)
    listed = reader.command("swe_infer.runs", "list", "--json", "s3://bucket")
    (run,) = json.loads(listed.stdout)
    assert (run["directory"], run["state"], run["done"]) == (RUN, "complete", 6)
    assert len(store.requests) - before < 12
    removed = reader.command("swe_infer.runs", "rm", "--force", RUN)
    assert removed.stdout == f"removed {RUN}\n", removed.stderr
    assert keys_of(store.folder).keys() == {"instances.jsonl"}
    for place in (tmp_path / "first", tmp_path / "second", tmp_path / "reader"):
        assert not any(SECRET.encode() in path.read_bytes() for path in place.rglob("*") if path.is_file())


@pytest.mark.full
def test_kills_of_the_command_and_of_the_store(tmp_path: Path) -> None:
    """A killed command pays for nothing twice, a lost machine only for the answers since the last upload, and a run
    goes on without its store."""
    folder = tmp_path / "store"
    (folder / "bucket").mkdir(parents=True)
    put_instances(folder, tmp_path, _MANY)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = StoreProcess(folder, port)
    process.start()
    try:
        with ApiServer(latency_s=0.5) as server:
            first = Machine(tmp_path / "first", process.url, server)
            second = Machine(tmp_path / "second", process.url, server)
            run = (f"output_dir={RUN}", "provider.max_concurrency=2")

            started = first.start(*run)
            wait_for(lambda: len(records_in_store(folder)) >= 3, started)
            (listed,) = json.loads(second.command("swe_infer.runs", "list", "--json", RUN).stdout)
            assert listed["state"] == "running"
            refused = second.infer(*run)
            assert refused.returncode == 2
            line = rf"error: output_dir={RUN}: in use by process {started.pid} on {socket.gethostname()}, .*\n"
            assert re.search(line, refused.stderr), refused.stderr
            kill(started)
            local = len(next(first.state.rglob("records.jsonl")).read_bytes().splitlines())
            assert len(records_in_store(folder)) <= local

            started = first.start(*run)  # the same machine: every answer on its disk counts
            wait_for(lambda: len(records_in_store(folder)) >= local + 3, started)
            process.kill()
            paid = len(server.log.asked())
            wait_for(lambda: len(server.log.asked()) >= paid + 6, started)
            process.start()
            after = len(records_in_store(folder))
            wait_for(lambda: len(records_in_store(folder)) > after, started)
            kill(started)
            known, answered = len(records_in_store(folder)), len(server.log.answers())
            server.latency_s = 0

            ended = second.infer(*run)  # the other machine: every answer in the store counts
            assert ended.returncode == 0, ended.stderr
            assert len(server.log.answers()) - answered == _MANY - known
            assert len({record["instance_id"] for record in records_in_store(folder)}) == _MANY

            # The first machine has answers that the store never got: they are kept, not lost.
            own = {line for path in first.state.rglob("records.jsonl") for line in path.read_bytes().splitlines()}
            paid = len(server.log.asked())
            ended = first.infer(*run)
            assert (ended.returncode, len(server.log.asked())) == (0, paid), ended.stderr
            assert {json.dumps(record) for record in records_in_store(folder)} >= {
                json.dumps(json.loads(line)) for line in own
            }

            # Without the store at the end, the run is complete, and says so; the same command uploads it.
            other = ("output_dir=s3://bucket/runs/two", "dataset.limit=8", "provider.max_concurrency=2")
            server.latency_s = 0.5
            started = second.start(*other)
            wait_for(lambda: records_in_store(folder, "s3://bucket/runs/two"), started)
            process.kill()
            output, errors = started.communicate(300)
            assert (started.wait(), output) == (1, "s3://bucket/runs/two\n"), errors
            assert "not everything is uploaded" in errors.splitlines()[-1]
            paid = len(server.log.asked())
            unreachable = second.infer(*other)
            assert unreachable.returncode == 2
            process.start()
            ended = second.infer(*other)
            assert (ended.returncode, len(server.log.asked())) == (0, paid), ended.stderr
            assert len(records_in_store(folder, "s3://bucket/runs/two")) == 8
    finally:
        process.kill()


def test_a_sweep_in_the_store(tmp_path: Path, store: ObjectStore) -> None:
    put_instances(store.folder, tmp_path, 3)
    sweep = "s3://bucket/sweeps/temperatures"
    arguments = ("-m", "decoding=sample", "decoding.temperature=0.2,0.8", f"output_dir={sweep}")
    with ApiServer() as server:
        first = Machine(tmp_path / "first", store.url, server)
        done = first.infer(*arguments)
        assert done.returncode == 0, done.stderr
        runs = done.stdout.split()
        assert len(runs) == 2
        assert all(run.startswith(f"{sweep}/") for run in runs)
        second = Machine(tmp_path / "second", store.url, server)
        again = second.infer(*arguments)
        assert (again.returncode, again.stdout, len(server.log.asked())) == (0, done.stdout, 6), again.stderr
    compared = second.command("swe_infer.compare", *runs, "--html", "page.html")
    assert compared.returncode == 0, compared.stderr
    assert (second.directory / "page.html").is_file()
    assert "sweeps/temperatures/comparison.html" in keys_of(store.folder)
    alone = second.infer("decoding=sample", "decoding.temperature=0.2", f"output_dir={runs[0]}")
    assert (alone.returncode, f"is a part of {sweep}" in alone.stderr) == (2, True)


def answers(url: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until a server answers."""
    for _ in range(1200):
        assert process.poll() is None
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.mark.full
def test_runs_on_the_server_of_moto(tmp_path: Path) -> None:
    """An independent implementation of the protocol."""
    if importlib.util.find_spec("moto") is None:  # importing it warns
        pytest.skip("needs moto[s3], flask and flask-cors")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        with ApiServer() as server:
            first = Machine(tmp_path / "first", url, server)
            second = Machine(tmp_path / "second", url, server)
            answers(url, process)
            data = write_instances(tmp_path / "instances.jsonl", 5).read_bytes()
            for path, content in (("bucket", b""), ("bucket/instances.jsonl", data)):
                kind = {"Content-Type": "application/octet-stream"}
                request = urllib.request.Request(f"{url}/{path}", content, kind, method="PUT")
                urllib.request.urlopen(request, timeout=60).close()
            for machine, limit in ((first, 3), (second, 5), (first, 5)):
                done = machine.infer(f"dataset.limit={limit}", f"output_dir={RUN}")
                assert (done.returncode, done.stdout) == (0, f"{RUN}\n"), done.stderr
            assert len(server.log.asked()) == 5
        sweep = second.command("swe_infer.compare", "s3://bucket/runs")
        assert sweep.returncode == 0, sweep.stderr
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://missing/run", "s3://missing/run: The specified bucket does not exist"),
        ("s3://name:secret@bucket/run", "must contain no credentials"),
        ("ftp://host/run", "unknown scheme"),
        ("s3://bucket/../run", "names no bucket and path"),
        ("hf://datasets/me/run", "hf:// is read only"),
        ("gs://bucket/run", "install swe_infer[gcs]"),
    ],
)
def test_a_folder_that_cannot_be_written_costs_nothing(
    url: str, words: str, tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised, Mirror(url, "output_dir"):
        pass
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


def machine(monkeypatch: pytest.MonkeyPatch, place: Path, store: ObjectStore) -> None:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))


def test_a_former_owner_that_wakes_up_changes_nothing(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "a", store)
    with INTERRUPTS.finishing():  # a claim that is lost stops the process's requests
        _two_owners(tmp_path, store, monkeypatch)


def _two_owners(tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = Mirror("s3://bucket/x", interval_s=1000)
    sleeper.__enter__()
    (sleeper.directory / "records.jsonl").write_text('{"a": 1}\n')
    machine(monkeypatch, tmp_path / "b", store)
    with pytest.raises(StoreError, match="in use by process"):
        Mirror("s3://bucket/x").__enter__()
    for path in (store.folder / "bucket").iterdir():
        os.utime(path, (0, 0))  # the claim has expired
    with Mirror("s3://bucket/x", interval_s=1000) as owner:
        (owner.directory / "records.jsonl").write_text('{"b": 1}\n')
    with pytest.raises(UploadIncomplete, match="has taken it over"):
        sleeper.__exit__(None, None, None)
    assert (readable_path("s3://bucket/x") / "records.jsonl").read_text() == '{"b": 1}\n'
    machine(monkeypatch, tmp_path / "a", store)
    with Mirror("s3://bucket/x", interval_s=1000) as back:
        assert (back.directory / "records.jsonl").read_text() == '{"b": 1}\n{"a": 1}\n'


def test_answers_of_a_returning_machine_outlive_a_full_disk(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "a", store)
    write_run("s3://bucket/x", "first")
    records = working_path("s3://bucket/x") / "records.jsonl"
    own = "".join(f"{number:0100}\n" for number in range(1000))
    machine(monkeypatch, tmp_path / "b", store)
    write_run("s3://bucket/x", "second")
    records.write_text(own)  # what machine a had not uploaded when it was lost
    machine(monkeypatch, tmp_path / "a", store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            Mirror("s3://bucket/x").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert records.read_text() == own
    with Mirror("s3://bucket/x", interval_s=1000):
        assert records.read_text() == f"second\n{own}"


def write_run(url: str, line: str, name: str = "records.jsonl") -> None:
    with Mirror(url, interval_s=1000) as mirror:
        path = mirror.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{line}\n")


def read_run(url: str, name: str = "records.jsonl") -> str:
    return (readable_path(url) / name).read_text().strip()


def test_each_url_has_a_folder_of_its_own(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "a", store)  # the cache is in the state directory
    names = ("a b", "a#b", "a%b", "\u00e9", "\u00e8", "a-b", "l" * 150 + "1", "L" + "l" * 149 + "1")
    urls = [f"s3://bucket/x/{name}" for name in names]
    assert len({working_path(url) for url in urls}) == len(urls)
    assert all(len(working_path(url).name) < 200 for url in urls)
    for url in urls[:2]:
        write_run(url, url)
    assert [read_run(url) for url in urls[:2]] == urls[:2]
    with pytest.raises(ConfigError, match="is a folder; name a file"), written_file(urls[0], "--out"):
        pass
    write_run("s3://bucket/y", "1", "back\\slash\n/records.jsonl")
    assert read_run("s3://bucket/y", "back\\slash\n/records.jsonl") == "1"
    write_run("s3://bucket/live", "1")
    with Mirror("s3://bucket/live", interval_s=1000) as mirror:
        records = mirror.directory / "records.jsonl"
        with records.open("a") as file:
            file.write("2\n")
        assert read_run("s3://bucket/live") == "1"
        assert records.read_text() == "1\n2\n"


def test_runs_of_others_in_a_folder_stay(tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tmp_path / "a", store)
    write_run("s3://bucket/team/me/run", "1")
    for url in ("s3://bucket", "s3://bucket/team/me"):
        with pytest.raises(StoreError, match="contains the run or sweep s3://bucket/team/me/run"):
            Mirror(url).__enter__()
    store.prefix = "team/me/"  # other folders are denied
    write_run("s3://bucket/team/me/run", "2")
    assert read_run("s3://bucket/team/me/run") == "2"
    with pytest.raises(RemoteStoreError, match="access denied"):
        readable_path("s3://bucket/team")
    store.prefix = ""

    bucket = store.folder / "bucket"
    damaged = bucket / "team%2Fme%2Fbad%2F.swe_infer%2Fmanifest-00000001.json"
    damaged.write_text("{")
    assert [path.name for path in readable_path("s3://bucket/team").glob("*/*")] == ["run"]
    with pytest.raises(RemoteStoreError, match=r"bad/\.swe_infer/manifest-00000001\.json is invalid"):
        readable_path("s3://bucket/team/me/bad")
    damaged.unlink()
    (bucket / "team%2Fme%2Frun%2Fnotes.txt").write_text("mine")
    remove_mirrored("s3://bucket/team/me/run", shutil.rmtree, dry_run=False)
    assert keys_of(store.folder).keys() == {"team/me/run/notes.txt"}


@pytest.mark.full
def test_a_suspended_process_finds_out_before_its_next_upload(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "a", store)
    with INTERRUPTS.finishing():
        sleeper = Mirror("s3://bucket/x", interval_s=1000)
        sleeper.__enter__()
        (store.folder / "bucket" / "x%2F.swe_infer%2Fclaim-00000002.json").write_text("{}")
        deadline = time.monotonic() + 120
        while not INTERRUPTS.stopping:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(UploadIncomplete, match="has taken it over"):
            sleeper.__exit__(None, None, None)


def test_paths_that_cannot_be_urls(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="response_cache: must be a path of this machine, not s3://"):
        expanded("s3://bucket/x", "runner.response_cache")
    with pytest.raises(SystemExit):
        compare(["run", "--html", "s3://bucket/page.html"])
    assert "argument --html: s3://bucket/page.html: must be a path of this machine" in capsys.readouterr().err
    for value in ("nan", "1e300", "0", "x"):
        with pytest.raises(ConfigError, match=f"upload_interval_s={value}: must be positive seconds"):
            mirror_of_sweep(hydra_arguments(["-m", "output_dir=s3://bucket/x", f"upload_interval_s={value}"]))


def test_files_and_plain_folders(tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tmp_path / "a", store)
    with written_file("s3://bucket/data/one.jsonl", "--out") as path:
        path.write_text("1")
    with written_file("s3://bucket/data/two.jsonl", "--out") as path:
        path.write_text("2")
    with written_file("s3://bucket/data/one.jsonl", "--out") as path:
        assert path.read_text() == "1"
        path.write_text("one")
    folder = dataset_path("s3://bucket/data", "dataset.path")
    assert {path.name: path.read_text() for path in folder.glob("*.jsonl")} == {"one.jsonl": "one", "two.jsonl": "2"}
    before = len([request for request in store.requests if request[0] == "GET" and request[1].endswith("jsonl")])
    assert dataset_path("s3://bucket/data", "dataset.path") == folder
    assert before == len([one for one in store.requests if one[0] == "GET" and one[1].endswith("jsonl")])
    (store.folder / "bucket" / "data%2Ftwo.jsonl").unlink()
    pattern = dataset_path("s3://bucket/data/*.jsonl", "dataset.path")
    assert [path.read_text() for path in pattern.parent.glob(pattern.name)] == ["one"]
    assert [path.name for path in dataset_path("s3://bucket/data", "dataset.path").glob("*.jsonl")] == ["one.jsonl"]
    with pytest.raises(ConfigError, match=r"dataset\.path=s3://bucket/none: file not found"):
        dataset_path("s3://bucket/none", "dataset.path")
    with pytest.raises(ConfigError, match=r"dataset\.path=s3://bucket/x+: its last part has more than 255 bytes"):
        dataset_path(f"s3://bucket/{'x' * 256}", "dataset.path")
    assert plain_path(f"file://{tmp_path}") == tmp_path

    # A run directory that was copied into the store is read as it is, and goes on from there.
    bucket = store.folder / "bucket"
    (bucket / "copied%2Frecords.jsonl").write_text('{"a": 1}\n')
    (bucket / "copied%2Fsummary.json").write_text("{}")
    (bucket / "copied%2Fremoved.json").write_text("{}")
    assert (readable_path("s3://bucket/copied") / "removed.json").exists()
    (bucket / "copied%2Fremoved.json").unlink()
    assert not (readable_path("s3://bucket/copied") / "removed.json").exists()
    assert (readable_path("s3://bucket/copied") / "records.jsonl").read_text() == '{"a": 1}\n'
    with (
        Mirror("s3://bucket/copied", interval_s=1000) as mirror,
        (mirror.directory / "records.jsonl").open("a") as file,
    ):
        file.write('{"b": 1}\n{"torn')
    assert (readable_path("s3://bucket/copied") / "records.jsonl").read_text() == '{"a": 1}\n{"b": 1}\n'


@pytest.mark.parametrize(
    "change",
    [
        {"../escaped": {"size": 1, "modified_ns": 1, "tail": "", "content": "YQ=="}},
        {"records.jsonl": {"size": 1, "modified_ns": 1, "tail": "", "parts": [["../../secret", 1]]}},
        {"records.jsonl": []},
        *(
            pytest.param(change, marks=pytest.mark.full)
            for change in (
                {"/tmp/escaped": {"size": 1, "modified_ns": 1, "tail": "", "content": "YQ=="}},
                {"a/../../b": {"size": 1, "modified_ns": 1, "tail": "", "content": "YQ=="}},
                {".lock.owner": {"size": 1, "modified_ns": 1, "tail": "", "content": "YQ=="}},
                {"records.jsonl": {"size": 9, "modified_ns": 1, "tail": "", "content": "YQ=="}},
                7,
            )
        ),
    ],
)
def test_a_manifest_of_a_stranger_names_no_other_file(
    change: object, tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "a", store)
    raw = {"format": 1, "writer": "x", "released": True, "running": [], "published": {}, "files": change}
    key = "x%2F.swe_infer%2Fmanifest-00000001.json"
    (store.folder / "bucket" / key).write_text(json.dumps(raw))
    os.utime(store.folder / "bucket" / key, (0, 0))
    for read in (lambda: readable_path("s3://bucket/x"), lambda: Mirror("s3://bucket/x").__enter__()):
        with pytest.raises(RemoteStoreError, match="is invalid"):
            read()
    assert not list(tmp_path.rglob("*escaped*"))
    assert keys_of(store.folder).keys() == {"x/.swe_infer/manifest-00000001.json"}


def test_a_file_that_grows_is_stored_and_fetched_in_few_pieces(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "a", store)
    path, entry = tmp_path / "records.jsonl", None
    pieces: dict[str, bytes] = {}

    def put(content: bytes) -> str:
        pieces[str(len(pieces))] = content
        return str(len(pieces) - 1)

    for index in range(100):
        with path.open("ab") as file:
            file.write(f"{index:06}".encode() * 1000 + b"\n")
        entry = read_entry(path, entry, put)
    assert isinstance(entry, FileEntry)
    assert b"".join(pieces[part.name] for part in entry.parts) == path.read_bytes()
    assert len(entry.parts) < 12
    assert sum(map(len, pieces.values())) < 10 * path.stat().st_size

    with Mirror("s3://bucket/x", interval_s=1000) as mirror:
        (mirror.directory / "records.jsonl").write_bytes(path.read_bytes())
    assert (readable_path("s3://bucket/x") / "records.jsonl").read_bytes() == path.read_bytes()
    with Mirror("s3://bucket/x", interval_s=1000) as mirror, (mirror.directory / "records.jsonl").open("ab") as file:
        file.write(b"last\n")
    assert (readable_path("s3://bucket/x") / "records.jsonl").read_bytes() == path.read_bytes() + b"last\n"
