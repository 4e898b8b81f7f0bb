#!/usr/bin/env bash
# Checks and measures the device of this machine, the most valuable first, into one folder (benchmarks/run_all.py):
#   benchmarks/run_all.sh OUT [--seconds 480] [--warm FOLDER] [STEP ...]
# PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  [ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m benchmarks.run_all "$@"
