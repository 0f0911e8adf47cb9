#!/usr/bin/env bash
# Compares two runs, greedy and sampled. The bundled model and instances; no network, no key.
# Arguments are added to both runs: examples/compare.sh dataset.limit=4
set -euo pipefail

# The last line on standard output of a run is its directory.
greedy=$(python -m swe_infer tracker=none decoding=greedy "$@" | tail -n 1)
sampled=$(python -m swe_infer tracker=none decoding=sample decoding.temperature=0.8 decoding.seed=0 "$@" | tail -n 1)

python -m swe_infer.compare "$greedy" "$sampled" --html comparison.html --json comparison.json
