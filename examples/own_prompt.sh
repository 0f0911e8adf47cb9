#!/usr/bin/env bash
# A prompt of your own: the template prompt.jinja against SWE-bench's style-3, both with the files of the gold patches.
# The bundled model and instances; no network, no key.
# Arguments are added to both runs: examples/own_prompt.sh dataset.limit=4
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)

# The last line on standard output of a run is its directory.
template=(prompt=template "prompt.template=$examples/prompt.jinja")
own=$(python -m swe_infer tracker=none context=oracle "${template[@]}" "$@" | tail -n 1)
style3=$(python -m swe_infer tracker=none context=oracle prompt=style3 "$@" | tail -n 1)

python -m swe_infer.compare "$own" "$style3" --json comparison.json
