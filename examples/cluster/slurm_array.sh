#!/usr/bin/env bash
# One run as an array of Slurm jobs: each has an engine of its own and answers one shard; a last job merges the shards.
# On the login node, in a folder that the nodes share:
#
#   slurm_array.sh [OPTIONS OF SBATCH --] model=llama model.path=/shared/MODEL dataset=swe_bench_lite
#
# RUN=DIR names the folder of the results. The same command resumes what is missing. See docs/scale.md.
#
#SBATCH --job-name=swe-infer
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
export RUN=${RUN:-outputs/slurm_array}

if [[ -z ${SLURM_ARRAY_TASK_ID-} ]]; then # on the login node
  options=()
  if [[ " $* " == *" -- "* ]]; then
    while [[ $1 != -- ]]; do
      options+=("$1")
      shift
    done
    shift
  fi
  array=$(sbatch --parsable "${options[@]}" "$0" "$@")
  # shellcheck disable=SC2016 # expanded in the job
  merge=$(sbatch --parsable --job-name=swe-infer-merge --dependency="afterok:$array" --kill-on-invalid-dep=yes \
    --output=%x-%j.log --wrap 'python -m swe_infer.merge "$RUN/merged" "$RUN"/shard-*')
  echo "jobs $array (shards) and $merge (merge)"
  exit
fi

# On a node. Activate the environment here if sbatch does not pass it on: source /shared/venv/bin/activate
python -m swe_infer "$@" output_dir="$RUN/shard-$SLURM_ARRAY_TASK_ID" \
  shard.count="$SLURM_ARRAY_TASK_COUNT" shard.index="$SLURM_ARRAY_TASK_ID" &
run=$! limit='' status=0
trap 'limit=reached; kill -TERM "$run"' USR1 # three minutes before the time limit
wait "$run" || status=$?
if [[ $limit ]]; then
  status=0
  wait "$run" || status=$? # it finishes the requests in flight
  ((status == 0)) || scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
