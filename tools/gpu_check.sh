#!/usr/bin/env bash
# tools/gpu_check.sh [OPTION]... [OUT]: everything that needs a GPU, in one command and without a network. The machine
# has nvcc, g++, cmake, doctest, and Python with torch, pybind11, pytest and numpy. It builds for the GPU that is there,
# runs every C++ test and the Python tests of tests/device on it, kernels and sessions under compute-sanitizer (where
# there is one), then the benches; their table comes last, and OUT (default build/gpu) has everything as JSON and logs.
#   --no-bench    tests only
#   --cpu         a rehearsal: the same steps on a machine without a GPU, the shim and the CPU in its place, tiny sizes
#   --tree DIR    build there (default build/gpu; build/rehearsal with --cpu)
#   --dry-run     show what would be done
# PYTHON= names the Python (default python3), DOCTEST_INCLUDE_DIR= a doctest. About 8 minutes on an H100 and 16 cores.
set -euo pipefail
trap 'echo "tools/gpu_check.sh: FAILED: $BASH_COMMAND" >&2' ERR
cd "$(dirname "$0")/.."
say() { printf '== %s s: %s\n' "$SECONDS" "$*"; }
die() { printf 'tools/gpu_check.sh: %s\n' "$*" >&2; exit 1; }

dry=0 cpu=0 bench=1 tree='' out=''
while [ $# -gt 0 ]; do
  case $1 in
    --cpu) cpu=1 ;;
    --no-bench) bench=0 ;;
    --dry-run) dry=1 ;;
    --tree) [ $# -gt 1 ] || { echo "tools/gpu_check.sh: --tree needs a folder" >&2; exit 2; }; tree=$2; shift ;;
    -h | --help) sed -n '2,10s/^# //p' "$0"; exit 0 ;;
    -*) echo "tools/gpu_check.sh: got '$1', expected --cpu, --no-bench, --tree DIR or --dry-run" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
python=${PYTHON:-python3}
target=cuda
[ "$cpu" = 0 ] || target=cpu
default=build/gpu
[ "$cpu" = 0 ] || default=build/rehearsal
tree=${tree:-$default}
out=${out:-$default}
if [ "$dry" = 1 ]; then
  say "would build core, tests and Python module in $tree, for $target"
  say "would run every C++ test, the Python tests of tests/device on $target, and compute-sanitizer on both"
  [ "$bench" = 0 ] || say "would run the benches, and write kernels and streams as JSON to $out"
  exit 0
fi
"$python" -c '
import sys
from importlib.util import find_spec
sys.exit(" ".join(name for name in ("numpy", "pybind11", "pytest", "torch") if not find_spec(name)) or 0)' ||
  die "$python lacks what is named above; PYTHON= names another Python"
mkdir -p "$out"

arguments=(-DMOSAIC_CUDA=ON)
arch=''
if [ "$cpu" = 1 ]; then
  arguments=(-DMOSAIC_CUDA=OFF)
else
  # One architecture is enough here; nvidia-smi is not on every board.
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d '. ' || true)
  [ -z "$arch" ] || arguments+=(-DCMAKE_CUDA_ARCHITECTURES="$arch")
fi
say "building for $target ${arch:+(sm_$arch)}"
cmake -S . -B "$tree" "${arguments[@]}" -DMOSAIC_TESTS=ON -DMOSAIC_PYTHON=ON -DMOSAIC_WERROR=ON \
  -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
  ${DOCTEST_INCLUDE_DIR:+-DDOCTEST_INCLUDE_DIR="$DOCTEST_INCLUDE_DIR"} >"$out/cmake.log" || { cat "$out/cmake.log"; exit 1; }
cmake --build "$tree" -j "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" >"$out/build.log" || { tail -50 "$out/build.log"; exit 1; }

# The package as it would be installed: the Python files and the module beside them.
site=$out/site/mosaic_edge
rm -rf "$out/site"
mkdir -p "$site"
ln -s "$PWD"/python/mosaic_edge/* "$site"
ln -s "$(realpath "$tree")"/_core*.so "$site"
PYTHONPATH=$(realpath "$out/site")${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

"$python" -c '
import sys
from mosaic_edge import _core
row = next(row for row in _core.backends() if row["name"] == sys.argv[1])
print("== " + row["name"] + ": " + row["detail"])
sys.exit(not row["available"])' "$target" || die "$target cannot be used here; --cpu rehearses without a GPU"
# A GPU that is not found is a failure here, everywhere else it is a skip.
[ "$cpu" = 1 ] || export MOSAIC_NEEDS_CUDA=1
export MOSAIC_DEVICE=$target

# Runs one after another would take the time of the benches away: each in the background, with a log of its own.
running=() failed=0
begin() { # NAME COMMAND...
  "${@:2}" >"$out/$1.log" 2>&1 &
  running+=("$!:$1")
}
finish() {
  for one in "${running[@]}"; do
    if wait "${one%%:*}"; then
      printf '%-24s %s\n' "${one#*:}" "$(tail -5 "$out/${one#*:}.log" | grep -E 'test cases|passed' | tail -1)"
    else
      tail -60 "$out/${one#*:}.log"
      echo "tools/gpu_check.sh: FAILED: ${one#*:}; $out/${one#*:}.log has all of it" >&2
      failed=1
    fi
  done
  running=()
  [ "$failed" = 0 ] || exit 1
}

say "C++ tests; Python tests on $target"
kernels=(--source-file='*ops_*,*shim_*')
few=(--source-file='*ops_*')
if [ "$cpu" = 1 ]; then
  kernels=(--source-file='*shim_test*' -tc='*launch*') few=("${kernels[@]}")
else
  begin tests-policy "$tree/mosaic_tests" --source-file='*policy_*'
  begin tests-runtime "$tree/mosaic_tests" --source-file='*/runtime_*'
  begin tests-others "$tree/mosaic_tests" --source-file-exclude='*ops_*,*shim_*,*policy_*,*/runtime_*'
fi
begin tests-kernels "$tree/mosaic_tests" "${kernels[@]}"
begin tests-device "$python" -m pytest -q -p no:cacheprovider tests/device
finish

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -n "$sanitizer" ]; then
  say "compute-sanitizer: memcheck and racecheck, of the kernels and of sessions"
  export MOSAIC_ONLY=cuda
  [ "$cpu" = 0 ] || export MOSAIC_ONLY=shim
  for tool in memcheck racecheck; do
    begin "$tool-kernels" "$sanitizer" --tool "$tool" --error-exitcode 9 "$tree/mosaic_tests" "${few[@]}"
    begin "$tool-sessions" "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest -q -p no:cacheprovider tests/device -k sanitizer
  done
  finish
  unset MOSAIC_ONLY
else
  say "no compute-sanitizer here: memcheck and racecheck were not run"
fi
[ "$bench" = 1 ] || { say "all passed; no benches were asked for"; exit 0; }
say "benches"
rehearse=()
[ "$cpu" = 0 ] || rehearse=(--rehearse)
"$python" tools/bench/gpu.py --bench "$tree/kernels_bench" --json "$out/gpu.json" "${rehearse[@]}"
say "all passed; $out/gpu.json"
