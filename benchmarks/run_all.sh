#!/usr/bin/env bash
# Runs the kernels' tests and every benchmark on this machine, and writes logs, JSON, a table and plots into one folder:
#   benchmarks/run_all.sh OUT
# BGS_BENCH_SECONDS (480) is the time for all of it: the tests get at most 180 s, the benchmarks share what is left.
# PYTHON chooses the interpreter. A step that fails stops no other; the exit status is that of the first that failed.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/run_all.sh OUT" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
total=${BGS_BENCH_SECONDS:-480}
tests=$((total * 3 / 8 < 180 ? total * 3 / 8 : 180))
reserve=15 # for the table
status=0

failed() { # NAME STATUS
  echo "$1: exit status $2" | tee -a "$out/benchmarks.log"
  [ "$status" -ne 0 ] || status=$2
}

rm -f "$out/benchmarks.log"
parallel=()
"$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n "$(($(nproc) < 16 ? $(nproc) : 16))" --dist worksteal)
# what is compiled for GPUs that need not be here needs none
OMP_NUM_THREADS=1 timeout -k 5 "$tests" "$PYTHON" -m pytest tests/bgs_kernels -q --maxfail=50 --no-header \
  --ignore tests/bgs_kernels/test_compile_ahead.py "${parallel[@]}" >"$out/tests.log" 2>&1 || failed tests $?
tail -n 3 "$out/tests.log"

scripts=(benchmarks/bench_*.py)
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  # csrc runs on both kinds of device: its tests once more with tensors on the GPU
  BGS_TEST_NATIVE_DEVICE=cuda OMP_NUM_THREADS=1 timeout -k 5 60 "$PYTHON" -m pytest tests/bgs_kernels/test_fused_parity.py \
    tests/bgs_kernels/test_hybrid_loss.py tests/bgs_kernels/test_rank.py -k native -q --no-header "${parallel[@]}" \
    >"$out/tests_native.log" 2>&1 || failed "tests of csrc on the GPU" $?
  tail -n 3 "$out/tests_native.log"
  scripts=(benchmarks/bench_dispatch.py benchmarks/bench_hybrid_loss.py) # the others are about the CPU
fi
left=${#scripts[@]}
for script in "${scripts[@]}"; do
  name=$(basename "$script" .py)
  share=$(((total - reserve - SECONDS) / left))
  left=$((left - 1))
  [ "$name" != bench_dispatch ] || [ "$share" -lt 40 ] || share=40
  # the benchmark keeps to its share itself; the timeout is for one that hangs
  timeout -k 5 $((share + 20)) "$PYTHON" -m "benchmarks.$name" --out "$out/${name#bench_}.json" --seconds "$share" \
    2> >(tee -a "$out/benchmarks.log" >&2) || failed "$name" $?
done

"$PYTHON" -m benchmarks.table "$out" || failed table $?
echo "$SECONDS s; results in $out"
exit "$status"
