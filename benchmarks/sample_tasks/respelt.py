"""Any stretch of tokens of a function in place of any other, for training alone: so a model learns to replace."""

from __future__ import annotations

import random
import re

ANY_KIND = "any"
"""The kind of such a fault, which needs a sentence with both texts."""

_TOKEN = re.compile(r"\$[a-z]+|\w+|\"[^\"]*\"|//|[<>=!+*/-]=|\S")
_SIGNS = ("+", "-", "*", "//", "/", "%", "<", "<=", ">", ">=", "+=", "-=", "*=", "=")
_WORDS = ("$p", "$q", "$t", "$x", "$n", "0", "1", "None", "not", "and", "[0]")
_SPAN_LENGTHS = (1, 1, 1, 1, 2, 2, 3, 3, 4, 5)
_WORDS_MEET = re.compile(r"\w[\w$]")
_MARKUP = ("|", "~", "[[", "]]")


def respelt(source: str, random_: random.Random) -> str | None:
    """A function without markup, given one place for a fault: a stretch of tokens for which anything may stand.

    The faults of ``freeform.py`` lie where such faults lie in real code. A model that sees those alone learns
    the places; one that sees any stretch of any line replaced has to learn replacing.

    Args:
        source: a function whose slots are in place and whose markup is not.

    Returns:
        The function with the markup, or None where the drawn text does not differ or would be read as markup.
    """
    lines = source.split("\n")
    at = random_.randrange(len(lines))
    start, end = _stretch(lines[at], random_)
    right = lines[at][start:end]
    wrong = _other_text(right, lines, random_)
    if wrong == right or not (_is_whole(right) and _is_whole(wrong)):
        return None
    before, after = lines[at][:start], lines[at][end:]
    if before.endswith("[") or after.startswith("]"):
        return None  # would be read as brackets of the markup
    if f"{before}{wrong}{after}".count(wrong) > 1:
        return None  # nobody could tell which one is meant
    if _WORDS_MEET.search(f"{before[-1:]}{wrong[0]}") or _WORDS_MEET.search(f"{wrong[-1]}{after[:1]}"):
        return None
    lines[at] = f"{before}[[{right}|{wrong}|{ANY_KIND}]]{after}"
    return "\n".join(lines)


def _is_whole(text: str) -> bool:
    """Whether text holds a word or an operator, closes the brackets that it opens, and holds no markup."""
    pairs = (("(", ")"), ("[", "]"), ("{", "}"))
    balanced = all(text.count(opening) == text.count(closing) for opening, closing in pairs)
    return balanced and not set(text) <= set(",:()[]{} ") and not any(mark in text for mark in _MARKUP)


def _stretch(line: str, random_: random.Random) -> tuple[int, int]:
    """Where a stretch of one to five tokens begins and ends in a line that is not blank."""
    tokens = [token.span() for token in _TOKEN.finditer(line)]
    first = random_.randrange(len(tokens))
    last = min(first + random_.choice(_SPAN_LENGTHS), len(tokens)) - 1
    return tokens[first][0], tokens[last][1]


def _other_text(text: str, lines: list[str], random_: random.Random) -> str:
    """What stands wrongly for ``text``: a part of the function, any token, or ``text`` itself in disorder."""
    draw = random_.random()
    tokens = _TOKEN.findall(text)
    if draw < 0.4:
        line = random_.choice(lines)
        start, end = _stretch(line, random_)
        return line[start:end]
    if draw < 0.7 or len(tokens) < 2:
        return random_.choice(_SIGNS + _WORDS)
    if draw < 0.85:
        tokens.reverse()
        return " ".join(tokens)
    tokens.pop(random_.randrange(len(tokens)))
    return " ".join(tokens)
