#!/usr/bin/env bash
# Runs the kernels' tests and the benchmarks on this machine, and writes logs, JSON, a table and plots into one folder:
#   benchmarks/run_all.sh OUT [PHASE ...]
# The phases are, in this order, tests attention lora backbones hybrid_loss dispatch statistics decode: all of them by
# default (the last two are about the CPU, and left out where there is a GPU), or those named. "run_all.sh OUT tests" runs
# the tests alone, "run_all.sh OUT lora attention" those two with all the time for them.
# BGS_BENCH_SECONDS (480) is the time for all of it, divided by weight; what a phase leaves over is the later ones'.
# PYTHON chooses the interpreter. A phase that fails stops no other; the exit status is that of the first that failed.
set -uo pipefail
phases=(tests attention lora backbones hybrid_loss dispatch statistics decode)
usage() {
  echo "usage: benchmarks/run_all.sh OUT [PHASE ...], a phase being one of ${phases[*]}" >&2
  exit 2
}
[ $# -ge 1 ] || usage
for phase in "${@:2}"; do
  [[ " ${phases[*]} " == *" $phase "* ]] || usage
done
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
total=${BGS_BENCH_SECONDS:-480}
reserve=20 # for the table, and for what a benchmark takes to start
status=0
gpu=false
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' && gpu=true

chosen=()
for phase in "${phases[@]}"; do
  if [ $# -eq 1 ]; then
    ! $gpu || [[ $phase != statistics && $phase != decode ]] || continue
    chosen+=("$phase")
  elif [[ " ${*:2} " == *" $phase "* ]]; then
    chosen+=("$phase")
  fi
done

weight() { # PHASE
  case $1 in
    tests) echo 9 ;;
    backbones) echo 5 ;;
    attention | lora) echo 4 ;;
    hybrid_loss | statistics) echo 3 ;;
    decode) echo 2 ;;
    dispatch) echo 1 ;;
  esac
}

failed() { # NAME STATUS
  echo "$1: exit status $2" | tee -a "$out/benchmarks.log"
  [ "$status" -ne 0 ] || status=$2
}

native() { # builds csrc where the package was not installed but is run from its folder, for the GPU that is here
  local architectures=()
  ! $gpu || architectures=(-DCMAKE_CUDA_ARCHITECTURES=native)
  cmake -S . -B build/benchmarks -DCMAKE_BUILD_TYPE=Release -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" \
    -DPython_EXECUTABLE="$(command -v "$PYTHON")" "${architectures[@]}" && cmake --build build/benchmarks -j "$(nproc)" &&
    cp build/benchmarks/_native*.so bgs_kernels/
}

parallel=()
"$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n "$(($(nproc) < 16 ? $(nproc) : 16))" --dist worksteal)

tests() { # SECONDS
  # what is compiled for GPUs that need not be here needs none
  OMP_NUM_THREADS=1 timeout -k 5 "$1" "$PYTHON" -m pytest tests/bgs_kernels -q --maxfail=50 --no-header \
    --ignore-glob '*/test_compile_ahead*.py' --ignore-glob '*/test_native_*build.py' "${parallel[@]}" >"$out/tests.log" 2>&1 || failed tests $?
  tail -n 3 "$out/tests.log"
  $gpu || return
  # csrc runs on both kinds of device: its tests once more with tensors on the GPU
  BGS_TEST_NATIVE_DEVICE=cuda OMP_NUM_THREADS=1 timeout -k 5 60 "$PYTHON" -m pytest tests/bgs_kernels/test_fused_parity.py \
    tests/bgs_kernels/test_hybrid_loss.py tests/bgs_kernels/test_rank.py -k native -q --no-header "${parallel[@]}" \
    >"$out/tests_native.log" 2>&1 || failed "tests of csrc on the GPU" $?
  tail -n 3 "$out/tests_native.log"
}

benchmark() { # NAME SECONDS
  # the benchmark keeps to its share itself; the timeout is for one that hangs
  timeout -k 5 $(($2 + 20)) "$PYTHON" -m "benchmarks.bench_$1" --out "$out/$1.json" --seconds "$2" \
    2> >(tee -a "$out/benchmarks.log" >&2) || failed "$1" $?
}

rm -f "$out/benchmarks.log"
if ! "$PYTHON" -c 'import bgs_kernels._native' 2>/dev/null; then
  native >"$out/build.log" 2>&1 || failed "building csrc, without which backend native is left out" $?
fi
weights=0
for phase in "${chosen[@]}"; do
  weights=$((weights + $(weight "$phase")))
done
for phase in "${chosen[@]}"; do
  left=$((total - reserve - SECONDS))
  share=$(((left > 0 ? left : 0) * $(weight "$phase") / weights))
  weights=$((weights - $(weight "$phase")))
  if [ "$phase" = tests ]; then
    tests $((share > 1 ? share : 1)) # 0 would be no limit
  else
    benchmark "$phase" "$share"
  fi
done

if compgen -G "$out/*.json" >/dev/null; then
  "$PYTHON" -m benchmarks.table "$out" || failed table $?
fi
echo "$SECONDS s; results in $out"
exit "$status"
