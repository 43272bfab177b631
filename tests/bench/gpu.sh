#!/usr/bin/env bash
# What is measured on a GPU, in pieces that each end within some minutes and go on where the one before was cut:
#
#   tests/bench/gpu.sh kernels        the kernels beside the device's own copy of memory -> results/kernels.json
#   tests/bench/gpu.sh CONTEXT...     rows of the speed table, beside transformers + PEFT -> results/gpu.json
#
# From a build with the preset cuda (LONGSPAN_BIN_DIR, default build/cuda/bin). PYTHON: with torch, transformers and peft.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export LONGSPAN_BIN_DIR=${LONGSPAN_BIN_DIR:-$PWD/build/cuda/bin}
python=${PYTHON:-.venv/bin/python}
if [ $# = 0 ] || [ "$1" = --help ]; then
  sed -n '2,7p' "${BASH_SOURCE[0]}" | cut -c3-
  exit 2
fi
if [ "$1" = kernels ]; then
  mkdir -p tests/bench/results
  "$LONGSPAN_BIN_DIR/longspan-kernel-bench" --json > tests/bench/results/kernels.json.partial
  mv tests/bench/results/kernels.json.partial tests/bench/results/kernels.json
  "$LONGSPAN_BIN_DIR/longspan-kernel-bench"
  exit
fi
"$python" tests/bench/gpu.py --contexts "$@"
