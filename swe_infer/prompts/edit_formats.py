"""Instructions for each form of answer, with an example."""

from __future__ import annotations

from collections.abc import Mapping

from swe_infer.types import EditFormat

_DIFF = """\
Answer with one patch in the unified diff format, which `git apply` takes at the root of the repository. Keep the
context lines exactly as they are in the files. For example:

<patch>
--- a/pkg/area.py
+++ b/pkg/area.py
@@ -1,4 +1,4 @@
 def area(width, height):
-    return width + height
+    return width * height
\x20
\x20
</patch>
"""

_SEARCH_REPLACE = """\
Answer with search/replace blocks, one for each place to change. A block is the path of the file on a line of its
own, the lines to find, and the lines that replace them. Copy the lines to find exactly from the file, without line
numbers, and take enough of them to occur once in it. To create a file, leave the part to find empty. For example:

pkg/area.py
<<<<<<< SEARCH
def area(width, height):
    return width + height
=======
def area(width, height):
    return width * height
>>>>>>> REPLACE
"""

_WHOLE_FILE = """\
Answer with the whole new text of each file that you change or create, without line numbers and without leaving
anything out, between a line that starts the file and one that ends it. For example:

[start of pkg/area.py]
def area(width, height):
    return width * height
[end of pkg/area.py]
"""

_JSON_EDITS = """\
Answer with a JSON array of edits and nothing else. Each edit is an object with three strings: "path", the file;
"search", the text to find, copied exactly from the file, without line numbers, and long enough to occur once in it;
"replace", the text that takes its place. To create a file, leave "search" empty. For example:

```json
[
  {
    "path": "pkg/area.py",
    "search": "    return width + height\\n",
    "replace": "    return width * height\\n"
  }
]
```
"""

INSTRUCTIONS: Mapping[EditFormat, str] = {
    "unified_diff": _DIFF,
    "search_replace": _SEARCH_REPLACE,
    "whole_file": _WHOLE_FILE,
    "json_edits": _JSON_EDITS,
}
"""The instructions of a prompt about the form of the answer."""
