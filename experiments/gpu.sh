#!/bin/sh
# Everything that waits for a GPU, in the order of its worth: stop it after any line and what was done counts.
# MINIAI_SCALE=gpu is set here; each line goes on where it was when it is called again.
set -e
cd "$(dirname "$0")/.."
export MINIAI_SCALE=gpu
PY=${PYTHON:-.venv/bin/python}

# 1. the shipped network, and its curve of FID
$PY experiments/fashion.py --steps 60000 --anneal 12000 --every 5000 --out runs/fashion
$PY experiments/fashion.py --score-it --only ema0.05 --out runs/fashion

# 2. the speed board, three seeds of each row
for seed in 42 43 44; do
  for name in former small_batch no_attention levels muon muon_labels narrow; do
    $PY experiments/speedrun.py --name $name --seed $seed --seconds 200
  done
done

# 3. the U-Net's costs: by parts, by step, and to equal loss
$PY bench/unet.py --only parts
$PY bench/unet.py --only steps
$PY bench/unet.py --only curves --bf16
