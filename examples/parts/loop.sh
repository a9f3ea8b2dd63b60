#!/bin/bash
# bash examples/parts/loop.sh [N] [options of run.py]: N parts at once on this machine, by default 2.
# Two parts on one GPU need XLA_PYTHON_CLIENT_PREALLOCATE=false; one GPU each: CUDA_VISIBLE_DEVICES.
parts=${1:-2}
for ((part = 0; part < parts; part++)); do
  JAX_NUM_CPU_DEVICES=1 python "$(dirname "$0")/run.py" --part "$part" --parts "$parts" "${@:2}" &
done
wait
