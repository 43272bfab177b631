#!/usr/bin/env bash
# Installs what Longspan needs: packages of Debian 12 or Ubuntu 24.04, and LibTorch from its Python wheel into .venv.
#
#   deploy/setup.sh            to build and run on CPUs
#   deploy/setup.sh --tests    also what tests/run.sh needs: PyTorch, transformers, PEFT, Prometheus, clang-format, clang-tidy
#   deploy/setup.sh --sanitizers    also what deploy/ci/sanitize.sh needs: clang
#   deploy/setup.sh --cuda     the CUDA flavour: cuDNN, NCCL, cuBLAS and nvcc, to compile CUDA code (no GPU needed)
#
# What is there already is left alone: a second run takes a second. Needs root or sudo only when a package is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests=false cuda=false sanitizers=false
for argument in "$@"; do
  case "$argument" in
    --tests) tests=true ;;
    --cuda) cuda=true ;;
    --sanitizers) sanitizers=true ;;
    -h | --help) sed -n '2,9p' "${BASH_SOURCE[0]}" | cut -c3-; exit 0 ;;
    *) echo "deploy/setup.sh: unknown argument '$argument'; known are --tests, --sanitizers and --cuda" >&2; exit 2 ;;
  esac
done

# ---- packages of the distribution ----
wanted() { # prints the names in deploy/packages.txt that this flavour needs
  local line
  while read -r line; do
    case "$line" in
      '' | '#'*) ;;
      'sanitizer: '*) if "$sanitizers"; then echo "${line#sanitizer: }"; fi ;;
      'test: '*) if "$tests"; then echo "${line#test: }"; fi ;;
      *) echo "$line" ;;
    esac
  done < deploy/packages.txt
}
installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
missing=()
for package in $(wanted); do installed "$package" || missing+=("$package"); done
if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get > /dev/null || { echo "deploy/setup.sh: no apt-get here; install by hand: ${missing[*]}" >&2; exit 1; }
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo > /dev/null || { echo "deploy/setup.sh: run as root, or install sudo; missing: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  echo "installing ${#missing[@]} packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi

# ---- LibTorch, and the Python packages of the tests ----
[ -x .venv/bin/python ] || { rm -rf .venv; python3 -m venv .venv; }
once() { # once NAME COMMAND...: runs COMMAND unless it succeeded before with the same words
  local stamp=".venv/.longspan-$1" words="${*:2}"
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$words" ] && return
  echo "installing $1 into .venv (once)"
  "${@:2}"
  echo "$words" > "$stamp"
}
pip=(.venv/bin/pip install --quiet --disable-pip-version-check)
# libtorch_cpu.so needs nothing of CUDA but these two libraries; torch's own list would bring 4 GB more.
if ! "$tests" && ! "$cuda"; then
  [ -f .venv/.longspan-pytorch ] ||
    once libtorch "${pip[@]}" --no-deps torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
else
  once pytorch "${pip[@]}" torch==2.11.0
fi
if "$tests"; then
  once "test-packages-$(sha256sum tests/parity/requirements.txt | cut -c1-12)" "${pip[@]}" -r tests/parity/requirements.txt
  once "checks-$(sha256sum deploy/ci/requirements.txt | cut -c1-12)" "${pip[@]}" -r deploy/ci/requirements.txt
fi
if "$cuda"; then
  once nvcc "${pip[@]}" 'cuda-toolkit[nvcc,cccl,crt,nvvm]==13.0.2'
fi
