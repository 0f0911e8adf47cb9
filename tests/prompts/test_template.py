"""Templates of the user's: what they see, what they may not, and the one line that a mistake costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swe_infer.context.base import Shown
from swe_infer.errors import ConfigError, DataError
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.types import Prompt

ROW = {
    "instance_id": "o__n-1",
    "repo": "o/n",
    "problem_statement": "Fix {{ it }} {% raw %} <b>",
    "hints_text": "a hint",
    "difficulty": "15 min",
    "patch": "secret",
}
SHOWN = Shown({"b.py": "x\ny\n", "a.py": "z"}, {"README": "r"})


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "prompt.jinja"


def renderer(template: Path, text: str, **options: object) -> PromptRenderer:
    template.write_bytes(text.encode())
    return PromptRenderer(style="plain", template=str(template), **options)  # type: ignore[arg-type]


def test_template_writes_both_parts(template: Path, tmp_path: Path) -> None:
    examples = tmp_path / "few.jsonl"
    examples.write_text('{"issue": "one"}\n\n{"issue": "two"}\n')
    made = renderer(
        template,
        "{# for tests #}\n"
        "{% block system %}\nYou work on {{ repo }} ({{ row.difficulty }}).\n{% endblock %}\n\n"
        "{% block user %}\n"
        "{% for example in examples %}\n- {{ example.issue }}\n{% endfor %}\n"
        "{{ issue }}|{{ hints }}\n"
        "{% for file in readmes + files %}\n== {{ file.path }}\n{{ file.numbered if loop.first else file.text }}\n"
        "{% endfor %}\n"
        "{{ edit_format }}: {{ instructions | length > 100 }}\n"
        "{% endblock %}\n",
        examples=str(examples),
        edit_format="json_edits",
        hints=True,
    )
    assert made.render(ROW, SHOWN) == Prompt(
        "You work on o/n (15 min).",
        "- one\n- two\nFix {{ it }} {% raw %} <b>|a hint\n== README\n1 r\n== b.py\nx\ny\n\n== a.py\nz\n"
        "json_edits: True",
    )
    assert {"difficulty", "repo", "problem_statement", "hints_text"} == made.required_columns.keys()
    assert made.edit_format == "json_edits"


def test_file_without_blocks_is_the_user_part(template: Path) -> None:
    text = "Issue:\r\n{{ issue }}\n"
    assert renderer(template, text).render(ROW, SHOWN) == Prompt(None, "Issue:\nFix {{ it }} {% raw %} <b>\n")
    assert renderer(template, text, system="S").render(ROW, SHOWN).system == "S"
    hints = renderer(template, "{{ issue }} {{ hints }}")
    assert hints.render(ROW, SHOWN).user.endswith("a hint")
    assert not renderer(template, "{{ issue }} {{ hints }}", hints=False).render(ROW, SHOWN).user.endswith("a hint")


def test_content_is_the_identity_and_not_the_name(template: Path, tmp_path: Path) -> None:
    first = renderer(template, "{{ issue }}").rules
    assert renderer(tmp_path / "other.txt", "{{ issue }}").rules == first
    assert renderer(template, "{{ issue }}.").rules != first
    few = tmp_path / "few.jsonl"
    rules = set()
    for example in ("1", "2"):
        few.write_text(example)
        rules.add(renderer(template, "{{ issue }}{{ examples }}", examples=str(few)).rules)
    assert len(rules) == 2
    assert PromptRenderer(style="style3").rules == "style3-1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\n{{ isue }}", "line 3: no such variable isue; did you mean issue?"),
        ("{{ issue }}\n{% for f in files %}\n{{ f.txt }}\n{% endfor %}", "line 3: .*no attribute 'txt'"),
        ("{{ issue }}\n{% if hints %}", "line 2: Unexpected end of template"),
        ("{{ issue }}\n{{ issue | shout }}", "line 2: No filter named 'shout'"),
        ("{{ issue }}\n{{ files[5].path }}", "line 2: .*"),
        ("{{ issue }}\n{{ ''.__class__.__mro__ }}", "line 2: .*unsafe"),
        ("{{ issue }}\n{{ issue + 1 }}", "line 2: .*"),
        ("{{ row.patch }}", r"line 1: row\.patch would give the solution away"),
        ("\n{{ row['test_patch'] }}", r"line 2: row\.test_patch would give the solution away"),
        ("{% include 'other' %}", "line 1: a template cannot include or extend"),
        ("{% block user %}{% endblock %}{% block sytem %}{% endblock %}", "no such block sytem"),
        ("{% block system %}{{ repo }}{% endblock %}", "no block user"),
        ("{% block user %}{{ issue }}{% endblock %}\nlost", "line 2: text outside the blocks"),
        ("{{ issue }}{{ examples }}", r"names examples: set prompt\.examples"),
        ("\n{{ 'a' * 10**10 }}", "line 2: a text or list of 10,000,000,000 items"),
        ("{{ 2 ** 10000000 }}", "line 1: a number of more than .* bits"),
        ("{{ 'a'.ljust(10 ** 10) }}", "line 1: .* is too large"),
        ("{{ 'a' | center(10 ** 10) }}", "line 1: .* is too large"),
        ("{{ '%9999999999d' % 1 }}", "line 1: a format that is too wide"),
        ("{{ '{:9999999999}'.format(1) }}", "line 1: a format that is too wide"),
        ("{{ '%*d' | format(10 ** 10, 1) }}", "line 1: .* is too large"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "passes through loops"),
        ("{% for a in range(9999) %}{{ 'a' * 99999 }}{% endfor %}", "the prompt is longer than"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "recursion"),
        ("{{ [1, 2] | random }}{{ lipsum() }}", "No filter named 'random'"),
        ("", "the prompt is blank"),
        ("{% block system %}{{ issue }}{% endblock %}{% block user %}\n{% endblock %}", "the prompt is blank"),
        ("{{ files[0].txt }} {{ row.more }}", "line 1: .*no attribute 'txt'"),
    ],
)
def test_mistake_is_one_line_with_the_file_and_the_line(template: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        renderer(template, text)
    assert str(caught.value).startswith(f"prompt.template={template}")
    assert "\n" not in str(caught.value)


def test_columns_of_any_type_and_local_names_are_no_mistake(template: Path, tmp_path: Path) -> None:
    text = (
        "\ufeff{{ row.meta.name }} {{ row.tags[0] }} {{ row.tags | first }} {{ row.number + 1 }}\n"
        "{% for key, value in row.meta.items() %}{{ loop.index }}/{{ loop.length }} {{ key }}{% endfor %}\n"
        "{% if row.a is defined %}{{ row.a }}{% endif %}{{ row['b'] | default('-') }}{{ version | d('?') }}\n"
        "{% if 'c' in row %}{{ row.c }}{% endif %}{{ row['items'] }}"
    )
    made = renderer(template, text)
    assert made.required_columns.keys() == {"meta", "tags", "number", "items"}
    row = {"meta": {"name": "N"}, "tags": ["t"], "number": 1, "items": 5}
    assert made.render(row, SHOWN) == Prompt(None, "N t t 2\n1/1 name-?\n5")
    (tmp_path / "few.jsonl").write_text('{"patch": "p"}\n')
    few = renderer(
        template, "{% for row in examples %}{{ row.patch }}{% endfor %}", examples=str(tmp_path / "few.jsonl")
    )
    assert few.required_columns == {}
    assert few.render({}, SHOWN).user == "p"


def test_option_that_the_template_does_not_use_is_refused(template: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("{\n")
    for option, value in (("hints", True), ("examples", str(tmp_path / "few.jsonl"))):
        with pytest.raises(ConfigError, match=rf"prompt\.{option}"):
            renderer(template, "{{ issue }}", **{option: value})
    with pytest.raises(ConfigError, match=r"prompt\.examples=.*, line 1: must be a JSON value"):
        renderer(template, "{{ examples }}", examples=str(tmp_path / "few.jsonl"))
    with pytest.raises(ConfigError, match="there is no such file"):
        PromptRenderer(style="plain", template=str(tmp_path / "none.jinja"))


def test_row_that_a_template_cannot_take_is_one_error(template: Path) -> None:
    made = renderer(template, "{{ issue }}\n{{ row.more }} {{ row.number + 1 }}")
    assert made.required_columns.keys() == {"more", "number", "problem_statement"}
    with pytest.raises(DataError, match=r"line 2: .*no attribute 'more'"):
        made.render(ROW, SHOWN)
    with pytest.raises(DataError, match="line 2"):
        made.render({**ROW, "more": "", "number": "x"}, SHOWN)
    assert made.render({**ROW, "more": "", "number": 1}, SHOWN).user.endswith("\n 2")
    with pytest.raises(DataError, match="'version' is undefined"):
        renderer(template, "{{ issue }}{{ version }}").render(ROW, SHOWN)
    with pytest.raises(DataError, match="blank"):
        renderer(template, "{% if repo == 'x' %}{{ issue }}{% endif %}").render(ROW, SHOWN)
    everything = renderer(template, "{{ issue }}{% for key in row %}{{ row[key] }}{% endfor %}")
    assert "secret" not in everything.render(ROW, SHOWN).user


def test_jinja_is_loaded_for_templates_alone() -> None:
    code = (
        "import sys, json; from swe_infer.prompts.prompt import PromptRenderer\n"
        "from swe_infer.context.base import Shown\n"
        "PromptRenderer(style='style3').render({'problem_statement': 'x'}, Shown())\n"
        "print(json.dumps([name for name in sys.modules if name.startswith(('jinja2', 'unidiff', 'datasets'))]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == []
