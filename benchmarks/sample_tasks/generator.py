"""Small repair tasks: a file with one bug, an issue, the patch that fixes it, and a test that tells.

Everything follows from the version, the split and a number: task 17 of a split is the same on every machine.
"""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from benchmarks.sample_tasks.freeform import freeform_source
from benchmarks.sample_tasks.respelt import ANY_KIND, respelt
from benchmarks.sample_tasks.templates import Bug, Family, Split, families, fill, name_slots, read_toml

VERSION = 4
"""Of the generator; it changes when any task does."""

_SYSTEM = "You will be provided with a partial code base and an issue statement explaining a problem to resolve."
_REQUEST = "Answer with one patch that resolves the issue and that git apply takes."


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Args:
        path: the faulty file's place in the repository.
        broken: the file before the fix.
        fixed: the file after it.
        function: the faulty function's name.
        kind: what is wrong, such as ``boundary``.
        family: the faulty function's template.
        names: what its slots were filled with.
    """

    instance_id: str
    repo: str
    path: str
    broken: str
    fixed: str
    problem_statement: str
    function: str
    kind: str
    family: Family
    names: Mapping[str, str]

    @property
    def patch(self) -> str:
        """The unified diff from the faulty file to the right one: one hunk, which begins at the line that changes.

        The line after the change is its only context, which ``git apply`` takes. So the hunk begins with the number
        that the issue names, and a small model need not count.
        """
        before, after = (source.splitlines(keepends=True) for source in (self.broken, self.fixed))
        start, end, end_after = _change(before, after)
        context = before[end : end + 1]
        old, new = before[start:end], after[start:end_after]
        lines = ["-" + line for line in old] + ["+" + line for line in new] + [" " + line for line in context]
        sizes = [len(part) + len(context) for part in (old, new)]
        header = f"@@ -{start + 1},{sizes[0]} +{start + 1},{sizes[1]} @@\n"
        return f"--- a/{self.path}\n+++ b/{self.path}\n{header}{''.join(lines)}"

    @property
    def text(self) -> str:
        """The prompt."""
        return render_prompt(self.problem_statement, {self.path: self.broken})


def render_prompt(problem_statement: str, files: Mapping[str, str]) -> str:
    """A prompt in the SWE-bench form: a system line, the issue, numbered files, and what is asked for."""
    shown = []
    for path, content in files.items():
        numbered = "".join(f"{n} {line}\n" for n, line in enumerate(content.split("\n"), 1))
        shown.append(f"[start of {path}]\n{numbered}[end of {path}]\n")
    return f"{_SYSTEM}\n<issue>\n{problem_statement}\n</issue>\n<code>\n{''.join(shown)}</code>\n{_REQUEST}\n"


def generate(split: Split, start: int = 0, *, functions: int = 3) -> Iterator[Task]:
    """Tasks number ``start``, ``start + 1``, … of a split, without end; see :func:`make`."""
    number = start
    while True:
        yield make(split, number, functions=functions)
        number += 1


def make(split: Split, number: int, *, functions: int = 3) -> Task:
    """Task ``number`` of a split, whose file holds at most ``functions`` functions (and three at most)."""
    random_ = random.Random(f"{VERSION}/{split}/{number}/{functions}")
    count = min(functions, random_.choices((1, 2, 3), (4, 4, 1))[0])
    free = [_freeform(random_) if split == "train" and random_.random() < 0.85 else None for _ in range(count)]
    known = iter(random_.sample(families(split), count))
    chosen = [family or next(known) for family in free]
    filled = [(family, name_slots(family, split, random_)) for family in chosen]
    family, names = filled[0]
    while not (bugs := _bugs(family, names)):  # a drawn constant may be the one that the template holds itself
        filled[0] = family, names = family, name_slots(family, split, random_)
    bug = _draw_bug(bugs, random_)
    random_.shuffle(filled)
    place = name_slots(_PLACE, split, random_)
    path = f"{place['x']}/{place['y']}.py"
    space = random_.choice(("\n\n", "\n\n\n"))
    fixed = [fill(other.correct, slots) for other, slots in filled]
    broken = [
        fill(bug.faulty, names) if other is family else source
        for (other, _), source in zip(filled, fixed, strict=True)
    ]
    before, after = space.join(broken) + "\n", space.join(fixed) + "\n"
    where = {"file": f"{place['y']}.py", "number": str(_change(before.split("\n"), after.split("\n"))[0] + 1)}
    return Task(
        instance_id=f"sample__{split}-{number:06d}",
        repo=f"sample/{place['x']}",
        path=path,
        broken=before,
        fixed=after,
        problem_statement=_issue(bug, {**names, **where}, split, random_),
        function=names["f"],
        kind=bug.kind,
        family=family,
        names=names,
    )


def _freeform(random_: random.Random) -> Family:
    """A function without a meaning, for training."""
    verbs = tuple(verb for family in families("train") for verb in family.verbs)
    anywhere = random_.random() < 0.5
    while True:
        family = Family("freeform", verbs, (), freeform_source(random_))
        # Brackets of its own may look like the markup of a place for a bug.
        if not (family.bugs() and _is_python(family)):
            continue
        if not anywhere:
            return family
        if source := respelt(family.correct, random_):
            return replace(family, source=source)


def _is_python(family: Family) -> bool:
    try:
        ast.parse(fill(family.correct, {slot: f"n_{slot}" for slot in family.slots}))
    except SyntaxError:
        return False
    return True


def _change(before: list[str], after: list[str]) -> tuple[int, int, int]:
    """The one stretch of lines that differs: its start in both, its end before and its end after."""
    opcodes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changes = [opcode for opcode in opcodes if opcode[0] != "equal"]
    return changes[0][1], changes[-1][2], changes[-1][4]


_PLACE = Family("place", (), (), "$x $y")
"""Its two slots name a file."""


def _bugs(family: Family, names: Mapping[str, str]) -> list[Bug]:
    """The faults that change the function, without those whose wrong text stands twice in its line.

    Of the latter nobody could tell from the issue which place is meant. A function put together at random may have
    none but such.
    """
    correct = fill(family.correct, names)
    bugs = [bug for bug in family.bugs() if fill(bug.faulty, names) != correct]
    return [bug for bug in bugs if _stands_once(bug, names)] or bugs


def _draw_bug(bugs: list[Bug], random_: random.Random) -> Bug:
    """One fault, each kind as likely as the next, whichever has more places."""
    kind = random_.choice(sorted({bug.kind for bug in bugs}))
    return random_.choice([bug for bug in bugs if bug.kind == kind])


def _stands_once(bug: Bug, names: Mapping[str, str]) -> bool:
    """Whether the wrong text is one place in the faulty line, when names and operators are read as a whole."""
    wrong, line = fill(bug.wrong.strip(), names), fill(bug.line, names)
    before = r"(?<!\w)" if wrong[:1].isalnum() else r"(?<![^\w\s\"'()\[\]])"
    after = r"(?!\w)" if wrong[-1:].isalnum() else r"(?![^\w\s\"'()\[\]:,])"
    return len(re.findall(before + re.escape(wrong) + after, line)) <= 1 if wrong else True


def _issue(bug: Bug, names: Mapping[str, str], split: Split, random_: random.Random) -> str:
    """The issue's text: what is wrong in some words, and where.

    ``names`` holds ``file`` and ``number`` of the faulty line beside the names of the slots.
    """
    wordings, words = _wordings(split), _wordings("words")
    slots = {
        **names,
        "wrong": fill(bug.wrong.strip(), names),
        "right": fill(bug.right.strip(), names),
        "line": fill(bug.line, names),
        "was": words["was"].get(bug.wrong, ""),
        "want": words["want"].get(bug.right, ""),
    }
    sentences = [
        fill(random_.choice(choices), slots)
        for choices in (wordings["openings"], _faults(bug, slots, split, random_), wordings["lines"])
    ]
    if split == "train" and random_.random() < 0.2:
        random_.shuffle(sentences)
    if random_.random() < 0.2:
        sentences.append(random_.choice(wordings["closings"]))
    return random_.choice((" ", "\n")).join(sentences)


def _faults(bug: Bug, slots: Mapping[str, str], split: Split, random_: random.Random) -> list[str]:
    """Sentences that say enough of a fault for a reader to know what to write."""
    by_kind: Mapping[str, list[str]] = _wordings(split)["faults"]
    if bug.kind == ANY_KIND:
        return _both_texts()
    if split == "train" and slots["wrong"] and slots["right"] and random_.random() < 0.35:
        return by_kind[ANY_KIND]
    worded = slots["was"] != "" and slots["want"] != "" and bug.kind == "operator"
    turned = bug.right == _TURNED.get(bug.wrong)
    return [
        fault
        for fault in by_kind[bug.kind]
        if (worded or "$was" not in fault) and (turned or bug.kind != "direction" or "$right" in fault)
    ]


@cache
def _both_texts() -> list[str]:
    """The training sentences that state what stands there and what should."""
    faults = [fault for sentences in _wordings("train")["faults"].values() for fault in sentences]
    return [fault for fault in faults if "$wrong" in fault and "$right" in fault and "$was" not in fault]


_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
"""What a reversed comparison must have been, where an issue does not say."""


@cache
def _wordings(section: str) -> dict[str, Any]:
    return read_toml("wordings.toml")[section]
