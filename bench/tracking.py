"""What a tracker costs: training epochs with `MetricsCB` and with each tracker at its default rate, paired in one process, in changing order.
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

def small_model():
    "Four strided convolutions on RGB: some milliseconds a step on a CPU"
    layer = lambda ni, nf: nn.Sequential(nn.Conv2d(ni, nf, 3, stride=2, padding=1), nn.BatchNorm2d(nf), nn.ReLU())
    return nn.Sequential(layer(3,16), layer(16,32), layer(32,64), layer(64,128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128,10))

def epoch_seconds(make, dls):
    "Seconds of an epoch with the callback that `make()` gives"
    cb = make(); cb.show = lambda d: None; t = EpochTime(cb); set_seed(42)
    TrainLearner(small_model(), dls, F.cross_entropy, lr=0.05, cbs=[DeviceCB(), cb, t]).fit(2, valid=False)
    return t.secs[0]

@call_parse
def main(
    quick:bool=False,  # tiny sizes, to see that it runs; writes no record
):
    "Measure, print a table, and append a record for each tracker to results/bench.jsonl"
    n,pairs = (4, 1) if quick else (100, 15); b = [(torch.randn(128,3,32,32), torch.randint(10, (128,)))]; dls = DataLoaders(b*n, b)
    ways = {'none': MetricsCB} | {c.__name__: lambda c=c: c(folder=tmp/'runs', weights=False, wait=60) for c in (JSONLCB, TensorBoardCB, TrackioCB, WandBCB)}
    secs = {k: [] for k in ways}
    for i in range(pairs):
        for k in random.Random(i).sample(list(ways), len(ways)): secs[k].append(epoch_seconds(ways[k], dls))
    step = statistics.median(secs['none'])/n; rows = []
    for k in list(ways)[1:]:
        extra = statistics.median((a-b)/n for a,b in zip(secs[k], secs['none']))
        rows.append(dict(what='tracking overhead', tracker=k, step_ms=1000*step, extra_us=1e6*extra, percent=100*extra/step, every=20, n_batches=n, n_pairs=pairs, clock=clock.__name__,
                         pair_percent=[round(100*(a/b-1), 2) for a,b in zip(secs[k], secs['none'])]))
        if not quick: log_record(results_path('bench'), seed=42, **rows[-1])
    print(Table(rows, dict(tracker='tracker', step_ms='step, ms', extra_us='more for each batch, µs', percent='% of the step', n_pairs='pairs')))
    return rows
