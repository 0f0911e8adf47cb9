#!/usr/bin/env bash
# A model that needs all GPUs of a node, on a Ray cluster: each shard is a task with a vLLM server of its own. On a node
# of the cluster, in a folder that the nodes share:
#
#   vllm_on_ray.sh model=llama-3.3-70b provider.executable=/shared/vllm/bin/vllm
#
# TENSOR_PARALLEL is the number of GPUs of a node, SHARDS the number of tasks; RUN=DIR names the folder of the results.
# The same command resumes what is missing. See docs/scale.md.
set -euo pipefail
gpus=${TENSOR_PARALLEL:-8}
shards=${SHARDS:-8}
exec python -m swe_infer -m hydra/launcher=ray hydra.launcher.ray.init.address=auto \
  hydra.launcher.ray.remote.num_gpus="$gpus" provider=vllm provider.tensor_parallel_size="$gpus" \
  shard.count="$shards" "shard.index=range(0,$shards)" output_dir="${RUN:-outputs/vllm_on_ray}" "$@"
