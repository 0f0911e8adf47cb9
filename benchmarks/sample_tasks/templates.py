"""Functions with places for a bug, read from ``families.toml``, and what a bug does to them.

The markup is described at the head of that file. A template names its identifiers by slots (``$xs``, ``$p``), so one
family gives as many functions as there are names.
"""

from __future__ import annotations

import keyword
import random
import re
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_SITE = re.compile(r"\[\[(.+?)\|(.+?)\|(\w+)\]\]")
_SLOT = re.compile(r"\$([a-z]+)")
_MISSING = "+>"
_EXTRA = "->"


@dataclass(frozen=True, slots=True)
class Bug:
    """One fault in a function, all texts with their slots still in place.

    Args:
        kind: what is wrong, a key of ``wordings.toml``.
        right: the text as it should be (for a missing check: its lines joined by spaces).
        wrong: the text that stands in its place (empty for a missing check).
        line: the faulty line without indentation; for a missing check the line before which it belongs.
        faulty: the whole function with the fault.
    """

    kind: str
    right: str
    wrong: str
    line: str
    faulty: str


@dataclass(frozen=True, slots=True)
class Family:
    """A function template. ``arguments`` names the kinds of its arguments, in order, for making test calls."""

    name: str
    verbs: tuple[str, ...]
    arguments: tuple[str, ...]
    source: str

    @property
    def correct(self) -> str:
        """The function without a fault, slots in place."""
        return "\n".join(_right(line) for line in self.source.split("\n") if not line.startswith(_EXTRA))

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots of the template in order of appearance, the unused ones of wrong texts included."""
        return tuple(dict.fromkeys(_SLOT.findall(self.source)))

    def bugs(self) -> tuple[Bug, ...]:
        """Every fault that the template can have, in order."""
        lines = self.source.split("\n")
        found: list[Bug] = []
        for at, line in enumerate(lines):
            if line.startswith(_EXTRA):
                found.append(self._extra(lines, at))
            elif line.startswith(_MISSING):
                if at == 0 or not lines[at - 1].startswith(_MISSING):
                    found.append(self._missing(lines, at))
            else:
                found.extend(self._replacements(lines, at))
        return tuple(found)

    def _replacements(self, lines: list[str], at: int) -> list[Bug]:
        found = []
        for site in _SITE.finditer(lines[at]):
            right, wrongs, kind = site.groups()
            for wrong in wrongs.split("~"):
                faulty = _right(lines[at][: site.start()]) + wrong + _right(lines[at][site.end() :])
                found.append(
                    Bug(_refined(kind, right, wrong), right, wrong, faulty.strip(), _joined(lines, {at: faulty}))
                )
        return found

    def _missing(self, lines: list[str], first: int) -> Bug:
        last = first
        while last < len(lines) and lines[last].startswith(_MISSING):
            last += 1
        right = " ".join(line[len(_MISSING) :].strip() for line in lines[first:last])
        return Bug(
            "missing", right, "", _right(lines[last]).strip(), _joined(lines, dict.fromkeys(range(first, last)))
        )

    def _extra(self, lines: list[str], at: int) -> Bug:
        line = lines[at][len(_EXTRA) :]
        return Bug("extra", "", line.strip(), line.strip(), _joined(lines, {at: line}))


def _right(line: str) -> str:
    """A template's line as it should be."""
    return _SITE.sub(lambda site: site[1], line.removeprefix(_MISSING))


def _joined(lines: list[str], changed: Mapping[int, str | None]) -> str:
    """The function with some lines replaced (None: left out), the others as they should be."""
    out = []
    for at, line in enumerate(lines):
        text = changed[at] if at in changed else (None if line.startswith(_EXTRA) else _right(line))
        if text is not None:
            out.append(text)
    return "\n".join(out)


def _refined(kind: str, right: str, wrong: str) -> str:
    """Tell a comparison that errs for equal values alone from one that points the other way."""
    if kind != "cmp":
        return kind
    return "boundary" if right.rstrip("=") == wrong.rstrip("=") else "direction"


def fill(text: str, names: Mapping[str, str]) -> str:
    """Put names into a text's slots."""
    return _SLOT.sub(lambda slot: names[slot[1]], text)


def read_toml(name: str) -> dict[str, dict[str, Any]]:
    """One of the TOML files beside this module."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


@cache
def families(split: Split) -> tuple[Family, ...]:
    """The function templates of a split; no function stands in two of them."""
    out = []
    for name, entry in read_toml("families.toml")[split].items():
        out.append(Family(name, tuple(entry["verbs"]), tuple(entry["args"].split()), entry["code"].strip("\n")))
    return tuple(out)


def name_slots(family: Family, split: Split, random_: random.Random) -> dict[str, str]:
    """Draw a name for every slot of ``family``, all different."""
    names: dict[str, str] = {}
    for slot in family.slots:
        if slot in ("xs", "ys", "x", "y"):
            if slot[0] not in names:
                names[slot[0]] = _fresh("noun", split, random_, names)
                names[slot[0] + "s"] = names[slot[0]] + "s"
        elif slot == "f":
            verb = _noun(split, random_) if _any_name(split, random_) else random_.choice(family.verbs)
            names["f"] = f"{verb}_{_noun(split, random_)}{random_.choice(('', 's'))}"
        elif slot == "g":
            names["g"] = f"{_noun(split, random_)}_{random_.choice(_pool(split, 'number'))}"
        else:
            names[slot] = _fresh(_ROLES[slot], split, random_, names)
    return names


def _fresh(role: str, split: Split, random_: random.Random, names: Mapping[str, str]) -> str:
    """A name for the role that no other slot has."""
    while (name := _draw(role, split, random_)) in names.values():
        pass
    return name


def _draw(role: str, split: Split, random_: random.Random) -> str:
    if role == "noun":
        return _noun(split, random_)
    if role == "constant":
        return str(random_.choice((random_.randint(3, 9), random_.randint(10, 60))))
    if _any_name(split, random_):
        return "_".join(_noun(split, random_) for _ in range(random_.choice((1, 1, 1, 2, 2))))
    word = random_.choice(_pool(split, role))
    if role in ("total", "number") and "_" not in word and random_.random() < 0.35:
        return f"{_noun(split, random_)}_{word}"
    return word


def _any_name(split: Split, random_: random.Random) -> bool:
    """Whether a slot takes a name of any sort. In training most do: a model that sees the same few names in the same
    roles learns those by heart, and fails where it should copy another.
    """
    return split == "train" and random_.random() < 0.5


def _noun(split: Split, random_: random.Random) -> str:
    """A noun of the split's pool; in training often another word or an invented one, so that any name is copied."""
    sort = random_.random()
    if split != "train" or sort < 0.25:
        return random_.choice(_pool(split, "noun"))
    if sort < 0.6:
        return random_.choice(_pool(split, "rare"))
    return _invented(random_)


def _invented(random_: random.Random) -> str:
    """A word that nobody has seen: syllables, or letters in any order."""
    while True:
        if random_.random() < 0.6:
            syllables = [random_.choice(_CONSONANTS) + random_.choice(_VOWELS) for _ in range(random_.randint(2, 3))]
            word = "".join(syllables) + random_.choice(("", "", random_.choice(_CONSONANTS)))
        else:
            word = "".join(random_.choices(string.ascii_lowercase, k=random_.randint(3, 5)))
        if not keyword.iskeyword(word):
            return word


@cache
def _pool(split: Split, role: str) -> tuple[str, ...]:
    return tuple(str(read_toml("words.toml")[split][role]).split())


_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"
_ROLES = {
    **dict.fromkeys(("t", "u"), "total"),
    **dict.fromkeys(("p", "q", "r"), "number"),
    "s": "text",
    "w": "word",
    "d": "mapping",
    "k": "key",
    "v": "value",
    **dict.fromkeys(("i", "j"), "position"),
    **dict.fromkeys(("a", "b"), "string"),
    **dict.fromkeys(("n", "m"), "constant"),
}
"""Which pool of ``words.toml`` a slot's name comes from."""
