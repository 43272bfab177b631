#!/usr/bin/env bash
# Fuzzes the formats that come from outside, under AddressSanitizer and UBSan: deploy/ci/fuzz.sh [SECONDS each] [FUZZER...]
# What it learned stays in build/fuzz/corpus for the next run; an input that crashes is kept in build/fuzz/crashes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seconds=${1:-60}
shift || true
fuzzers=("$@")
[ "${#fuzzers[@]}" -gt 0 ] ||
  fuzzers=(safetensors_fuzzer model_config_fuzzer tokenizer_fuzzer sentencepiece_fuzzer corpus_fuzzer job_file_fuzzer
    trainer_lines_fuzzer)
deploy/setup.sh --sanitizers
cmake --preset fuzz > /dev/null
cmake --build --preset fuzz --target "${fuzzers[@]}" -- -j "$(nproc)"
python3 tests/fuzz/make_seeds.py build/fuzz/seeds
export ASAN_OPTIONS="abort_on_error=1:external_symbolizer_path=/usr/bin/addr2line" UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1"
failed=()
for fuzzer in "${fuzzers[@]}"; do
  mkdir -p "build/fuzz/corpus/$fuzzer" build/fuzz/crashes
  # A length and a memory limit that a real file of the format would hardly reach; a slow input is a finding too.
  "build/fuzz/bin/$fuzzer" -max_total_time="$seconds" -max_len=16384 -rss_limit_mb=4096 -timeout=20 -detect_leaks=0 \
    -print_final_stats=0 -verbosity=0 -artifact_prefix="build/fuzz/crashes/$fuzzer-" "build/fuzz/corpus/$fuzzer" "build/fuzz/seeds/$fuzzer" ||
    failed+=("$fuzzer")
  echo "$fuzzer: $seconds s, $(find "build/fuzz/corpus/$fuzzer" -type f | wc -l) inputs kept"
done
[ "${#failed[@]}" = 0 ] || { echo "crashed: ${failed[*]}; the inputs are in build/fuzz/crashes" >&2; exit 1; }
