#!/bin/sh
# Everything that waits for a GPU, in the order of its worth: stop it after any line and what was done counts.
# MINIAI_SCALE=gpu is set here; each line goes on where it was when it is called again.
set -e
cd "$(dirname "$0")/.."
export MINIAI_SCALE=gpu
PY=${PYTHON:-.venv/bin/python}

# 1. the shipped networks, and their curves of FID
for name in fashion fashion_ddpm; do
  $PY experiments/fashion.py --name $name --steps 40000 --anneal 12000 --every 5000 --out runs/$name-gpu
  $PY experiments/fashion.py --name $name --score-it --only ema0.1 --out runs/$name-gpu
done

# 2. the speed board, three seeds of each row
for seed in 42 43 44; do
  for name in former small_batch no_attention levels muon muon_labels muon_labels_attn labels narrow; do
    $PY experiments/speedrun.py --name $name --seed $seed --seconds 200
  done
done

# 3. the U-Net's costs: by parts, by step, and to equal loss
$PY bench/unet.py --only parts
$PY bench/unet.py --only steps
$PY bench/unet.py --only curves --bf16

# 4. one and two calls, the level that is not told, two classifiers, DDIM's sweep in three seeds
$PY experiments/ect.py --steps 40000 --out runs/ect-gpu
$PY experiments/ect.py --score-only --steps 40000 --out runs/ect-gpu
$PY experiments/blind.py
$PY experiments/blind.py --score-it
$PY experiments/classifier.py challenge5 challenge20 challenge50 ship
$PY experiments/judges.py
for seed in 42 43 44; do $PY experiments/samplers.py --weights fashion_ddpm --table --seed $seed; done
