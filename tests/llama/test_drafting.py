"""What the drafters draft, and that no output breaks them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swe_infer.llama.drafting import Drafter, SharedPrompts, SharedSuffixes, drafter_of
from swe_infer.types import DrafterKind
from tests.llama.drafts import CALENDAR, PROMPT, BpeCodec, DraftRun, follow, numbered, source_of

CODEC = BpeCodec()
PROMPT_IDS = CODEC.encode_text(PROMPT)

BLANK = " "
PATCH = f"""<patch>
diff --git a/office/calendar.py b/office/calendar.py
--- a/office/calendar.py
+++ b/office/calendar.py
@@ -12,6 +12,8 @@ def __init__(self, owner):
{BLANK}
     def add(self, start, end, title):
         \"\"\"Enter an appointment.\"\"\"
+        if end < start:
+            raise ValueError("the appointment ends before it starts")
         self.appointments.append((start, end, title))
         self.appointments.sort()
{BLANK}
@@ -27,6 +29,6 @@ def next(self, now=None):
         \"\"\"The first appointment that has not begun.\"\"\"
         now = now or datetime.datetime.now()
         for start, _, title in self.appointments:
-            if start > now:
+            if start >= now:
                 return title
         return None
diff --git a/office/report.py b/office/report.py
--- a/office/report.py
+++ b/office/report.py
@@ -1,5 +1,5 @@
 def render(calendar):
     lines = [calendar.owner]
-    for start, end, title in calendar.appointments:
+    for start, _, title in calendar.appointments:
         lines.append(f"{{start:%H:%M}} {{title}}")
     return "\\n".join(lines)

</patch>
"""


def drafter(kind: DrafterKind = "diff", prompt: str = PROMPT, shared: SharedSuffixes | None = None) -> Drafter:
    return drafter_of(kind, CODEC, shared or SharedSuffixes(CODEC.encode_text(prompt), source_of(prompt)))


def run_draft(
    output: str, kind: DrafterKind = "diff", prompt: str = PROMPT, max_accepted: int | None = None
) -> DraftRun:
    return follow(drafter(kind, prompt), CODEC, output, max_accepted=max_accepted)


@pytest.fixture(scope="module")
def token_by_token() -> DraftRun:
    """Drafts before every single token of the patch."""
    return run_draft(PATCH, max_accepted=1)


def test_a_patch_takes_fewer_steps_than_with_suffix_drafts() -> None:
    assert run_draft(PATCH).rate > 1.5 * run_draft(PATCH, "suffix").rate > 3.0


@pytest.mark.parametrize(
    ("before", "draft"),
    [
        ("<patch>\n", "diff --git a/office/calendar.py b/office/calendar.py\n--- a/office/calendar.py\n+++ b/off"),
        (
            "@@ -12,6 +12,8",
            ' @@ def __init__(self, owner):\n \n     def add(self, start, end, title):\n         """En',
        ),
        ("         self.appointments.sort()\n \n@@ -27", ",7 +29,7 @@ def next(self, now=None):"),
        (
            "         for start, _, title in self.appointments:\n",
            "-            if start > now:\n+            if start",
        ),
        ("+    for start, _,", " title in calendar.appointments:\n         lines.append("),
        (
            "         return None\ndiff",
            " --git a/office/report.py b/office/report.py\n--- a/office/report.py\n+++ b/o",
        ),
        ('     return "\\n".join(lines)\n', "\n</patch>\n"),
    ],
    ids=[
        "the file that the issue names comes first",
        "heading and context come from the file, at the hunk's line",
        "the new side's line follows from the hunk before",
        "a removed line, and the added one that resembles it",
        "a name that replaces a name",
        "the next file of the prompt",
        "the end of the patch, after the last file",
    ],
)
def test_drafted_continuations(token_by_token: DraftRun, before: str, draft: str) -> None:
    found = token_by_token.after(before)
    assert found.startswith(draft) or (draft.startswith(found) and len(found) > 20)


def test_a_path_is_completed_from_any_of_its_tokens() -> None:
    ids = CODEC.encode_text(
        "<patch>\ndiff --git a/office/report.py b/office/report.py\n--- a/office/report.py\n+++ b/off"
    )
    start = len(CODEC.encode_text("<patch>\ndiff --git a/office/report"))
    for at in range(start, len(ids)):
        made = drafter()
        made.extend(ids[:at])
        assert made.draft(len(ids) - at)[:-1] == ids[at:-1]


def test_a_separate_newline_token_excludes_an_indented_line() -> None:
    """If newline and indentation form one token, a model that wrote only the newline continues with a sign or
    header."""
    made = drafter()
    hunk = PATCH[: PATCH.index("+        if end")]
    ids = CODEC.encode_text(hunk + "+")
    assert CODEC.decode(ids[-2:]) == "\n+"
    made.extend(ids[:-1])
    assert CODEC.decode(made.draft(4)).startswith("+")


def test_a_wrong_line_number_is_noticed_and_the_place_found_by_its_text() -> None:
    wrong = PATCH.replace("@@ -27,6 +29,6 @@ def next(self, now=None):", "@@ -18,6 +20,6 @@ def conflicts(self):")
    found = run_draft(wrong, max_accepted=1)
    assert found.after("         now = now or datetime.datetime.now()\n").startswith("         for start, _, title")


@pytest.mark.parametrize("counts", ["-12,9 +12,9", "-12,4 +12,5"])
def test_a_hunk_with_wrong_counts_is_drafted_with_few_more_steps(counts: str) -> None:
    wrong = PATCH.replace("-12,6 +12,8", counts)
    assert run_draft(wrong).steps < run_draft(PATCH).steps + 12


def test_a_smaller_context_is_learned_from_the_first_hunk() -> None:
    head = "--- a/office/calendar.py\n+++ b/office/calendar.py\n@@ -10,2 +10,3 @@\n         self.owner = owner\n"
    output = head + "+        self.zone = None\n         self.appointments = []\n@@ -29,3"
    found = run_draft(output, max_accepted=1)
    assert found.after("         self.owner = owner\n").startswith("+")
    assert found.after("@@ -29").startswith(",3 +30,3 @@")


def test_a_new_file() -> None:
    output = (
        "diff --git a/office/zone.py b/office/zone.py\nnew file mode 100644\n--- /dev/null\n+++ b/office/zone.py\n"
    )
    found = run_draft(output, max_accepted=1)
    assert found.after("diff --git a/office/zone.py").startswith(" b/office/zone.py\n")
    assert found.after("new file mode 100644\n").startswith("--- /dev/null\n+++ b/office/zone.py\n@@ -0,0 +1,")


def test_a_word_of_the_issue_is_completed_from_its_beginning() -> None:
    prompt = PROMPT.replace("Raise ValueError", "Raise ReversedAppointmentError")
    made = drafter(prompt=prompt)
    ids = CODEC.encode_text(PATCH[: PATCH.index("ValueError(")] + "Reversed")
    made.extend(ids)
    assert CODEC.decode(made.draft(8)).startswith("AppointmentError")


def test_other_samples_of_a_prompt_are_drafted_from() -> None:
    prompts = SharedPrompts()
    for kind in ("diff", "suffix"):
        shared = prompts.get(PROMPT_IDS, source_of(PROMPT))
        first = follow(drafter(kind, shared=shared), CODEC, PATCH)
        shared.add_output(CODEC.encode_text(PATCH), PATCH)
        again = follow(drafter(kind, shared=prompts.get(PROMPT_IDS, source_of(PROMPT))), CODEC, PATCH)
        assert again.steps < first.steps
        prompts = SharedPrompts()


def test_earlier_outputs_are_bounded() -> None:
    shared = SharedSuffixes(PROMPT_IDS, source_of(PROMPT), most_tokens=100)
    follow(drafter("suffix", shared=shared), CODEC, PATCH)
    for number in range(50):
        shared.add_output([number] * 30, f"+ {number}")
        assert len(shared.output_tokens.tokens) <= 100
        assert shared.output_tokens.tokens[-1] == number


def test_prompts_are_forgotten_in_the_order_of_their_last_use_and_outputs_after_indexes() -> None:
    prompts = SharedPrompts(most_prompts=2, most_tokens=100)
    first, second = prompts.get([1] * 60), prompts.get([2] * 60)
    first.add_output([5, 6, 7], "+ a")
    assert first.prompt_tokens.tokens
    prompts.get([2] * 60)
    assert "prompt_tokens" not in vars(first)
    assert prompts.get([1] * 60) is first
    assert first.output_tokens.tokens == [5, 6, 7]
    prompts.get([3])
    assert prompts.get([2] * 60) is not second


def test_drafts_never_contain_line_numbers_of_the_prompt(token_by_token: DraftRun) -> None:
    lines = [f"{number} {line}" for number, line in enumerate(CALENDAR.split("\n"), 1) if line.strip()]
    for _, draft in token_by_token.drafts:
        assert not any(line in draft for line in lines)


def test_drafting_has_no_side_effects() -> None:
    ids = CODEC.encode_text(PATCH)
    asked, silent = drafter(), drafter()
    for token in ids:
        asked.draft(32)
        asked.draft(3)
        asked.extend([token])
        silent.extend([token])
    assert asked.draft(32) == silent.draft(32)


@pytest.mark.parametrize("kind", ["diff", "suffix"])
def test_tokens_may_arrive_in_any_portions(kind: DrafterKind) -> None:
    ids = CODEC.encode_text(PATCH)[:150]
    one, whole = drafter(kind), drafter(kind)
    for token in ids:
        one.extend([token])
    whole.extend(ids)
    assert one.draft(32) == whole.draft(32)


PIECES = st.sampled_from(
    [
        *("@@ -", "@@ -3,7 +3,", "@@ -9 +9 @@", "@@ -0,0 +1,2 @@\n", "\n", "+", "-", " ", "\\ No newline"),
        *("--- a/office/calendar.py\n", "+++ b/x\n", "diff --git a/", "diff --git a/a b b/a b\n", "<patch>\n"),
        *("index 12..34 100644\n", "</patch>", "```diff\n", "        self.owner = owner\n"),
        *("é", "\ud7ff", "🙂", "\r\n", "\t", "0" * 30, "\x00", "ﬁ", "٣"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES | st.text(max_size=12), max_size=25), st.integers(0, 9))
def test_no_output_breaks_a_drafter(pieces: list[str], limit: int) -> None:
    ids = CODEC.encode_text("".join(pieces))
    for kind in ("diff", "suffix"):
        made = drafter(kind)
        for token in ids:
            draft = made.draft(limit)
            assert len(draft) <= limit
            assert all(0 <= token < CODEC.size for token in draft)
            made.extend([token])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, CODEC.size - 1), max_size=30))
def test_random_tokens_do_not_break_a_drafter(ids: list[int]) -> None:
    made = drafter()
    for token in ids:
        made.draft(8)
        made.extend([token])


@pytest.mark.parametrize("prompt", ["", "[start of a.py]\n[end of a.py]\n", numbered("a.py", ""), "no files\n"])
def test_prompts_with_nothing_to_copy(prompt: str) -> None:
    found = follow(drafter(prompt=prompt), CODEC, PATCH)
    assert found.rate >= 1.0
