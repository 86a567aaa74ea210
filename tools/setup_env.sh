#!/usr/bin/env bash
# Make or reuse the environment with the tested versions: .venv, or the folder named by MMDIFFREP_VENV.
# Usage: bash tools/setup_env.sh      or, in a script: source tools/setup_env.sh  (then $MMDIFFREP_PYTHON is its Python)
# Quick when nothing changed; the first time it downloads about 3 GB, most of it torch.

_mmdiffrep_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_mmdiffrep_find_python() {  # prints the first Python >= 3.10 that can make environments
    local name
    for name in "${PYTHON:-}" python3.11 python3.12 python3 python3.10 python3.13 python; do
        [ -n "$name" ] || continue
        "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 || continue
        command -v "$name"
        return 0
    done
    echo "error: no Python >= 3.10 with venv was found on PATH (tried python3.11, python3.12, python3, ...)." >&2
    echo "       Install Python 3.11, or name one: PYTHON=/path/to/python3.11 bash tools/setup_env.sh" >&2
    return 1
}

_mmdiffrep_stamp() {  # changes when what is to be installed, or where the checkout lies, changes
    { cat "$_mmdiffrep_root/requirements/constraints.txt" "$_mmdiffrep_root/setup.py" \
          "$_mmdiffrep_root/pyproject.toml" "${BASH_SOURCE[0]}"; echo "$_mmdiffrep_root"; } | cksum
}

_mmdiffrep_has_compiled_mmcv() {
    "$1" - <<'PYTHON' 2>/dev/null
import importlib.util, pathlib, sys
spec = importlib.util.find_spec('mmcv')
sys.exit(not (spec and list(pathlib.Path(spec.origin).parent.glob('_ext.*'))))
PYTHON
}

_mmdiffrep_install() {
    local venv=$1 python=$2 constraints="$_mmdiffrep_root/requirements/constraints.txt" base
    local pip=("$python" -m pip --disable-pip-version-check)
    if ! [ -x "$python" ]; then
        base=$(_mmdiffrep_find_python) || return 1
        echo "[setup 1/4] making $venv with $("$base" --version) ($base)"
        "$base" -m venv "$venv" || return 1
    else
        echo "[setup 1/4] reusing $venv ($("$python" --version))"
    fi
    echo '[setup 2/4] torch, mmengine, mmseg, mmdet, diffusers, open_clip (the first time some minutes)'
    "${pip[@]}" install -c "$constraints" setuptools wheel || return 1
    local extras=all,tests,lite
    _mmdiffrep_has_compiled_mmcv "$python" && extras=all,tests  # mmcv-lite would overwrite it
    "${pip[@]}" install -c "$constraints" -e "$_mmdiffrep_root[$extras]" || return 1
    echo '[setup 3/4] panopticapi'
    "${pip[@]}" install -c "$constraints" --no-deps panopticapi-lite || return 1
    echo '[setup 4/4] checking'
    "$python" -m mmdiffrep || return 1
}

_mmdiffrep_setup() {
    local venv=${MMDIFFREP_VENV:-$_mmdiffrep_root/.venv} stamp
    case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
    stamp=$(_mmdiffrep_stamp)
    MMDIFFREP_PYTHON=$venv/bin/python
    export MMDIFFREP_PYTHON
    if [ -x "$MMDIFFREP_PYTHON" ] && [ "$(cat "$venv/.mmdiffrep" 2>/dev/null)" = "$stamp" ]; then
        echo "[setup] $venv is up to date"
        return 0
    fi
    if ! _mmdiffrep_install "$venv" "$MMDIFFREP_PYTHON"; then
        echo "error: the environment in $venv could not be made; see above. Running this again continues." >&2
        return 1
    fi
    echo "$stamp" >"$venv/.mmdiffrep"
}

_mmdiffrep_setup || { [ "${BASH_SOURCE[0]}" = "$0" ] && exit 1; return 1; }
