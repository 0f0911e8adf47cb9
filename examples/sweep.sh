#!/usr/bin/env bash
# A sweep: one run for each temperature, then their comparison. The bundled model and instances; no network, no key.
# Arguments are added to the command: examples/sweep.sh dataset.limit=4
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)

python -m swe_infer -m --config-dir "$examples/conf" experiment=two_temperatures tracker=none "$@"
