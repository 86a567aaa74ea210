#!/usr/bin/env bash
# Make or reuse the environment and run the tests. Usage: bash tools/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh

# One thread a process: two workers on two cores, and sums in one order
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
exec "$MMDIFFREP_PYTHON" -m pytest -n 2 --dist loadfile "$@"
