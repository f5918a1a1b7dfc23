"""What a tracker costs: training epochs with `MetricsCB` and with each tracker at its default rate, paired in one process, in changing order.
The network is a stand-in that sleeps through its step: on a machine with other work, what a real one takes varies by more than a tracker costs.
The work of the trackers' threads counts; that of W&B's own process does not. `python bench/tracking.py [--quick]`"""
import os, random, statistics, tempfile, time
from pathlib import Path
tmp = Path(tempfile.mkdtemp())
os.environ |= {k: str(tmp/k) for k in ('TRACKIO_DIR', 'WANDB_DATA_DIR', 'WANDB_CACHE_DIR', 'WANDB_CONFIG_DIR', 'WANDB_ARTIFACT_DIR')} | dict(WANDB_MODE='offline', HF_HUB_OFFLINE='1')

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn

from miniai.core import Table, def_device, log_record, results_path, set_seed
from miniai.datasets import DataLoaders
from miniai.learner import Callback, DeviceCB, MetricsCB, TrainLearner
from miniai.tracking import JSONLCB, TensorBoardCB, TrackioCB, WandBCB
from timing import clock

class EpochTime(Callback):
    "Seconds of each training epoch, until its tracker has nothing left to do; the first, which warms up, does not count"
    order = 100
    def __init__(self, cb): self.cb, self.secs = cb, []
    def before_epoch(self, learn): self.t = clock()
    def after_epoch(self, learn):
        while getattr(self.cb, 'post', None) and not self.cb.post.q.empty(): time.sleep(0.001)
        if def_device == 'cuda': torch.cuda.synchronize()
        if learn.epoch: self.secs.append(clock()-self.t)

STEP = 0.02  # seconds of a step: a small classifier's on one CPU core; a U-Net's is many times that

class StandIn(nn.Module):
    "A network whose step takes `STEP` seconds, all of it asleep: what the clock shows is the work of learner and callbacks"
    def __init__(self): super().__init__(); self.lin = nn.Linear(3, 10)
    def forward(self, x): time.sleep(STEP); return self.lin(x.mean((2,3)))

def epoch_seconds(make, dls):
    "Seconds of an epoch with the callback that `make()` gives"
    cb = make(); cb.show = lambda d: None; t = EpochTime(cb); set_seed(42)
    TrainLearner(StandIn(), dls, F.cross_entropy, lr=0.05, cbs=[DeviceCB(), cb, t]).fit(2, valid=False)
    return t.secs[0]

@call_parse
def main(
    quick:bool=False,  # tiny sizes, to see that it runs; writes no record
):
    "Measure, print a table, and append a record for each tracker to results/bench.jsonl"
    n,pairs = (4, 1) if quick else (100, 7); b = [(torch.randn(8,3,4,4), torch.randint(10, (8,)))]; dls = DataLoaders(b*n, b)
    ways = {'none': MetricsCB} | {c.__name__: lambda c=c: c(folder=tmp/'runs', weights=False, wait=60) for c in (JSONLCB, TensorBoardCB, TrackioCB, WandBCB)}
    secs = {k: [] for k in ways}
    for i in range(pairs):
        for k in random.Random(i).sample(list(ways), len(ways)): secs[k].append(epoch_seconds(ways[k], dls))
    rows = []
    for k in list(ways)[1:]:
        extra = statistics.median((a-b)/n for a,b in zip(secs[k], secs['none']))
        rows.append(dict(what='tracking overhead', tracker=k, step_ms=1000*STEP, extra_us=1e6*extra, percent=100*extra/STEP, every=20, n_batches=n, n_pairs=pairs, clock=clock.__name__,
                         pair_percent=[round(100*(a-b)/n/STEP, 2) for a,b in zip(secs[k], secs['none'])]))
        if not quick: log_record(results_path('bench'), experiment='tracking', command='python bench/tracking.py', seed=42, **rows[-1])
    print(Table(rows, dict(tracker='tracker', step_ms='step, ms', extra_us='more for each batch, µs', percent='% of the step', n_pairs='pairs')))
    return rows
