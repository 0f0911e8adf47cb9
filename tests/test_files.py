"""Files that are replaced, whatever their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swe_infer.files import (
    LONGEST_NAME,
    create_beside,
    hidden_beside,
    read_regular,
    remove_leftovers,
    write_atomically,
)


@pytest.mark.parametrize("name", ["x" * 245 + ".jsonl", "x" * 255, "ü" * 127 + "x", "run"])
def test_a_file_with_the_longest_name_is_replaced(name: str, tmp_path: Path) -> None:
    for content in ("first", "second"):
        write_atomically(tmp_path / name, content)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]
    descriptor, new = create_beside(tmp_path / name)
    os.close(descriptor)
    assert new.name.startswith(f".{name[:50]}")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_long_names_that_begin_alike_have_different_hidden_files(tmp_path: Path) -> None:
    one, other = (hidden_beside(tmp_path / ("x" * 250 + last), ".parts") for last in ("a", "b"))
    assert one != other
    assert {len(os.fsencode(path.name)) for path in (one, other)} == {LONGEST_NAME}


def test_the_most_bytes_of_a_file_cost_no_memory(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"ab")
    assert read_regular(tmp_path / "small", 1 << 60) == read_regular(tmp_path / "small", 2) == b"ab"
    with pytest.raises(OSError, match="it is longer than"):
        read_regular(tmp_path / "small", 1)
