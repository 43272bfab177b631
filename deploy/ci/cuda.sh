#!/usr/bin/env bash
# Compiles everything that runs on GPUs: the kernels, the trainer, and the tests and benchmarks that need one. None is run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
deploy/setup.sh --tests --cuda
cmake --preset cuda > /dev/null
cmake --build --preset cuda --target longspan-trainer attention_gpu_test attention_parts_gpu_test device_gpu_test kernels_gpu_test model_gpu_test parallel_gpu_test longspan-kernel-bench -- -j "$(nproc)"
