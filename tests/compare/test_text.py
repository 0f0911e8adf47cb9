"""Cleaning of untrusted strings, and formatting of figures."""

from __future__ import annotations

import os
import subprocess
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.text import clean, dollars, duration, p_value, quoted, shown


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain é 😀\n\ttext", "plain é 😀\n\ttext"),
        ("a\x1b[31mred\x1b[0mb", "aredb"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b", "alinkb"),
        ("a\x1b]52;c;aGk=", "a"),
        ("a\x1bPq#0\x1b\\b", "ab"),
        ("a\x1b(0b\x1bcc", "abc"),
        ("a\x9b2Jb\x08\x7f\r", "a2Jb"),
        ("a\u202egnp.exe\u2069", "agnp.exe"),
        ("half \ud83d pair", "half  pair"),
        ("a path \udce9/\udc9b[2J", "a path \\xe9/\\x9b[2J"),
        ("\x1b", ""),
    ],
)
def test_terminal_control_sequences_are_removed(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(st.text(alphabet=st.characters()))
def test_control_characters_are_removed(text: str) -> None:
    left = clean(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in left)
    left.encode()


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_quoted_word_is_one_word_of_the_same_bytes_for_a_shell(shell: str) -> None:
    words = ["plain", "two words", "it's", "\\n", "é", "\udce9"]
    words += ['-\udce9\udcff1 it\'s !! $x `y` "z" 5%d \\x', "--\udce9"]
    words += ["\x1b[2J", "tab\t\x07", "\u202egnp.exe", "\x9b"]
    command = f"printf '%s\\n' {clean(quoted(*words))}"
    printed = subprocess.run([shell, "-c", command], capture_output=True, check=True)
    assert printed.stdout.split(b"\n") == [*map(os.fsencode, words), b""]
    assert quoted("plain", "two words", "\udce9") == "plain 'two words' \"$(printf '\\351')\""


def test_values_of_a_configuration_take_one_line() -> None:
    assert shown(None) == "-"
    assert shown("") == '""'
    assert shown("two\nlines\x1b[2J") == "two lines"
    assert shown(["a", 1, None]) == '["a", 1, null]'
    assert shown(False) == "false"


def test_dollars_keep_the_digits_that_matter() -> None:
    amounts = [None, Decimal(0), Decimal("0.000012"), Decimal("0.25"), 1234.5, -0.03]
    assert [dollars(amount) for amount in amounts] == [
        "unknown", "$0", "$0.000012", "$0.2500", "$1,234.50", "-$0.0300",
    ]  # fmt: skip


def test_durations_and_p_values() -> None:
    assert [duration(s) for s in (None, 0.04, 59.9, 61, 3600, 7384)] == [
        "-", "0.0 s", "59.9 s", "1 min 01 s", "1 h 00 min", "2 h 03 min",
    ]  # fmt: skip
    assert (p_value(0.00001), p_value(0.04)) == ("< 0.0001", "0.0400")
