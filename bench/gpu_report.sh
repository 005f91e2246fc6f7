#!/usr/bin/env bash
# Everything that a GPU can show, in 9 minutes at most, whatever of it fails.
#
#   bash bench/gpu_report.sh [FOLDER] [--seconds N]    FOLDER: bench/results/DATE-DEVICE unless given
#   DRY=1 bash bench/gpu_report.sh ...                 each stage on the CPU, in Triton's interpreter
#
# Stages: environment, build, quick tests, doctor, memcheck, racecheck, times, long tests until the time is up. Every
# row is written as it comes (tests.jsonl, rows.jsonl), report.md after each stage. Exit status: 0 all right, 1 something
# is wrong, 2 nothing could be run. bench/gpu/plan.py has the limits.
#
# Needs Python with torch, triton, numpy, pytest and hypothesis, nvcc or g++, no network. Builds in place, installs nothing.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.gpu "$@"
