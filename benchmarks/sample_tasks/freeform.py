"""Functions put together at random, for training alone: they mean nothing, so a model must read them to copy them.

With the templates of ``families.toml`` alone a small model learns those functions by heart instead. The markup is the
same, and so are the kinds of bugs. The functions are Python, yet none is meant to be called, so they have no tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_OPERATORS = ("+", "-", "*", "//", "/", "%")
_COMPARISONS = ("<", "<=", ">", ">=")
_AUGMENTED = ("+=", "-=", "*=", "=")
_TEXT_METHODS = (
    "strip",
    "lstrip",
    "rstrip",
    "lower",
    "upper",
    "title",
    "split",
    "swapcase",
    "capitalize",
    "casefold",
    "splitlines",
)
_LIST_METHODS = (
    "append",
    "remove",
    "extend",
    "insert",
    "index",
    "count",
    "add",
    "discard",
    "update",
    "push",
    "put",
    "write",
    "send",
)
_TESTS = ("startswith", "endswith", "count", "find", "index", "isdisjoint", "get", "match")
_FUNCTIONS = (
    "max",
    "min",
    "sum",
    "len",
    "abs",
    "int",
    "float",
    "str",
    "sorted",
    "list",
    "set",
    "any",
    "all",
    "round",
    "bool",
    "tuple",
    "reversed",
)
_INITIAL = ("0", "1", "None", "[]", "{}", '""', "-1", "set()", "True", "False", "2", "10")
_MEMBERSHIP = ("in", "not in")
_RETURNED = ("$t", "$u", "$p", "$x", "None", "True", "False", "$xs", "0")
_MOST_LINES = (3, 4, 8)
"""Of a function; short ones too, since an edit teaches the same for fewer tokens."""
_MOST_COLUMNS = 90
"""Of a line, its markup included."""
_VARIABLES = ("p", "q", "r", "t", "u")


class _Writer:
    """Writes one function. Every method returns text in the markup of ``families.toml``."""

    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self.parameters = random_.sample(("p", "q", "r", "xs", "ys", "s", "d"), random_.randint(1, 3))

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def site(self, choices: tuple[str, ...], kind: str) -> str:
        """A place for a bug of two of the choices, or at times plain text, so that faults are rarer than code."""
        right, wrong = self.random.sample(choices, 2)
        return f"[[{right}|{wrong}|{kind}]]" if self.random.random() < 0.6 else right

    def variable(self) -> str:
        return "$" + self.pick(*_VARIABLES)

    def name(self) -> str:
        return self.site(tuple(f"${slot}" for slot in (*_VARIABLES, "x", "v", "s")), "name")

    def constant(self) -> str:
        return self.site(("$n", "$m", "0", "1", "2", "100", "1000"), "const")

    def atom(self) -> str:
        return self.random.choice(
            (
                self.variable,
                self.variable,
                self.name,
                self.name,
                self.constant,
                lambda: f"len({self.pick('$xs', '$ys', '$s')})",
                lambda: f"{self.pick('$xs', '$ys', '$s', '$t')}{self.index()}",
                lambda: f'$d["{self.site(("$a", "$b"), "key")}"]',
                lambda: f"{self.site(_FUNCTIONS, 'function')}({self.variable()})",
                lambda: f"$g({self.order()})",
                lambda: f"{self.pick('$s', '$w', '$t')}.{self.site(_TEXT_METHODS, 'method')}()",
                lambda: f"$d.get({self.order()})",
                lambda: f"$d[{self.variable()}]",
                lambda: f"{self.variable()}.{self.pick('$k', '$w', '$v')}",
                lambda: f"{self.pick('$x', '$v', '$w')}.{self.pick('$k', '$a', '$p')}({self.variable()})",
                lambda: f"{self.site(_FUNCTIONS, 'function')}({self.variable()}, {self.variable()})",
                lambda: f"({self.variable()} {self.operator()} {self.atom()})",
                lambda: f"{self.variable()} % {self.constant()}",
                self.literal,
                self.literal,
                self.chain,
                self.chain,
                self.square,
                lambda: f"{self.pick('$a', '$w')}.$b",
                lambda: f'$d.pop("{self.site(("$a", "$b"), "key")}")',
                lambda: f"[{self.variable()}, {self.name()}]",
                lambda: self.site(("None", "True", "False", "[]", "{}"), "init"),
            )
        )()

    def chain(self) -> str:
        """A method's result asked for another."""
        methods = (self.site(_TEXT_METHODS, "method"), self.pick(*_TEXT_METHODS))
        first, second = methods if self.random.random() < 0.5 else methods[::-1]
        return f"{self.pick('$s', '$w', '$t', '$x')}.{first}().{second}()"

    def square(self) -> str:
        """One variable on both sides of an operator."""
        variable = self.variable()
        return f"{variable} {self.operator()} {variable}"

    def literal(self) -> str:
        """A string."""
        return f'"{self.site(("$a", "$b", "$a $b", ", ", "-", ".", " ", "/", "_", ":", "*"), "const")}"'

    def comprehension(self) -> str:
        """A list, set or generator over a sequence, at times with a test."""
        over = self.pick("$xs", "$ys", "$t", "$d", "sorted($xs)", "$s.split()")
        test = f" if {self.condition()}" if self.random.random() < 0.5 else ""
        inner = f"{self.pick('$x', '$x', self.atom())} for $x in {over}{test}"
        if inner.startswith("[["):  # a bracket before the markup's own would be read as one of them
            return f"list({inner})"
        return self.pick("[{}]", "[{}]", "{{{}}}", "sum({})", "list({})", "set({})").format(inner)

    def index(self) -> str:
        return self.site(("[0]", "[1]", "[-1]", "[-2]", "[$i]", "[:$n]", "[$n:]", "[:-1]", "[1:]", "[$p]"), "index")

    def order(self) -> str:
        one, other = self.random.sample(("$p", "$q", "$r", "$t", "$k", "$v", "$x", "0", "$n"), 2)
        return self.site((f"{one}, {other}", f"{other}, {one}"), "order")

    def expression(self) -> str:
        if self.random.random() < 0.45:
            return self.atom()
        return f"{self.atom()} {self.operator()} {self.atom()}"

    def condition(self) -> str:
        tests: tuple[Callable[[], str], ...] = (
            lambda: f"{self.atom()} {self.site(_COMPARISONS, 'cmp')} {self.atom()}",
            lambda: f"{self.atom()} {self.site(_COMPARISONS, 'cmp')} {self.constant()}",
            lambda: f"{self.atom()} {self.site(('==', '!='), 'negation')} {self.atom()}",
            lambda: f"{self.name()} {self.site(('in', 'not in'), 'negation')} {self.pick('$xs', '$ys', '$d', '$t')}",
            lambda: self.site((f"not {self.plain()}", self.plain()), "negation"),
            lambda: f"{self.pick('$s', '$w')}.{self.site(_TESTS, 'method')}({self.variable()})",
        )
        test = self.random.choice(tests)
        if self.random.random() < 0.2:
            return f"{test()} {self.site(('and', 'or'), 'boolean')} {self.variable()}"
        return test()

    def plain(self) -> str:
        return self.pick("$xs", "$p", "$t", "$s", "$d")

    def statement(self) -> str:
        choices: tuple[Callable[[], str], ...] = (
            lambda: f"{self.variable()} {self.site(_AUGMENTED, 'augment')} {self.atom()}",
            lambda: f"{self.variable()} = {self.expression()}",
            lambda: f"{self.variable()} = {self.expression()}",
            lambda: f"{self.variable()} = {self.site(_INITIAL, 'init')}",
            lambda: f"{self.pick('$t', '$u', '$xs')}.{self.site(_LIST_METHODS, 'method')}({self.atom()})",
            lambda: f'$d["{self.site(("$a", "$b"), "key")}"] = {self.expression()}',
            lambda: f"$t[{self.variable()}] = {self.expression()}",
            lambda: f"$g({self.order()})",
            lambda: f"{self.variable()} = {self.comprehension()}",
            lambda: f"{self.variable()} = {self.variable()} if {self.condition()} else {self.atom()}",
            lambda: f"{self.variable()}, {self.variable()} = {self.order()}",
            lambda: (
                f"$d[{self.pick('$k', '$x')}] = $d.get({self.pick('$k', '$x')}, 0) {self.operator()} {self.atom()}"
            ),
            lambda: f"{self.pick('$x', '$v', '$t')}.{self.pick('$k', '$w')} = {self.expression()}",
            lambda: f"assert {self.condition()}",
            lambda: f"yield {self.expression()}",
            lambda: f"del $d[{self.variable()}]",
            lambda: f"print({self.atom()})",
            lambda: f"$g = lambda $x: {self.expression()}",
        )
        return self.random.choice(choices)()

    def membership(self) -> str:
        return f"{self.pick('not in', 'in', '<', '==', '!=')} {self.pick('$d', '$ys', '$t', '$p', '$n')}"

    def item(self) -> str:
        return self.pick("$k", "$x")

    def operator(self) -> str:
        return self.site(_OPERATORS, "operator")

    def header(self) -> str:
        """The line that opens an inner block."""
        bounds = ("$p", "$p + 1", "$p - 1", "1, $p", "1, $p + 1", "len($xs)", "len($xs) - 1", "0, $q", "2, $q + 1")
        choices: tuple[Callable[[], str], ...] = (
            lambda: f"if {self.condition()}:",
            lambda: f"if {self.condition()}:",
            lambda: f"if {self.condition()}:",
            lambda: f"for $x in {self.pick('$xs', '$ys', '$t')}:",
            lambda: f"for $i, $x in {self.pick('enumerate($xs)', 'zip($xs, $ys)')}:",
            lambda: f"for $k, $v in {self.pick('$d.items()', '$xs', 'zip($xs, $ys)')}:",
            lambda: f"for $i in range({self.site(bounds, 'bounds')}):",
            lambda: f"while {self.condition()}:",
            lambda: f"with {self.pick('$g', '$w')}({self.variable()}) as {self.variable()}:",
            lambda: f"def $g({self.pick('$x', '$x, $k', '$k, $v', '$p')}):",
        )
        return self.random.choice(choices)()

    def ending(self) -> str:
        return self.random.choice(
            (
                lambda: f"return {self.site(_RETURNED, 'return')}",
                lambda: f"return {self.expression()}",
                lambda: f"return {self.condition()}",
                lambda: f"return [{self.variable()} for $x in $xs if {self.condition()}]",
                lambda: f"return {self.comprehension()}",
                lambda: f"return $g({self.order()})",
                lambda: f"return {self.order()}",
                lambda: f"return {self.pick('$t', '$s', '$xs')}{self.index()}",
                lambda: f"return {self.site(('any', 'all'), 'function')}({self.condition()} for $x in $xs)",
                lambda: f"return {self.site(_FUNCTIONS, 'function')}({self.order()})",
                lambda: f"return {self.site(('any', 'all'), 'function')}($x {self.membership()} for $x in $xs)",
                lambda: f"return {self.variable()} {self.operator()} {self.constant()}",
            )
        )()

    def guard(self, indent: str) -> list[str]:
        reaction = self.pick("return None", "return 0", "return $p", "return []", "raise ValueError", "return False")
        condition = self.pick("not $xs", "$p < 0", "$p == 0", "not $s", "$p is None", "$k not in $d", "len($xs) < $n")
        lines = [f"{indent}if {condition}:", f"{indent}    {reaction}"]
        mark = "+>" if self.random.random() < 0.7 else ""
        return [mark + line for line in lines]

    def block(self, indent: str, depth: int) -> list[str]:
        """One to three statements, some of which hold blocks themselves."""
        lines: list[str] = []
        for _ in range(self.random.randint(1, 2 if depth else 3)):
            if depth < 2 and self.random.random() < 0.4:
                lines.append(indent + self.header())
                lines += self.block(indent + "    ", depth + 1)
            else:
                lines.append(indent + self.statement())
                if self.random.random() < 0.25:
                    lines.append(f"->{indent}{self.extra()}")
        return lines

    def extra(self) -> str:
        return f"{self.variable()} {self.pick('+=', '=', '-=', '*=')} {self.pick('0', '1', '$x', '$p', '$n', '[]')}"

    def function(self) -> str:
        default = f", $r={self.site(('$n', '$m'), 'default')}" if "r" not in self.parameters else ""
        default = default if self.random.random() < 0.15 else ""
        lines = [f"def $f({', '.join('$' + slot for slot in self.parameters)}{default}):"]
        if self.random.random() < 0.35:
            lines += self.guard("    ")
        lines += self.block("    ", 0)
        if lines[-1].startswith("        ") and self.random.random() < 0.5:
            lines.append(f"[[    |        |indent]]{self.ending()}")
        else:
            lines.append("    " + self.ending())
        return "\n".join(lines)


def freeform_source(random_: random.Random) -> str:
    """A short function in the markup of ``families.toml`` that has a place for a bug at least."""
    most_lines = random_.choice(_MOST_LINES)
    while True:
        source = _Writer(random_).function()
        lines = source.split("\n")
        has_place = "[[" in source or "\n+>" in source or "\n->" in source
        if has_place and len(lines) <= most_lines and max(map(len, lines)) <= _MOST_COLUMNS:
            return source
