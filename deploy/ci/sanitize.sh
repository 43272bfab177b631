#!/usr/bin/env bash
# Builds the service (no LibTorch) under a sanitizer and runs its tests: deploy/ci/sanitize.sh address | thread
# `address` includes UndefinedBehaviorSanitizer. Suppressions, each with its reason, are in deploy/ci/tsan.supp.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
preset=${1:?address or thread}
deploy/setup.sh --sanitizers
cmake --preset "$preset" > /dev/null
cmake --build --preset "$preset" -- -j "$(nproc)"
export ASAN_OPTIONS="detect_leaks=1:abort_on_error=1:strict_string_checks=1"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1"
export TSAN_OPTIONS="halt_on_error=1:second_deadlock_stack=1:ignore_noninstrumented_modules=1:external_symbolizer_path=/usr/bin/addr2line:suppressions=$PWD/deploy/ci/tsan.supp"
ctest --test-dir "build/$preset" -j 2 --output-on-failure --no-tests=error -LE no-sanitizer
