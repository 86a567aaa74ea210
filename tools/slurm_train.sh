#!/usr/bin/env bash
# Train as a Slurm job.
# Usage: GPUS=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [tools/train.py arguments]
# Read from the environment: GPUS (8), GPUS_PER_NODE (at most 8), CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '3s/^# //p' "$0" >&2; exit 2; }
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086  SRUN_ARGS holds several words
exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${MMDIFFREP_PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
