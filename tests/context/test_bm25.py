"""BM25: ranks, cached term counts, and which files the contexts choose from a whole repository."""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from swe_infer.context.all import AllContext
from swe_infer.context.bm25 import Bm25Context
from swe_infer.context.oracle_and_bm25 import OracleAndBm25Context
from swe_infer.context.term_cache import TermCache
from swe_infer.context.terms import TermCounts, count_terms
from swe_infer.errors import ConfigError, DataError
from swe_infer.prompts.frozen import BUDGETS, figures_of
from swe_infer.repositories import Repositories
from tests.support import commands
from tests.support.commits import MemoryCommit
from tests.support.git_server import make_repository

STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they ",
    "this to was will with",
)
ISSUE = "The parser fails on the Größe of a token.\nparse_token(Token) raises: token is None, token again"
ROW = {"instance_id": "i", "problem_statement": ISSUE}
FILES = {
    "pkg/parser.py": b"def parse_token(token):\n    return token\n",
    "pkg/token.py": b"class Token:\n    'A token of the parser'\n",
    "pkg/view.py": b"# the view and the menu\n" * 9,
    "pkg/same_a.py": b"token = None\n",
    "pkg/same_b.py": b"token = None\n",
    "pkg/data.py": b"token \0\n",
    "pkg/latin.py": "Größe = 1  # \xe9\n".encode() + b"\xff\n",
    "tests/test_parser.py": b"token parser parse_token " * 5,
    "web/token.js": b"let token = parser\n",
    "docs/token.md": b"token token parser\n",
    "empty.py": b"",
}


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "swe_infer"


def words(text: str) -> list[str]:
    return [word for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in " ".join(STOP_WORDS).split()]


def by_formula(documents: Mapping[str, str], query: str, k1: float, b: float) -> list[tuple[str, float]]:
    """Lucene's BM25, written as in the paper, over all terms."""
    counts = {path: Counter(words(text)) for path, text in documents.items()}
    mean = sum(count.total() for count in counts.values()) / len(counts)
    scores: dict[str, float] = {}
    for path, count in counts.items():
        damping = k1 * (1 - b + b * count.total() / mean)
        for word in words(query):
            containing = sum(word in other for other in counts.values())
            inverse = math.log(1 + (len(counts) - containing + 0.5) / (containing + 0.5))
            scores[path] = scores.get(path, 0.0) + inverse * count[word] / (count[word] + damping)
    return sorted(
        ((path, score) for path, score in scores.items() if score > 0), key=lambda pair: (-pair[1], pair[0])
    )


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75)])
def test_ranks_are_those_of_lucene(k1: float, b: float) -> None:
    """On this repository's own source code, and on small files with equal scores and bytes that are not UTF-8."""
    package = Path(commands.__file__).parent.parent.parent / "swe_infer"
    own = {str(path.relative_to(package)): path.read_bytes() for path in sorted(package.glob("context/*.py"))}
    queries = [(FILES, ISSUE), (own, (package / "errors.py").read_text()[:3000])]
    for files, query in queries:
        context = Bm25Context(k1=k1, b=b, file_types=(".py",))
        found = list(context.rank({**ROW, "problem_statement": query}, MemoryCommit(files)).scores.items())
        documents = {
            path: f"{path}\n{content.decode('utf-8', 'replace')}"
            for path, content in files.items()
            if path.endswith(".py") and "test" not in path and b"\0" not in content
        }
        expected = by_formula(documents, query, k1, b)
        assert dict(found) == pytest.approx(dict(expected))
        assert [score for _, score in found] == pytest.approx([score for _, score in expected])
        assert len(found) > 4
        bm25s = pytest.importorskip("bm25s", reason="the same ranks by the formula were compared above")
        index = bm25s.BM25(method="lucene", k1=k1, b=b, dtype="float64")
        index.index(bm25s.tokenize(list(documents.values()), show_progress=False), show_progress=False)
        (terms,) = bm25s.tokenize([query], return_ids=False, show_progress=False)
        theirs = dict(zip(documents, index.get_scores(terms), strict=True))
        assert dict(found) == pytest.approx({path: score for path, score in theirs.items() if score > 0})


def test_files_are_searched_by_type_and_ranked_in_the_configured_order() -> None:
    commit = MemoryCommit(FILES, {"link.py": "pkg/token.py"}, frozenset({"module.py"}))

    def shown(**options: object) -> list[str]:
        return list(Bm25Context(readmes=False, max_tokens=None, **options).choose(ROW, commit, len).files)  # type: ignore[arg-type]

    ranked = ["pkg/token.py", "pkg/parser.py", "pkg/same_a.py", "pkg/same_b.py", "web/token.js", "pkg/latin.py"]
    assert sorted(shown()) == sorted(ranked), "neither tests nor documentation, links, submodules or binary files"
    assert [path for path in shown(order="rank") if "same" in path] == ["pkg/same_a.py", "pkg/same_b.py"]
    assert shown(order="reversed") == shown(order="rank")[::-1]
    assert shown(order="rank", k=2) == shown(order="rank")[:2]
    assert "tests/test_parser.py" in shown(tests=True)
    assert shown(file_types=("md", "*.JS")) == shown(file_types=(".md", ".js")) != []
    assert set(shown(file_types=(".md", ".js"))) == {"docs/token.md", "web/token.js"}
    assert "docs/token.md" in shown(file_types=("*",))
    assert "pkg/data.py" not in shown(file_types=("*",))
    with pytest.raises(DataError, match="problem_statement is missing or blank"):
        Bm25Context().choose({"instance_id": "i"}, commit, len)
    assert Bm25Context(readmes=False).choose({**ROW, "problem_statement": "?!"}, commit, len).files == {}


def test_files_fill_the_tokens_by_rank_and_their_counts_are_known() -> None:
    context = Bm25Context(readmes=False, order="rank", file_types=(".py",))
    whole = context.choose(ROW, MemoryCommit(FILES), len)
    assert whole.tokens is not None
    first, second = list(whole.tokens)[:2]
    limited = Bm25Context(readmes=False, max_tokens=whole.tokens[first], order="rank", file_types=(".py",))
    shown = limited.choose(ROW, MemoryCommit(FILES), len)
    assert list(shown.files) == [first]
    assert shown.keeps_order
    assert shown.tokens == whole.tokens, "also of the files that do not fit, for the recall at other limits"
    assert "do not fit in context.max_tokens" in shown.left_out[second]
    gold = {**ROW, "patch": f"--- a/{first}\n+++ b/{first}\n@@ -1 +1 @@\n-a\n+b\n"}
    for row, within in ((gold, 1), ({**gold, "problem_statement": "?!"}, 0)):  # an issue that no file matches
        found = figures_of(row, {}, context.choose(row, MemoryCommit(FILES), len)).gold_files_within
        assert found == {str(most): within for most in BUDGETS}
    uncounted = Bm25Context(max_tokens=None).choose(gold, MemoryCommit(FILES), len)
    assert figures_of(gold, {}, uncounted).gold_files_within == {}


def test_gold_files_come_first_or_every_file_is_shown() -> None:
    patch = "--- a/pkg/view.py\n+++ b/pkg/view.py\n@@ -1 +1 @@\n-a\n+b\n"
    commit = MemoryCommit(FILES)
    both = OracleAndBm25Context(k=1, order="rank", readmes=False)
    assert next(iter(both.choose({**ROW, "patch": patch}, commit, len).files)) == "pkg/view.py"
    assert len(both.choose({**ROW, "patch": patch}, commit, len).files) == 2
    assert set(both.required_columns) == {"patch", "problem_statement"}
    with pytest.raises(DataError, match="no gold patch"):
        both.choose(ROW, commit, len)
    every = AllContext(readmes=False, file_types=("py",)).choose(ROW, commit, len)
    assert list(every.files) == sorted(
        path for path in FILES if path.endswith(".py") and path not in ("pkg/data.py", "tests/test_parser.py")
    )
    few = AllContext(readmes=False, max_tokens=60).choose(ROW, commit, len)
    assert sum(len(f"{path}\n{text}\n") for path, text in few.files.items()) <= 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"context\.k=0: must be between 1 and 1000"),
        ({"k1": -1.0}, r"context\.k1=-1"),
        ({"b": 1.5}, r"context\.b=1\.5: must be between 0 and 1"),
        ({"file_types": ()}, r"context\.file_types is an empty list"),
        ({"file_types": ("a/b",)}, r"context\.file_types: 'a/b' is not a suffix"),
    ],
)
def test_invalid_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bm25Context(**options)  # type: ignore[arg-type]


def test_terms_are_counted_once_for_each_content(cache_directory: Path) -> None:
    def reads(context: Bm25Context, files: Mapping[str, bytes]) -> list[list[str]]:
        commit = MemoryCommit(files, has_ids=True)
        ranks.append(context.rank(ROW, commit).scores)
        return commit.reads

    ranks: list[dict[str, float]] = []
    context = Bm25Context(file_types=(".py",))
    (first,) = reads(context, FILES)
    assert len(first) == len({FILES[path] for path in first}), "equal contents are read once"
    assert "pkg/data.py" in first
    assert reads(context, {**FILES, "pkg/view.py": b"token"}) == [["pkg/view.py"]]
    assert reads(Bm25Context(file_types=(".py",)), FILES) == [], "as in another process"
    file = cache_directory / "term_counts.sqlite"
    with sqlite3.connect(file) as db:
        db.execute(
            "UPDATE counts_1 SET counts = substr(counts, 1, 20)"
            " WHERE length(counts) = (SELECT max(length(counts)) FROM counts_1)"
        )
    (again,) = reads(Bm25Context(file_types=(".py",)), FILES)
    assert len(again) == 1, "a damaged row is counted again"
    assert reads(Bm25Context(file_types=(".py",)), FILES) == []
    content = file.read_bytes()
    for damaged in (
        b"no database at all" * 100,
        content[:4096] + os.urandom(len(content) - 4096),
        content[:5000],
        b"",
    ):
        file.write_bytes(damaged)
        assert reads(Bm25Context(file_types=(".py",)), FILES) == [first]
        assert reads(Bm25Context(file_types=(".py",)), FILES) == [], "the file is created again"
    file.unlink()
    file.mkdir()
    assert reads(Bm25Context(file_types=(".py",)), FILES) == [first], "the cache is not needed"
    assert all(rank == ranks[0] for rank in (*ranks[:1], *ranks[2:]))


def test_the_cache_has_a_limit_and_several_writers(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from swe_infer.context.term_cache import TermCache\n"
        "from swe_infer.context.terms import count_terms\n"
        "cache = TermCache(Path(sys.argv[1]))\n"
        "for part in range(20):\n"
        "    first = int(sys.argv[2]) * 10000 + part * 100\n"
        "    cache.put({f'{first + n:040x}': count_terms(f'word{n}') for n in range(50)})\n"
    )
    writers = [
        commands.start("-c", program, str(tmp_path), str(number), cwd=tmp_path, env=os.environ) for number in range(2)
    ]
    assert [writer.communicate(timeout=120) for writer in writers] == [("", ""), ("", "")]
    ids = [f"{w * 10000 + part * 100 + n:040x}" for w in range(2) for part in range(20) for n in range(50)]
    found = TermCache(tmp_path).get(ids)
    assert set(found) == set(ids)
    assert isinstance(found[ids[7]], TermCounts)
    limited = TermCache(tmp_path, most_bytes=100_000)
    for part in range(30):
        text = " ".join(f"other{part}_{n}" for n in range(500))
        limited.put({f"{10**9 + part:040x}": count_terms(text)})
    assert (tmp_path / "term_counts.sqlite").stat().st_size < 500_000
    kept = TermCache(tmp_path).get([*ids, f"{10**9 + 29:040x}"])
    assert f"{10**9 + 29:040x}" in kept, "the newest"
    assert not set(ids) & set(kept), "the oldest are removed"


def test_huge_file_is_left_out(tmp_path: Path) -> None:
    files = {b"huge.py": ("100644", b"token\n" * 5_600_000), b"small.py": ("100644", b"token\n")}
    commits = make_repository(tmp_path / "o__n", {"refs/heads/main": files})
    context = Bm25Context(repositories=str(tmp_path), offline=True)
    with Repositories(context) as repositories:
        commit = repositories.open("o/n", commits["refs/heads/main"])
        assert list(context.rank(ROW, commit).scores) == ["small.py"]


def test_the_commands_show_recall_and_sweep(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = commands.run(
        "swe_infer.prompts",
        "dataset=sample",
        "context=bm25",
        "prompt=style3",
        "--out",
        str(out),
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"gold files recall [\d.]+%; all of them in [\d.]+%, any in [\d.]+% of", done.stderr)
    assert re.search(r"27,000 +tokens of files: recall [\d.]+%; all of them in", done.stderr)
    assert "[start of " in json.loads(out.read_text().splitlines()[0])["text"]
    swept = commands.run(
        "swe_infer",
        "-m",
        "context=oracle,bm25",
        "prompt=style3",
        "dry_run=true",
        cwd=tmp_path,
        env=environment,
    )
    assert swept.returncode == 0, swept.stderr
