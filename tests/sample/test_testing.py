"""Running an instance's test: what counts as resolved, who decides it, and what patched code cannot do."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from swe_infer.sample.testing import run_test

TEST = "from shop.cart import total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n"
RIGHT = {"shop/cart.py": "def total(items):\n    return sum(items)\n"}

pytestmark = pytest.mark.slow  # each starts a process
contained = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def own_temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; the machine's has those of tests in other workers."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def body(code: str) -> dict[str, str]:
    """Files whose function runs ``code``."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    return {"shop/cart.py": f"def total(items):\n{lines}"}


@contained
def test_a_right_file_is_resolved_by_a_verdict_from_outside() -> None:
    result = run_test(RIGHT, TEST)
    assert (result.resolved, result.reason, result.judged) == (True, None, "outside")


@contained
def test_bytes_that_are_not_utf_8_reach_the_test_as_they_are() -> None:
    read = "def read():\n    return open('data.txt', 'rb').read()\n"
    test = "from read import read\n\n\ndef test_read():\n    assert read() == b'caf\\xe9\\r\\n'\n"
    result = run_test({"read.py": read, "data.txt": "caf\udce9\r\n"}, test)
    assert result.resolved, result


@contained
def test_a_wrong_file_is_not_resolved_and_the_reason_is_said() -> None:
    cases = {
        "return max(items)": "AssertionError: assert total([1, 2]) == 3",
        "return items / 0": "TypeError",
        "return sum(items": "SyntaxError",
        "raise SystemExit(0)": "SystemExit",
        "import os; os._exit(0)": "status 0 before the tests did",
        "while True: pass": "did not end within 1 s",
        "return [0] * 10**10": "MemoryError",
        "import torch": "ModuleNotFoundError",
        "[open('shop/cart.py') for _ in range(200)][0].x": "Too many open files",
        "return open('big', 'wb').write(b'x' * 2**27)": "No space left",
        "[open(str(n), 'w').close() for n in range(10**5)]": "No space left",
        "while True: print('x' * 1000)": "wrote more than",
        "import os\nwhile True: os.fork()": "Operation not permitted",
        "import subprocess\nsubprocess.run(['true'])": "Operation not permitted",
        "import threading\nwhile True: threading.Thread(target=print).start()": "can't start new thread",
    }
    wrong = {}
    for code, reason in cases.items():
        result = run_test(body(code), TEST, timeout_s=1.0 if "pass" in code else 30.0)
        if result.resolved or reason not in str(result.reason) or "\n" in str(result.reason):
            wrong[code] = result
    assert not wrong


@contained
def test_a_verdict_cannot_be_forged() -> None:
    always_equal = (
        "class Equal(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def total(items): return Equal()\n"
    )
    answered = 'import sys, os\nfor fd in range(3, 16):\n  try: os.write(fd, b\'{"value": ["is", null]}\\n\')\n' + (
        "  except OSError: pass\nos._exit(0)"
    )
    reads_the_test = "import sys, gc\nreturn [o for o in gc.get_objects() if isinstance(o, dict) and 'expected' in o]"
    patched = "import builtins\nbuiltins.type = lambda *a: int\nreturn object()"
    for files in ({"shop/cart.py": always_equal}, body(answered), body(reads_the_test), body(patched)):
        assert not run_test(files, TEST).resolved, files


@contained
def test_every_kind_of_comparison_is_decided_outside() -> None:
    source = "class Kind:\n    @staticmethod\n    def of(x, *, deep=None): return x if deep is None else deep\n"
    test = """
import shop.cart as cart
from shop.cart import Kind as K

def test_one():
    '''Not an assertion.'''
"""
    assert run_test({"shop/cart.py": source}, test).judged == "beside"  # a statement that is no assertion
    asserted = (
        "K.of((1, 2.5)) == (1, 2.5)", "K.of({'a': {1, 2}}) == {'a': {2, 1}}", "K.of(b'x') != b'y'", "K.of(3) > 2",
        "K.of(None) is None", "K.of('a') in ['a', 'b']", "cart.Kind.of(1, deep=[-1]) == [-1]", "not K.of(0)",
        "K.of(1)",
    )  # fmt: skip
    whole = test.replace("    '''Not an assertion.'''\n", "".join(f"    assert {text}\n" for text in asserted))
    result = run_test({"shop/cart.py": source}, whole)
    assert (result.resolved, result.judged) == (True, "outside"), result
    for text in ("K.of(1) == 2", "not K.of(1)", "K.of(0)", "K.of((1,)) == [1]", "K.of(3) in [1]"):
        wrong = whole.replace("    assert K.of(1)\n", f"    assert {text}\n")
        assert not run_test({"shop/cart.py": source}, wrong).resolved, text


@contained
def test_a_test_that_is_no_comparison_runs_whole_and_says_so() -> None:
    test = "from shop.cart import total\n\n\ndef test_it():\n    items = [1]\n    assert total(items) == 1\n"
    result = run_test(RIGHT, test)
    assert (result.resolved, result.judged) == (True, "beside")
    failing = "def test_one():\n    pass\n\n\ndef test_two():\n    raise ValueError('second')\n"
    assert run_test({}, failing).reason == "ValueError: second"
    assert "has no test function" in str(run_test(RIGHT, "x = 1\n").reason)


@contained
def test_patched_code_sees_neither_secrets_nor_files_nor_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "planted-secret-0123456789")
    (tmp_path / "other_run").write_text("planted-secret-0123456789")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        looks = f"""
import glob, os, socket
found = []
for path in [*glob.glob('/proc/*/environ'), {str(tmp_path / "other_run")!r}, os.path.expanduser('~/.netrc'),
             {str(Path.home() / ".netrc")!r}]:
    try:
        found.append(open(path, 'rb').read())
    except OSError:
        pass
try:
    socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)
    found.append('connected')
except OSError:
    pass
found.append(sorted(os.environ))
found.append([p for p in {[str(Path.home()), str(Path.cwd()), "/work", "/var", "/sys", "/tmp"]!r} if os.path.isdir(p)
              and os.listdir(p) and not {os.path.realpath(sys.base_prefix)!r}.startswith(p)])
raise ValueError(repr(found))
"""
        reason = str(run_test(body(looks), TEST).reason)
    assert reason.startswith("ValueError")
    assert "planted" not in reason
    assert "connected" not in reason
    assert reason.endswith("'PWD', 'PYTHONHASHSEED', 'TMPDIR'], []]"), reason


@contained
def test_patched_code_writes_nowhere_else(tmp_path: Path, own_temporary: Path) -> None:
    writes = f"""
import os, sqlite3
tried = ['/planted', '/dev/shm/planted', '/tmp/planted', '/var/tmp/planted', '../planted',
         {str(tmp_path / "planted")!r}]
done = []
for path in tried:
    for make in (lambda: open(path, 'w'), lambda: sqlite3.connect(path).execute('create table t (x)'),
                 lambda: os.mkdir(path), lambda: os.open('planted', os.O_CREAT | os.O_WRONLY, dir_fd=os.open(
                     os.path.dirname(path) or '.', os.O_RDONLY))):
        try:
            make()
            done.append(path)
        except Exception:
            pass
os.chdir('/')
try:
    open('planted', 'w')
    done.append('/')
except OSError:
    pass
os.chdir('/test')
for _ in range(3000):
    os.mkdir('d')
    os.chdir('d')
raise ValueError(repr(done))
"""
    assert run_test(body(writes), TEST).reason == "ValueError: []"
    assert list(tmp_path.iterdir()) == []
    assert list(own_temporary.iterdir()) == []


@contained
def test_root_in_the_sandbox_is_not_root_to_the_kernel() -> None:
    """Opened for writing alone, never written: where the user is root these would change the machine."""
    code = """
import ctypes, os
opened = []
for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/vm/drop_caches',
             '/proc/self/oom_adj'):
    try:
        os.close(os.open(path, os.O_WRONLY))
        opened.append(path)
    except OSError:
        pass
session_keyring, describe = -3, 6
number = {'x86_64': 250, 'aarch64': 219}[os.uname().machine]
return [opened, ctypes.CDLL(None).syscall(number, describe, session_keyring, None, 0)]
"""
    test = "from shop.cart import total\n\n\ndef test_total():\n    assert total([]) == [[], -1]\n"
    result = run_test(body(code), test)
    assert result.resolved, result


@contained
def test_no_further_namespace_gives_back_what_was_given_up() -> None:
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "return [libc.unshare(0x10000000), libc.mount(b'tmpfs', b'/test', b'tmpfs', 0, None)]"
    )
    test = "from shop.cart import total\n\n\ndef test_total():\n    assert total([]) == [-1, -1]\n"
    assert run_test(body(code), test).resolved


@contained
@pytest.mark.parametrize("path", ["/etc/x.py", "../x.py", "a/../../x.py", ""])
def test_a_path_that_leads_out_of_the_repository_is_refused(path: str) -> None:
    result = run_test({path: ""}, TEST)
    assert not result.resolved
    assert "leads out" in str(result.reason)


def test_without_the_sandbox_the_limits_of_the_process_hold_and_nothing_is_left(own_temporary: Path) -> None:
    assert run_test(RIGHT, TEST, contained=False).resolved
    assert "MemoryError" in str(run_test(body("return [0] * 10**10"), TEST, contained=False).reason)
    deep = "import os\nfor _ in range(1200):\n    os.mkdir('d')\n    os.chdir('d')\nreturn 3"
    assert run_test(body(deep), TEST, contained=False).resolved
    assert list(own_temporary.iterdir()) == []


TRIES = """
import os, sqlite3
for path in ('/etc/passwd', '/proc/1/environ', HOME + '/secret', ROOT + '/README.md'):
    try:
        open(path).read()
    except OSError:
        pass
for folder in (HOME, ROOT, '/tmp', '/var/tmp', '/etc', '../..'):
    try:
        open(folder + '/planted', 'w').close()
    except OSError:
        pass
os.chdir('/')
try:
    sqlite3.connect('planted.db').execute('create table t (x)')
except sqlite3.Error:
    pass
"""


@pytest.mark.full
@contained
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_call_of_the_kernel_writes_or_reads_what_lies_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("planted secret")
    names = {"HOME": repr(str(tmp_path)), "ROOT": repr(str(Path(__file__).resolve().parents[2]))}
    code = TRIES
    for name, value in names.items():
        code = code.replace(name, value)
    script = tmp_path / "script.py"
    script.write_text(
        "from swe_infer.sample.testing import run_test\n"
        "from tests.sample.test_testing import TEST, body\n"
        f"print(run_test(body({code!r}), TEST))\n"
    )
    trace = tmp_path / "trace"
    done = subprocess.run(
        ["strace", "-f", "-o", trace, "-e", "trace=%file,%network", sys.executable, "-B", script],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert "TestResult(resolved=False" in done.stdout, done.stderr
    calls = [line for line in trace.read_text().splitlines() if " = -1 " not in line]
    changes = re.compile(
        r"^\d+ +(open\w*\(.*O_(WRONLY|RDWR|CREAT)|creat|(un|sym)?link|rename|mkdir|ch(mod|own)|truncate)"
    )
    of_the_sandbox = re.compile(
        r'"(/?newroot|/?oldroot|/test|shop/|uid_map|gid_map|setgroups|/proc/sys/user|/proc/self|/dev/null)'
    )
    assert [line for line in calls if changes.search(line) and not of_the_sandbox.search(line)] == []
    assert [line for line in calls if "planted" in line or "/secret" in line] == []
    assert [line for line in calls if "connect(" in line and "AF_INET" in line] == []
