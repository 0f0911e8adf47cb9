"""Edits in forms that are neither a diff nor the usual search and replace blocks."""

from __future__ import annotations

import html
import json

import pytest

from swe_infer.patches.pipeline import NOTHING_FOUND, make_patch
from swe_infer.types import EditFormat
from tests.patches.git import GitRepository, needs_git
from tests.support.steps import lines_executed

pytestmark = needs_git

APP = (
    'import os\n\n\ndef size(a, b):\n    if a < b and b > 0:\n        return a - b\n    return "&" + a\n\n\n'
    "def name():\n    return 'x'\n"
)
FILES = {"pkg/app.py": APP, "web/index.html": "<p>\n  a &lt; b\n</p>\n", "pkg/__init__.py": ""}
WANTED = APP.replace("a - b", "b - a")
OLD = "    if a < b and b > 0:\n        return a - b\n"
NEW = OLD.replace("a - b", "b - a")
DIFF = (
    "--- a/pkg/app.py\n+++ b/pkg/app.py\n@@ -3,7 +3,7 @@\n \n def size(a, b):\n     if a < b and b > 0:\n"
    '-        return a - b\n+        return b - a\n     return "&" + a\n \n \n'
)
V4A = (
    "*** Begin Patch\n*** Update File: pkg/app.py\n@@ def size(a, b):\n     if a < b and b > 0:\n"
    "-        return a - b\n+        return b - a\n*** End Patch\n"
)
MISCOUNTED = DIFF.replace("-3,7 +3,7", "-3,9 +3,9")
RED, OFF = "\x1b[31m", "\x1b[0m"
EDIT = {"path": "pkg/app.py", "old_str": OLD, "new_str": NEW}


def _call(name: str, arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def _xml(arguments: dict[str, str], form: str) -> str:
    return "".join(form.format(name=name, value=value) for name, value in arguments.items())


def _python(text: str) -> str:
    return f'"""{text}"""'


INVOKE = '<parameter name="{name}">{value}</parameter>\n'
QWEN = "<parameter={name}>\n{value}</parameter>\n"
GLM = "<arg_key>{name}</arg_key>\n<arg_value>{value}</arg_value>\n"

ANSWERS: dict[str, str] = {
    "invoke": f'<function_calls>\n<invoke name="edit">\n{_xml(EDIT, INVOKE)}</invoke>\n</function_calls>',
    "namespace": f'<x:invoke name="edit">\n{_xml(EDIT, INVOKE)}</x:invoke>',
    "function=": f"<tool_call>\n<function=str_replace_editor>\n{_xml(EDIT, QWEN)}</function>\n</tool_call>",
    "arg_key": f"<tool_call>edit_file\n{_xml(EDIT, GLM)}</tool_call>",
    "elements": "<edit_file>\n<path>pkg/app.py</path>\n<old_string>"
    + OLD
    + "</old_string>\n<new_string>"
    + NEW
    + "</new_string>\n</edit_file>",
    "write_to_file": f"<write_to_file>\n<path>pkg/app.py</path>\n<content>\n{WANTED}</content>\n</write_to_file>",
    "apply_patch invoke": f'<invoke name="apply_patch">\n<parameter name="input">{V4A}</parameter>\n</invoke>',
    "json call": "<tool_call>\n" + _call("str_replace_editor", {"command": "str_replace", **EDIT}) + "\n</tool_call>",
    "json call, arguments as a string": '{"tool_calls": [{"function": ' + _call("edit", json.dumps(EDIT)) + "}]}",
    "json edits": json.dumps(
        {"file_path": "pkg/app.py", "edits": [{"old_string": OLD, "new_string": NEW}]}, indent=1
    ),
    "json calls among views": json.dumps(
        [{"tool": "view", "input": {"command": "view", "path": "pkg/app.py"}}, {"tool": "edit", "input": EDIT}]
    ),
    "json whole file": "[TOOL_CALLS]"
    + json.dumps([{"name": "write_file", "arguments": {"path": "pkg/app.py", "content": WANTED}}]),
    "json files": json.dumps({"files": {"pkg/app.py": WANTED}}),
    "json of Python": repr({"path": "pkg/app.py", "old_str": OLD, "new_str": NEW}),
    "json with a trailing comma": json.dumps(EDIT)[:-1] + ",}",
    "json insert and replace": json.dumps(
        [
            {"command": "insert", "path": "pkg/app.py", "insert_line": 5, "new_str": "        return b - a\n"},
            {"command": "str_replace", "path": "pkg/app.py", "old_str": "        return a - b\n"},
        ]
    ),
    "patch": json.dumps({"patch": DIFF}),
    "model_patch": "```json\n" + json.dumps({"reasoning": "It is so.", "model_patch": DIFF}, indent=2) + "\n```\n",
    "patch without a header": json.dumps({"path": "pkg/app.py", "diff": DIFF.partition("+++ b/pkg/app.py\n")[2]}),
    "apply_patch command": _call("shell", {"command": ["apply_patch", V4A]}),
    "apply_patch here-document": json.dumps({"cmd": f"apply_patch <<'PATCH'\n{V4A}PATCH\n"}),
    "python call": f"```tool_code\nprint(default_api.replace(file_path='/testbed/pkg/app.py',\n"
    f"  old_string={_python(OLD)},\n  new_string={_python(NEW)},))\n```",
    "edit_file": f"edit_file(path='pkg/app.py', edits=[{{'old': {OLD!r}, 'new': {NEW!r}}}])",
    "edit objects": f"edit_file('x', path='pkg/app.py', edits=[Edit(old={OLD!r}, new={NEW!r})])",
    "apply_patch call": f"apply_patch(\n{_python(V4A)}\n)",
    "dashes": f"<replace_in_file>\n<path>pkg/app.py</path>\n<diff>\n------- SEARCH\n{OLD}=======\n"
    f"{NEW}+++++++ REPLACE\n</diff>\n</replace_in_file>",
    "dashes with arrows": f"pkg/app.py\n------- SEARCH\n{OLD}=======\n{NEW}>>>>>>> REPLACE\n",
    "roo": "<apply_diff>\n<path>pkg/app.py</path>\n<diff>\n<<<<<<< SEARCH\n:start_line:5\n:end_line:6\n-------\n"
    f"{OLD}=======\n{NEW}>>>>>>> REPLACE\n</diff>\n</apply_diff>",
    "roo, one line for tags": "<apply_diff>\n<path>pkg/app.py</path>\n<diff><![CDATA[<<<<<<< SEARCH\n"
    f":start_line:5\n-------\n{OLD}=======\n{NEW}>>>>>>> REPLACE]]></diff>\n</apply_diff>",
    "inverted": f"pkg/app.py\n>>>>>>> SEARCH\n{OLD}=======\n{NEW}<<<<<<< REPLACE\n",
    "short": f"pkg/app.py\n<<< SEARCH\n{OLD}===\n{NEW}>>> REPLACE\n",
    "unnamed": f"pkg/app.py\n<<<<<<<\n{OLD}=======\n{NEW}>>>>>>>\n",
    "path in the marker": f"<<<<<<< SEARCH pkg/app.py\n{OLD}=======\n{NEW}>>>>>>> REPLACE\n".replace(
        "<<<<<<<", "<<<<"
    ),
    "roo with numbers": "<apply_diff>\n<path>pkg/app.py</path>\n<diff>\n<<<<<<< SEARCH\n:start_line:5\n-------\n"
    + "".join(f"{number} | {line}\n" for number, line in enumerate(OLD.splitlines(), 5))
    + f"=======\n{NEW}>>>>>>> REPLACE\n</diff>\n</apply_diff>",
    "conflict": f"pkg/app.py\n<<<<<<< HEAD\n{OLD}=======\n{NEW}>>>>>>> fix-size\n",
    "conflict with paths": f"```python\n<<<<<<< a/pkg/app.py\n{OLD}=======\n{NEW}>>>>>>> b/pkg/app.py\n```\n",
    "headings": f"File: pkg/app.py\nSEARCH:\n```python\n{OLD}```\nREPLACE:\n```python\n{NEW}```\nDone.",
    "headings in Markdown": f"In `pkg/app.py`:\n\n**Before:**\n\n```\n{OLD}```\n\n**After:**\n\n```\n{NEW}```\n",
    "call with arguments by position": f"str_replace('pkg/app.py', {OLD!r}, {NEW!r})",
    "whole file by position": f"write_file('pkg/app.py', {WANTED!r})",
    "elements without a call": f"<file>\n<path>pkg/app.py</path>\n<content>\n{WANTED}</content>\n</file>\n",
    "write_to_file with a fence": f"<write_to_file>\n<path>pkg/app.py</path>\n<content>\n```python\n{WANTED}```\n"
    "</content>\n</write_to_file>",
    "envelope with blanks": V4A.replace("*** End", " *** End"),
    "element of code": f'<code path="pkg/app.py">\n{WANTED}</code>\n',
    "json of paths": json.dumps({"pkg/app.py": WANTED}),
    "sentence before a fence": f"Here is the new version of pkg/app.py:\n\n```python\n{WANTED}```\n",
    "BEGIN FILE": f"BEGIN FILE: pkg/app.py\n{WANTED}END FILE\nIt swaps them.",
    "BEGIN FILE with a fence": f"BEGIN FILE pkg/app.py\n```python\n{WANTED}```\nEND FILE\n",
    "info": f"```python pkg/app.py\n{WANTED}```\n",
    "info with a colon": f"```python:pkg/app.py\n{WANTED}```\n",
    "info with attributes": f'```python {{filename="pkg/app.py"}}\n{WANTED}```\n',
    "comment": f"So:\n```python\n# filepath: pkg/app.py\n{WANTED}```\nDone.",
    "comment and a blank line": f"```py\n// pkg/app.py\n\n{WANTED}```\n",
    "path before and in a comment": f"`pkg/app.py`:\n```python\n# pkg/app.py\n{WANTED}```\n",
    "sections": f"=== pkg/app.py ===\n{WANTED}=== END ===\nIt swaps them.",
    "sections with a fence": f"### FILE: pkg/app.py ###\n```python\n{WANTED}```\nIt swaps them.",
    "sections to the end": f"--- file: pkg/app.py ---\n{WANTED}",
    "boltAction": '<boltArtifact id="x" title="Fix"><boltAction type="file" filePath="pkg/app.py">'
    f'{WANTED}</boltAction>\n<boltAction type="shell">npm test</boltAction></boltArtifact>',
    "antArtifact": f'<antArtifact identifier="a" title="pkg/app.py">\n{WANTED}</antArtifact>',
    "dyad": f'<dyad-write path="pkg/app.py" description="fix">\n```python\n{WANTED}```\n</dyad-write>',
    "here-document": f"```bash\ncat > /testbed/pkg/app.py << 'EOF'\n{WANTED}EOF\n```\n",
    "here-document with a pipe": f'cat <<"END" | tee pkg/app.py >/dev/null\n{WANTED}END\n',
    "here-document of git apply": f"git apply <<EOF\n{DIFF}EOF\n",
    "entities": f"```diff\n{html.escape(DIFF)}```\n",
    "entities in a call": html.escape(f'<invoke name="edit">\n{_xml(EDIT, INVOKE)}</invoke>'),
    "escaped line breaks": "The patch: " + json.dumps(DIFF)[1:-1],
    "damaged JSON": '{"why": "a "quoted" word", "patch": ' + json.dumps(DIFF) + "}",
    "colours": "".join(f"{RED}{line}{OFF}\n" for line in DIFF.splitlines()),
    "bare colours": "".join(f"[32m{line}[0m\n" for line in DIFF.splitlines()),
    "signature": f"```diff\ndiff --git a/pkg/app.py b/pkg/app.py\n{MISCOUNTED}-- \n2.43.0\n\n```\n",
    "signature outside of a fence": f"{MISCOUNTED}-- \n2.39.2 (Apple Git-143)\n\nThat is all.\n",
}


@pytest.mark.parametrize("form", ANSWERS)
def test_edit_in_another_form_is_understood(git: GitRepository, form: str) -> None:
    result = make_patch(ANSWERS[form].replace("/testbed/", ""), FILES)
    assert git.apply(result.patch, FILES) == {**FILES, "pkg/app.py": WANTED}, result
    assert result.status == "repaired" or form == "here-document of git apply"
    # The same answer with reasoning, and with Windows line ends, is understood alike.
    assert (
        make_patch(f"<think>\n{ANSWERS['patch']}\n</think>\n{ANSWERS[form]}".replace("/testbed/", ""), FILES)
        == result
    )


def test_new_files_are_created(git: GitRepository) -> None:
    new = "def test():\n    assert 1\n"
    edits = {"comment": f"```python\n# file: t/test_x.py\n{new}```\n", "section": f"=== t/test_x.py ===\n{new}"}
    wanted = {**FILES, "pkg/app.py": WANTED, "t/test_x.py": new}
    answers = [
        ANSWERS["comment"] + "\n" + edits["comment"],
        edits["section"] + ANSWERS["sections"],
        f"cat > t/test_x.py <<EOF\n{new}EOF\n" + ANSWERS["here-document"].replace("/testbed/", ""),
        json.dumps([EDIT, {"command": "create", "path": "t/test_x.py", "file_text": new}]),
    ]
    for answer in answers:
        result = make_patch(answer, FILES)
        assert git.apply(result.patch, FILES) == wanted, (answer, result)


REFUSED = {
    "the JSON of the edits is cut off": json.dumps(EDIT)[:-30],
    "a tool call is cut off": ANSWERS["invoke"].split('<parameter name="new_str">')[0]
    + '<parameter name="new_str">  i',
    "the file pkg/app.py is cut off": "pkg/__init__.py\n```\nx = 1\n```\npkg/app.py\n```\nimport os\n",
    "a here-document is cut off": ANSWERS["here-document"].replace("EOF\n```", ""),
    "a here-document appends to a file": "cat >> pkg/app.py <<EOF\nx = 1\nEOF\n",
    "the end of the file t/new.py is not marked": "=== t/new.py ===\nx = 1\n\nThat is all.\n",
    "looks like an excerpt": "```python\n# pkg/app.py\ndef size(a, b):\n    return b - a\n```\n",
    "changes a part of a file by its position": "<insert_content>\n<path>pkg/__init__.py</path>\n<line>1</line>\n"
    "<content>\nx = 1\n</content>\n</insert_content>",
    "has no replacement behind it": f"`pkg/app.py`\nBefore:\n```\n{OLD}```\nThat is all.\n",
    NOTHING_FOUND: "```bash\ncat <<EOF\nhello\nEOF\n```\n",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_answer_that_would_damage_files_is_refused_with_a_reason(reason: str) -> None:
    result = make_patch(REFUSED[reason], FILES)
    assert (result.status, result.patch) == ("none", "")
    assert reason.strip() in (result.reason or "")


def test_example_beside_a_patch_that_does_not_apply_is_not_the_answer() -> None:
    broken = DIFF.replace("return a - b", "return nowhere")
    for example in ("here-document", "comment", "sections"):
        assert make_patch(f"{ANSWERS[example]}\n```diff\n{broken}```\n", FILES).status in ("does_not_apply", "none")


LATER = "    return 'x'\n"


@pytest.mark.parametrize(
    "second",
    [
        f"<file>pkg/app.py</file>\n<original>\n{LATER}",
        f"Before:\n```\n{LATER}",
        f'<invoke name="edit">\n<parameter name="path">pkg/app.py</parameter>\n<parameter name="old_str">{LATER}'
        "</parameter>\n",
        f"str_replace('pkg/app.py', {LATER!r}, '    ret",
        '<file path="pkg/other.py">\nimport os\n',
    ],
)
def test_complete_edits_before_one_that_is_cut_off_are_not_the_whole_answer(second: str) -> None:
    first = {
        "<file": f"<file>pkg/app.py</file>\n<original>\n{OLD}</original>\n<patched>\n{NEW}</patched>\n",
        "Befor": ANSWERS["headings"].removesuffix("Done."),
        "<invo": ANSWERS["invoke"].removesuffix("</function_calls>"),
        "str_r": ANSWERS["call with arguments by position"] + "\n",
    }[second[:5]]
    assert make_patch(first, FILES).status == "repaired"
    result = make_patch(first + second, FILES)
    assert (result.status, "cut off" in (result.reason or "")) == ("none", True), result


def test_files_in_two_explicit_forms_are_all_written(git: GitRepository) -> None:
    answer = (
        f'<file path="pkg/app.py">\n{WANTED}</file>\n[start of pkg/__init__.py]\nx = 1\n[end of pkg/__init__.py]\n'
    )
    wanted = {**FILES, "pkg/app.py": WANTED, "pkg/__init__.py": "x = 1\n"}
    assert git.apply(make_patch(answer, FILES).patch, FILES) == wanted
    shown = "[start of a.py]\nx = 1\n[end of a.py]\n"  # in the content of a file
    answer = f'<file path="pkg/__init__.py">\n{shown}</file>\n'
    assert git.apply(make_patch(answer, FILES).patch, FILES) == {**FILES, "pkg/__init__.py": shown}


@pytest.mark.parametrize("form", [INVOKE, QWEN, GLM])
def test_blank_lines_at_the_start_of_an_argument_are_kept(git: GitRepository, form: str) -> None:
    new = "\n\n" + APP.split("\n\n\n")[1]
    old = new.removeprefix("\n")
    for before, after in ((old, new), (new, old), (new, "\n" + new)):
        files = {**FILES, "pkg/app.py": "import os\n" + before}
        edit = {"path": "pkg/app.py", "old_str": before, "new_str": after}
        result = make_patch(f"<tool_call>edit<function=edit>\n{_xml(edit, form)}</function></tool_call>", files)
        assert git.apply(result.patch, files) == {**FILES, "pkg/app.py": "import os\n" + after}, result


def test_brackets_are_not_terminal_colours(git: GitRepository) -> None:
    files = {"a.py": "x = 1\nprint('[more]')\n"}
    answer = html.escape(
        "a.py\n<<<<<<< SEARCH\nx = 1\nprint('[more]')\n=======\nx = 2\nprint('[more] &')\n>>>>>>> REPLACE\n"
    )
    assert git.apply(make_patch(answer, files).patch, files) == {"a.py": "x = 2\nprint('[more] &')\n"}


def test_code_in_prose_is_not_a_call() -> None:
    for code in (
        'write_file("a.txt", "x")',
        "text = text.replace('return a - b', 'pass')",
        f"edit({OLD!r}, {NEW!r})",
    ):
        assert make_patch(f"The test has\n```python\n{code}\n```\n", FILES).status == "none"


def test_an_escaped_marker_is_content(git: GitRepository) -> None:
    answer = ANSWERS["roo"].replace(f"{NEW}>>>", f"{NEW}\\=======\n>>>")
    result = make_patch(answer, FILES)
    assert git.apply(result.patch, FILES) == {**FILES, "pkg/app.py": WANTED.replace("b - a\n", "b - a\n=======\n")}


def test_every_occurrence_is_replaced_where_the_call_says_so(git: GitRepository) -> None:
    edit = {"file_path": "pkg/app.py", "old_string": "return", "new_string": "yield", "replace_all": True}
    result = make_patch(json.dumps(edit), FILES)
    assert git.apply(result.patch, FILES) == {**FILES, "pkg/app.py": APP.replace("return", "yield")}
    assert make_patch(json.dumps(edit | {"replace_all": False}), FILES).status == "none"


SHORT = {"v.py": "a = 1\nb = 2\n"}


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ("v.py\nSEARCH:\n```\na = 1\n```\nREPLACE:\n```\na = 3\n```\n", "a = 3\nb = 2\n"),
        ("v.py\n```\nc = 5\nd = 6\n```\n", "c = 5\nd = 6\n"),
        ("[start of v.py]\nc = 5\n[end of v.py]\n", "c = 5\n"),
        ("Change `v.py`:\n```\nb = 5\n```\n", None),
        ("In v.py it is enough to write\n```\nb = 5\nc = 6\n```\n", None),
        (json.dumps({"path": "v.py", "start_line": 2, "end_line": 2, "content": "b = 5\nc = 6\n"}), None),
    ],
)
@pytest.mark.parametrize("edit_format", [None, "whole_file"])
def test_a_short_file_is_replaced_only_as_a_whole(
    git: GitRepository, answer: str, content: str | None, edit_format: EditFormat | None
) -> None:
    result = make_patch(answer, SHORT, edit_format)
    assert git.apply(result.patch, SHORT) == (None if content is None else {"v.py": content}), result


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("    if len(a) &gt; 0 and 1 &lt; 2:", "    if len(a) > 0 and 1 < 2:"),
        ('    x = a &amp;&amp; "&quot;"', '    x = a && """'),
        ('    x = a.replace("&", " &amp; ")', '    x = a.replace("&", " &amp; ")'),
        ('    x = "a &lt; b"', '    x = "a &lt; b"'),
        ("    # it is &lt;b&gt;", "    # it is &lt;b&gt;"),
    ],
)
def test_entities_in_added_lines_are_decoded_where_they_are_operators(
    git: GitRepository, line: str, expected: str
) -> None:
    diff = f"--- a/pkg/app.py\n+++ b/pkg/app.py\n@@ -10,2 +10,3 @@\n def name():\n+{line}\n     return 'x'\n"
    result = make_patch(f"```diff\n{diff}```\n", FILES)
    assert result.status == ("applies" if line == expected else "repaired")
    assert git.apply(result.patch, FILES) == {
        **FILES, "pkg/app.py": APP.replace("def name():\n", f"def name():\n{expected}\n")
    }  # fmt: skip


def test_entities_of_a_file_are_kept(git: GitRepository) -> None:
    diff = "--- a/web/index.html\n+++ b/web/index.html\n@@ -1,3 +1,3 @@\n <p>\n-  a &lt; b\n+  a &gt; b\n </p>\n"
    for answer in (diff, f"```diff\n{html.escape(diff)}```\n"):
        result = make_patch(answer, FILES)
        assert git.apply(result.patch, FILES) == {**FILES, "web/index.html": "<p>\n  a &gt; b\n</p>\n"}


@pytest.mark.parametrize(
    "piece",
    [
        "<", "<invoke name=x>\n", '<parameter name="old_str">', "<arg_key>path</arg_key>", "<![CDATA[", "- ", "# ",
        "<<<<<<< SEARCH\n", "------- SEARCH\n", "cat > x <<EOF\n", "cat > x <<A\nA\n", '{"patch": ', "\n ", "edit(a=",
        '[{"old_str": "', "edit_file(", "edit(x='", "f(\n", "=== a.py ===\n", "```python\n# a.py\n", "&lt;", "\\\\",
        "\\n+++ ", '--- \\n+++ "', "\x1b[", "[0m", '{"edits":[', '<boltAction filePath="a.py">', "-- \n2.1\n",
        "{'a': 'b\\", "<<<<<<< HEAD\n", "SEARCH:\n```\nx\n```\n", "BEGIN FILE a.py\n", "<path>a</path>\n",
    ],
)  # fmt: skip
def test_time_is_linear_in_hostile_text(piece: str, large_size: int) -> None:
    def steps(count: int) -> int:
        return lines_executed(lambda: make_patch("old_str: input= " + piece * count, FILES))

    assert steps(800) < 14 * steps(100) + 20_000
    make_patch("old_str: " + piece * (large_size // len(piece)), FILES)
