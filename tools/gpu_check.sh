#!/usr/bin/env bash
# tools/gpu_check.sh [OUT]: everything that needs a GPU, on a machine with nvcc, g++, cmake, doctest and no network. Builds
# in build/gpu for the GPU that is there, runs the contract suite on it, then under compute-sanitizer (memcheck and
# racecheck) where there is one, then the benches; the table comes last, and OUT (default build/gpu) has it as JSON.
set -euo pipefail
trap 'echo "tools/gpu_check.sh: FAILED: $BASH_COMMAND" >&2' ERR
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
say() { printf '== %s\n' "$*"; }
mkdir -p "$out"
arguments=(-DMOSAIC_CUDA=ON -DMOSAIC_TESTS=ON -DMOSAIC_PYTHON=OFF -DMOSAIC_WERROR=ON)
# One architecture is enough here; nvidia-smi is not on every board.
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d '. ' || true)
[ -z "$arch" ] || arguments+=(-DCMAKE_CUDA_ARCHITECTURES="$arch")
say "building for ${arch:+sm_}${arch:-every GPU}"
cmake -S . -B build/gpu "${arguments[@]}" ${DOCTEST_INCLUDE_DIR:+-DDOCTEST_INCLUDE_DIR="$DOCTEST_INCLUDE_DIR"} >/dev/null
cmake --build build/gpu -j "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
say "the contract suite: CPU sets, shim and cuda"
MOSAIC_NEEDS_CUDA=1 build/gpu/mosaic_tests --source-file='*ops_*,*shim_test*'
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck; do
    say "compute-sanitizer $tool"
    MOSAIC_ONLY=cuda "$sanitizer" --tool "$tool" --error-exitcode 9 --log-file "$out/$tool.log" \
      build/gpu/mosaic_tests --source-file='*ops_*' || { cat "$out/$tool.log"; exit 9; }
  done
else
  say "no compute-sanitizer here: memcheck and racecheck were not run"
fi
say "benches"
build/gpu/kernels_bench cuda --json >"$out/kernels.json"
build/gpu/kernels_bench cuda
