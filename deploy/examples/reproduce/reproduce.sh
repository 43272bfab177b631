#!/usr/bin/env bash
# The two central tables of the LongLoRA paper (arXiv:2309.12307, Tables 1 and 2) at the size of a model of 1.7 million parameters:
# installs and builds what is missing, starts a coordinator and two workers, trains the base model, runs every setting with
# every seed as a job, and writes results.csv and the tables in README.md of this folder. Stopped, it goes on where it was.
#
# Arguments are passed on to reproduce.py (--help); its state lies in .longspan/reproduce.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
deploy/setup.sh
cmake --preset release > /dev/null
cmake --build --preset release --target longspan longspan-server longspan-worker longspan-trainer -- -j "$(nproc)"
export PATH="$PWD/build/release/bin:$PATH"

exec longspan dev --workers 2 --state-dir .longspan/reproduce --run "python3 deploy/examples/reproduce/reproduce.py $*"
