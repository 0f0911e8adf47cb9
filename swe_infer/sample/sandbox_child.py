"""The side of the sandbox that runs patched code. Standard library alone: it is run as a file, without the package.

It reads one JSON object from standard input and writes one JSON line for each result to standard output. What the
patched code prints goes to standard error. Nothing that comes from here is trusted: the other side decides.
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
"""Of each processor that the filter is written for: its number, that of clone3, and those of the other calls that are
refused: clone, fork and vfork; add_key, request_key and keyctl, as no namespace parts the user's keys."""


def main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    if order["contained"]:
        _mount_space(order["max_mib"], order["max_files"])
    if order["contained"] or (sys.platform == "linux" and os.uname().machine in CALLS):
        _forbid_processes()
    _limit(order["seconds"], order["max_memory_mib"], order["max_mib"])
    for path, content in order["files"].items():
        os.makedirs(os.path.dirname(os.path.join(os.getcwd(), path)), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode("utf-8"))
    sys.path.insert(0, os.getcwd())
    for step in order["steps"]:
        try:
            value = _plain(_call(step) if "function" in step else _run(step["source"]))
            line = json.dumps({"value": value})
        except BaseException as error:  # noqa: BLE001 - the patched code may raise anything
            line = json.dumps({"error": _shown(error)})
        out.write(line + "\n")
    out.flush()
    os._exit(0)  # no exit handler of the patched code


def _mount_space(megabytes: int, files: int) -> None:
    """Mount a file system of bounded size and number of files, change into it, and give up every capability."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    nosuid_nodev = 2 | 4
    options = f"size={megabytes}m,nr_inodes={files},mode=0755".encode()
    if libc.mount(b"tmpfs", SPACE.encode(), b"tmpfs", nosuid_nodev, options):
        raise OSError(ctypes.get_errno(), "mount: " + os.strerror(ctypes.get_errno()))
    os.chdir(SPACE)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")  # of this namespace: nobody in it can become root of another
    # Where the user is root, so is this process to /proc, which lets root change the kernel's settings.
    remount, bind, read_only, noexec = 32, 4096, 1, 8
    if libc.mount(None, b"/proc", None, remount | bind | read_only | nosuid_nodev | noexec, None):
        raise OSError(ctypes.get_errno(), "remount of /proc: " + os.strerror(ctypes.get_errno()))
    version_3 = 0x20080522
    header, nothing = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset: " + os.strerror(ctypes.get_errno()))


def _forbid_processes() -> None:
    """Have the kernel refuse every further process and thread, and the user's keys.

    A count of processes kept from outside comes too late: they multiply faster than it is taken, and the kernel's own
    limit does not hold for root.

    A seccomp filter in classic BPF, see https://docs.kernel.org/userspace-api/seccomp_filter.html.
    """
    import ctypes

    architecture, clone3, *others = CALLS[os.uname().machine]
    load, jump_if_equal, jump_if_at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, kill, not_permitted, not_implemented = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    number_at, architecture_at = 0, 4
    other_interface = 0x40000000
    program = [
        (load, 0, 0, architecture_at),
        (jump_if_equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, number_at),
        (jump_if_at_least, 0, 1, other_interface),  # x32: the same calls under other numbers
        (give, 0, 0, not_permitted),
        (jump_if_equal, 0, 1, clone3),  # not permitted would be final: the C library then falls back to clone
        (give, 0, 0, not_implemented),
        *(step for number in others for step in ((jump_if_equal, 0, 1, number), (give, 0, 0, not_permitted))),
        (give, 0, 0, allow),
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
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # SIGXCPU first: SIGKILL would not say why
        (resource.RLIMIT_AS, memory_mib * 2**20, memory_mib * 2**20),
        (resource.RLIMIT_FSIZE, file_mib * 2**20, file_mib * 2**20),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # a lower limit is in force
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
        raise ValueError("the instance's test holds no test function")
    for test in tests:
        test()
    return None


def _plain(value: Any) -> list[Any]:
    """Plain data as JSON that keeps its types; exact types alone, so that no method of a patched class is called."""
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
    raise TypeError(f"the result holds an object of the class {kind.__name__}; plain data can be compared")


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
