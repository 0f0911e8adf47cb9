"""Running an instance's test: what counts as resolved, and the limits of the process."""

from __future__ import annotations

import os
import subprocess

import pytest

from swe_infer.sample.testing import run_test

TEST = "from shop.cart import total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n"
RIGHT = {"shop/cart.py": "def total(items):\n    return sum(items)\n"}


def test_a_right_file_is_resolved() -> None:
    result = run_test(RIGHT, TEST)
    assert result.resolved
    assert result.reason is None
    assert result.seconds > 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return max(items)", "AssertionError"),
        ("return items / 0", "TypeError"),
        ("return sum(items", "SyntaxError"),
        ("raise SystemExit(0)", "status 0 before the tests did"),
        ("import os; os._exit(0)", "status 0 before the tests did"),
        ("while True: pass", "did not end within 1 s"),
        ("return [0] * 10**10", "MemoryError"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "may not use socket"),
        ("import subprocess; subprocess.run(['true'])", "may not use subprocess"),
        ("import torch", "ModuleNotFoundError"),
        ("open('big', 'w').write('x' * 2**22)", "File too large"),
        ("open('/var/tmp/planted', 'w')", "may not write outside"),
        ("import os; os.open('../planted', os.O_CREAT | os.O_WRONLY)", "may not write outside"),
        ("import os; os.symlink('/', 'root'); open('root/planted', 'a')", "may not change what is outside"),
        ("import shutil; shutil.rmtree('..')", "may not change what is outside"),
        ("import os; os.rename('shop/cart.py', '../planted')", "may not change what is outside"),
        ("[open('shop/cart.py') for _ in range(200)][0].x", "Too many open files"),
    ],
)
def test_a_wrong_file_is_not_resolved_and_the_reason_is_said(body: str, reason: str) -> None:
    result = run_test(
        {"shop/cart.py": f"def total(items):\n    {body}\n"}, TEST, timeout_s=1.0 if "while" in body else 30.0
    )
    assert not result.resolved
    assert reason in str(result.reason)
    assert "\n" not in str(result.reason)


def test_files_inside_the_directory_may_be_written_and_removed() -> None:
    source = "import os, pathlib\nos.mkdir('d')\npathlib.Path('d/f').write_text('x')\n"
    source += "os.rename('d/f', 'g')\nos.remove('g')\n"
    assert run_test({}, source + "def test_none():\n    pass\n").reason is None


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "true"], check=False, capture_output=True).returncode != 0,
    reason="the kernel lets this user make no network namespace",
)
def test_there_is_no_network_device_but_an_idle_loopback() -> None:
    test = "def test_devices():\n    assert [l.split(':')[0].strip() for l in open('/proc/net/dev')][2:] == ['lo']\n"
    assert run_test({}, test).reason is None


def test_output_of_the_patched_file_is_no_pass() -> None:
    source = "print('\\n' + '0' * 32)\nraise SystemExit(0)\n"
    assert not run_test({"shop/cart.py": source}, TEST).resolved


def test_a_test_without_test_functions_is_not_resolved() -> None:
    assert run_test(RIGHT, "x = 1\n").reason == "the instance's test holds no test function"


@pytest.mark.parametrize("path", ["/etc/x.py", "../x.py", "a/../../x.py", ""])
def test_a_path_that_leads_out_of_the_repository_is_refused(path: str) -> None:
    result = run_test({path: ""}, TEST)
    assert not result.resolved
    assert "leads out" in str(result.reason)


def test_the_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    test = "import os\n\n\ndef test_environment():\n    assert 'OPENAI_API_KEY' not in os.environ\n"
    assert run_test({}, test).resolved
    assert os.environ["OPENAI_API_KEY"] == "secret"


def test_the_time_limit_ends_the_process() -> None:
    result = run_test({}, "def test_sleep():\n    import time\n    time.sleep(3600)\n", timeout_s=0.5)
    assert result.reason == "the test did not end within 0.5 s"


def test_every_test_function_must_pass() -> None:
    test = "def test_one():\n    pass\n\n\ndef test_two():\n    raise ValueError('second')\n"
    assert run_test({}, test).reason == "ValueError: second"
