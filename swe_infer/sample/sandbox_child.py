"""The child process of the sandbox, which runs patched code. Uses only the standard library: it runs as a file,
without the package.

It reads one JSON object from standard input and writes one JSON line for each result to standard output. Output of
the patched code goes to standard error. The parent trusts nothing that comes from here.
"""

import contextlib
import importlib
import json
import os
import resource
import struct
import sys
from typing import Any

SPACE = "/test"

CALLS = {
    "x86_64": (0xC000003E, 435, 56, 57, 58, 248, 249, 250),
    "aarch64": (0xC00000B7, 435, 220, 217, 218, 219),
}
"""Architecture number and forbidden system calls of each supported processor: clone3; then clone, fork and vfork; and
add_key, request_key and keyctl, since namespaces do not isolate the user's keys."""


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    if job["contained"]:
        _mount_space(job["max_mib"], job["max_files"])
    if job["contained"] or (sys.platform == "linux" and os.uname().machine in CALLS):
        _forbid_processes()
    _limit(job["seconds"], job["max_memory_mib"], job["max_mib"])
    for path, content in job["files"].items():
        os.makedirs(os.path.dirname(os.path.join(os.getcwd(), path)), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode("utf-8", "surrogateescape"))
    sys.path.insert(0, os.getcwd())
    for step in job["steps"]:
        try:
            value = _plain(_call(step) if "function" in step else _run(step["source"]))
            line = json.dumps({"value": value})
        except BaseException as error:  # noqa: BLE001 - the patched code may raise anything
            line = json.dumps({"error": _shown(error)})
        out.write(line + "\n")
    out.flush()
    os._exit(0)  # no exit handler of the patched code


def _mount_space(megabytes: int, files: int) -> None:
    """Mount a file system of limited size and number of files, change into it, and drop all capabilities."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    nosuid_nodev = 2 | 4
    options = f"size={megabytes}m,nr_inodes={files},mode=0755".encode()
    if libc.mount(b"tmpfs", SPACE.encode(), b"tmpfs", nosuid_nodev, options):
        raise OSError(ctypes.get_errno(), "mount: " + os.strerror(ctypes.get_errno()))
    os.chdir(SPACE)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")  # no process in this namespace can become root of another
    # If the user is root, this process is too, and could change kernel settings through /proc.
    remount, bind, read_only, noexec = 32, 4096, 1, 8
    if libc.mount(None, b"/proc", None, remount | bind | read_only | nosuid_nodev | noexec, None):
        raise OSError(ctypes.get_errno(), "remount of /proc: " + os.strerror(ctypes.get_errno()))
    version_3 = 0x20080522
    header, nothing = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset: " + os.strerror(ctypes.get_errno()))


def _forbid_processes() -> None:
    """Make the kernel refuse new processes and threads, and access to the user's keys.

    Counting processes from outside would be too slow, and the kernel's process limit does not apply to root.

    Uses a seccomp filter in classic BPF, see https://docs.kernel.org/userspace-api/seccomp_filter.html.
    """
    import ctypes

    architecture, clone3, *others = CALLS[os.uname().machine]
    load, jump_if_equal, jump_if_at_least, return_ = 0x20, 0x15, 0x35, 0x06
    allow, kill, not_permitted, not_implemented = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    number_at, architecture_at = 0, 4
    other_interface = 0x40000000
    program = [
        (load, 0, 0, architecture_at),
        (jump_if_equal, 1, 0, architecture),
        (return_, 0, 0, kill),
        (load, 0, 0, number_at),
        (jump_if_at_least, 0, 1, other_interface),  # x32: the same calls with other numbers
        (return_, 0, 0, not_permitted),
        (jump_if_equal, 0, 1, clone3),  # "not implemented" makes the C library fall back to clone
        (return_, 0, 0, not_implemented),
        *(step for number in others for step in ((jump_if_equal, 0, 1, number), (return_, 0, 0, not_permitted))),
        (return_, 0, 0, allow),
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    filter_ = Program(len(program), ctypes.addressof(buffer))
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, by_filter, ctypes.byref(filter_), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp: " + os.strerror(ctypes.get_errno()))


def _limit(seconds: int, memory_mib: int, file_mib: int) -> None:
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # SIGXCPU first, since it names the reason
        (resource.RLIMIT_AS, memory_mib * 2**20, memory_mib * 2**20),
        (resource.RLIMIT_FSIZE, file_mib * 2**20, file_mib * 2**20),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # the current limit is lower
            resource.setrlimit(kind, (soft, hard))


def _call(step: dict[str, Any]) -> object:
    function: Any = importlib.import_module(step["module"])
    for name in step["function"]:
        function = getattr(function, name)
    arguments = [_object(value) for value in step["arguments"]]
    return function(*arguments, **{name: _object(value) for name, value in step["keywords"].items()})


def _run(source: str) -> object:
    names = {"__name__": "instance_test"}
    exec(compile(source, "<instance's test>", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test") and callable(value)]
    if not tests:
        raise ValueError("the instance's test has no test function")
    for test in tests:
        test()
    return None


def _plain(value: Any) -> list[Any]:
    """Encode plain data as JSON with its types. Only exact types are accepted, so that no method of a patched class
    is called."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return ["is", value]
    if kind is int:
        return ["int", hex(value)]
    if kind is float:
        return ["float", value.hex()]
    if kind is bytes:
        return ["bytes", value.hex()]
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, [_plain(item) for item in value]]
    if kind is dict:
        return ["dict", [[_plain(key), _plain(item)] for key, item in value.items()]]
    raise TypeError(f"the result contains an object of the class {kind.__name__}; only plain data can be compared")


def _object(plain: list[Any]) -> object:
    kind, value = plain
    makers = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    if kind in makers:
        return makers[kind](_object(item) for item in value)
    if kind == "dict":
        return {_object(key): _object(item) for key, item in value}
    if kind == "int":
        return int(value, 16)
    if kind == "float":
        return float.fromhex(value)
    return bytes.fromhex(value) if kind == "bytes" else value


def _shown(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a class of the patched code
        text = ""
    return f"{type(error).__name__}: {text}"[:500]


if __name__ == "__main__":
    main()
