#!/usr/bin/env bash
# Everything that a GPU can show, in stages that leave their results if a later one dies.
#
#   bash bench/gpu_report.sh [FOLDER]          within 10 minutes on an H100; writes FOLDER/report.md and JSON
#   DRY=1 bash bench/gpu_report.sh [FOLDER]    each stage on the CPU, in Triton's interpreter: checks the script
#
# Needs Python with torch, triton, numpy, pytest, hypothesis, torchvision; nvcc or g++; no network. Builds in place,
# installs nothing.
set -u
cd "$(dirname "$0")/.."
OUT=${1:-bench/results/gpu}
PYTHON=${PYTHON:-python3}
DRY=${DRY:-0}
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

stage() { # name, seconds at most, command
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
  local code=$?
  echo "$name: exit $code, $((SECONDS - start)) s" | tee -a "$OUT/stages.txt"
  if [ $code -ne 0 ]; then tail -n 15 "$OUT/$name.log"; fi
}

: >"$OUT/stages.txt"
stage build 240 $PYTHON setup.py -q build_ext --inplace
# In a checkout ssl_fast.kernels is found only where the package was installed: a link stands in.
[ -e ssl_fast/kernels ] || $PYTHON -c 'import ssl_fast.kernels' 2>/dev/null || ln -s ../kernels ssl_fast/kernels
if [ "$DRY" = 1 ]; then
  export TRITON_INTERPRET=1
  stage tests 300 $PYTHON -m pytest -q -x -p no:cacheprovider tests/kernels/test_nt_xent_interpreted.py -k "sizes and dtype0"
  bench="environment small large moves step"
else
  command -v nvidia-smi >/dev/null && nvidia-smi >"$OUT/nvidia-smi.txt"
  stage tests 200 $PYTHON -m pytest -q -m gpu --maxfail=40 -p no:cacheprovider tests
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
      stage "$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 9 $PYTHON -c '
import torch, ssl_fast
ssl_fast.warmup("cuda", [(37, 20)], (torch.float32, torch.bfloat16), queue_size=70)
for name in ("cuda", "triton"):
    with ssl_fast.backend(name):
        for dtype in (torch.float32, torch.bfloat16):
            target, source = ([torch.ones(n, device="cuda", dtype=dtype)[1:] for n in (2, 9, 5000, 9000)] for _ in range(2))
            ssl_fast.ema_update_(target, source, torch.tensor(0.9, device="cuda"), seed=1)
            for normalize in (False, True):
                ssl_fast.NegativeQueue(70, 20, dtype=dtype).cuda().enqueue_(torch.randn(90, 20, device="cuda"), normalize)'
    done
  fi
  bench="environment small large moves step"
fi
for name in $bench; do stage "$name" 75 $PYTHON -m bench.gpu "$name" --output "$OUT"; done
stage markdown 30 $PYTHON -m bench.gpu markdown --output "$OUT"
cat "$OUT/stages.txt"
[ -f "$OUT/report.md" ] && cat "$OUT/report.md"
! grep -q "exit [^0]" "$OUT/stages.txt"
