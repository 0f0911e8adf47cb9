#!/usr/bin/env bash
# Your own provider: gateway_provider.py and conf/provider/gateway.yaml, outside the package.
# The first argument is the URL; further arguments are added to the command:
#   GATEWAY_API_KEY=… examples/own_provider.sh http://127.0.0.1:8000/v1 dataset.limit=4
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)

export PYTHONPATH="$examples${PYTHONPATH:+:$PYTHONPATH}" # makes gateway_provider importable
python -m swe_infer --config-dir "$examples/conf" tracker=none \
  model=api model.name=my-model model.pricing=unknown provider=gateway "provider.base_url=$1" "${@:2}"
