#!/usr/bin/env bash
# A Ray cluster on the nodes of a Slurm job, and one command that uses it. On the login node, in a folder that the nodes
# share:
#
#   sbatch [OPTIONS] slurm_ray.sh swe-infer runner=ray model=llama model.path=/shared/MODEL output_dir=outputs/slurm_ray
#   sbatch [OPTIONS] slurm_ray.sh ./vllm_on_ray.sh model=llama-3.3-70b
#
# The same command resumes the run. RAY_OPTIONS has further options of `ray start`. See docs/scale.md.
#
#SBATCH --job-name=swe-infer-ray
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
# Activate the environment here if sbatch does not pass it on: source /shared/venv/bin/activate

RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))') # nobody else may use this cluster
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_ADDRESS=$(hostname):${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # this is the first node of the job
export RAY_ADDRESS
node=(srun --overlap --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0)
read -ra more <<<"${RAY_OPTIONS-}"
start=(ray start "${more[@]}" --block --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats)
"${node[@]}" --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" \
  "${start[@]}" --head --port="${RAY_ADDRESS##*:}" --include-dashboard=false --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
others=$((SLURM_NNODES - 1))
if ((others > 0)); then
  # shellcheck disable=SC2016 # expanded on the other nodes
  "${node[@]}" --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" --no-kill \
    bash -c 'until "$@"; do sleep 5; done' - "${start[@]}" --address="$RAY_ADDRESS" &
fi
timeout 300 bash -c 'until ray status >/dev/null 2>&1; do sleep 2; done'

"$@" &
run=$! limit='' status=0
trap 'limit=reached; kill -TERM "$run"' USR1 # three minutes before the time limit
wait "$run" || status=$?
if [[ $limit ]]; then
  status=0
  wait "$run" || status=$? # it finishes the requests in flight
  ((status == 0)) || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
