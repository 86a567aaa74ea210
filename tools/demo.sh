#!/usr/bin/env bash
# From nothing to pictures segmented in any words: makes or reuses the environment, then runs tools/demo.py.
# Usage: bash tools/demo.sh [--out FOLDER] [--iters N]      Safe to repeat.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh

export TOKENIZERS_PARALLELISM=false
exec "$MMDIFFREP_PYTHON" -u tools/demo.py "$@"
