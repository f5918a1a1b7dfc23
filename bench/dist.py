"""How many images a second one process trains on, and two together: the small U-Net, the same global batch of 64, one thread each.
`python bench/dist.py [--quick]` starts the processes in pairs, and appends to results/bench.jsonl. By the clock on the wall: run it on a quiet machine."""
import os, statistics, subprocess, sys

from fastcore.script import call_parse

from miniai.core import log_record, results_path

SCRIPT = '''
import sys, time
import torch
import miniai.imports
from miniai.datasets import DataLoaders, TensorLoader
from miniai.dist import *
from miniai.karras import edm
from miniai.learner import Callback
from miniai.recipes import diffusion_learner

class ClockCB(Callback):
    order = 99
    def after_batch(self, learn): self.ends = [*getattr(self, 'ends', []), time.perf_counter()]

join(60)
torch.set_num_threads(1)
n = int(sys.argv[1])
x = torch.rand(64*n, 1, 28, 28)*2-1
dls,clock = DataLoaders(TensorLoader(x, None, 64), TensorLoader(x[:64], None, 64)), ClockCB()
diffusion_learner(dls, edm(0.7), cbs=[clock, *([DistCB()] if world() > 1 else [])]).fit(1, valid=False)
if rank() == 0: print('images_per_s', 64*(n-3)/(clock.ends[-1]-clock.ends[2]), file=sys.stderr)
'''

def speed(n_proc, steps):
    "Images a second of so many processes, the first three steps left out"
    start = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={n_proc}', '--master_port=0', '--rdzv-backend=c10d', '--rdzv-endpoint=localhost:0']
    p = subprocess.run([*start, '--no-python', sys.executable, '-c', SCRIPT, str(steps)], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    found = [l.split()[1] for l in p.stderr.splitlines() if l.startswith('images_per_s')]
    if not found: raise RuntimeError(f'{n_proc} processes did not train: {p.stderr[-500:]}')
    return float(found[0])

@call_parse
def main(
    quick:bool=False,  # a few steps and no record: does it run?
):
    "Measure, print, and append to results/bench.jsonl"
    pairs,steps = (1, 5) if quick else (5, 60)
    rates = {1: [], 2: []}
    for i in range(pairs):
        for k in sorted(rates, reverse=i%2): rates[k].append(speed(k, steps))
    med = {k: statistics.median(v) for k,v in rates.items()}
    rec = dict(experiment='bench', what='two processes', command='python bench/dist.py', bs=64, n_pairs=pairs, steps=steps, clock='perf_counter', images_per_s=med[1],
               images_per_s_two=med[2], ratio=med[2]/med[1], pair_ratios=[round(b/a, 3) for a,b in zip(*rates.values())])
    if not quick: log_record(results_path('bench'), **rec)
    print(f'one process {med[1]:.0f} images a second, two {med[2]:.0f}: ratio {med[2]/med[1]:.2f}')
