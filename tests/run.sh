#!/usr/bin/env bash
# All tests: sets up the environment when there is none, then runs pytest. Arguments are passed on to pytest.
#   bash tests/run.sh [-k EXPRESSION ...]
# Variables: VENV (.venv beside export_video.sh), PYTHON (python3).
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv}
if [ ! -x "$VENV/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$VENV"
fi
if ! "$VENV/bin/python" "$ROOT/qwen_vl_axera/chain/requirements.py" "$ROOT/requirements.txt" "$ROOT/requirements-dev.txt"; then
    "$VENV/bin/python" -m pip install --quiet -r "$ROOT/requirements.txt" -r "$ROOT/requirements-dev.txt"
fi
cd -- "$ROOT"
# One worker a core, one thread a worker: most tests start processes and wait for imports. Files in their own order:
# those with the most tests first would leave the few slow ones of the chain to one worker at the end.
export OMP_NUM_THREADS=1
exec "$VENV/bin/python" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
