#!/usr/bin/env bash
# Evaluate in several processes of one machine: GPUs, or on a machine without any, CPU processes (gloo).
# Usage: bash tools/dist_test.sh CONFIG CHECKPOINT NUMBER [tools/test.py arguments]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT are read from the environment.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '3s/^# //p' "$0" >&2; exit 2; }
config=$1 checkpoint=$2 processes=$3
shift 3
exec "${MMDIFFREP_PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
