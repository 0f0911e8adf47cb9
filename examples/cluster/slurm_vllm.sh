#!/usr/bin/env bash
# A model that needs all GPUs of a node: an array of Slurm jobs, each with a vLLM server of its own for one shard.
#
#   slurm_vllm.sh [OPTIONS OF SBATCH --] model=llama-3.3-70b provider.executable=/shared/vllm/bin/vllm
#
# TENSOR_PARALLEL is the number of GPUs of a node. The rest is as in slurm_array.sh, which must be in the same folder.
set -euo pipefail
gpus=${TENSOR_PARALLEL:-8}
export RUN=${RUN:-outputs/slurm_vllm}
[[ " $* " == *" -- "* ]] || set -- -- "$@"
exec "$(dirname "$0")/slurm_array.sh" --job-name=swe-infer-vllm --gres="gpu:$gpus" --cpus-per-task=64 \
  "$@" provider=vllm provider.tensor_parallel_size="$gpus"
