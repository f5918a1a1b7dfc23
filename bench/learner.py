"What the learner costs beside a bare PyTorch loop, and what the device-resident loader saves. `python bench/learner.py [--quick]`"
import io, statistics
from contextlib import redirect_stdout

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn, optim

from miniai.core import def_device, log_record, results_path, set_seed, Table
from miniai.datasets import DataLoaders, fashion_arrays, fashion_dls, inplace, TensorLoader, to_dd
from miniai.learner import DeviceCB, MetricsCB, ProgressCB, TrainLearner
from timing import clock, timed
import torchvision.transforms.functional as TF    # after miniai.core, which makes it importable beside a CPU build of torch

class Terminal(io.StringIO):
    "Takes what is printed as a terminal would, so that the progress bar is drawn and its cost is counted"
    def isatty(self): return True

def small_model():
    "Four strided convolutions with batch norm: 1×28×28 → 10, some milliseconds a step on a CPU"
    layer = lambda ni, nf: nn.Sequential(nn.Conv2d(ni, nf, 3, stride=2, padding=1), nn.BatchNorm2d(nf), nn.ReLU())
    return nn.Sequential(layer(1,16), layer(16,32), layer(32,64), layer(64,128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128,10)).to(def_device)

def bare_epoch(model, dls, lr):
    "One epoch of training and validation as everybody writes it"
    opt = optim.SGD(model.parameters(), lr)
    model.train()
    for xb,yb in dls.train:
        xb,yb = xb.to(def_device),yb.to(def_device)
        F.cross_entropy(model(xb), yb).backward()
        opt.step(); opt.zero_grad()
    model.eval()
    with torch.no_grad():
        for xb,yb in dls.valid: F.cross_entropy(model(xb.to(def_device)), yb.to(def_device))

def learner_overhead(dls, n_pairs, lr=0.05):
    "Paired epochs, in alternating order: `{seconds of a median epoch each way, their ratio}`"
    set_seed(42); model = small_model()
    learn = TrainLearner(model, dls, F.cross_entropy, lr=lr, cbs=[DeviceCB(), MetricsCB(), ProgressCB()])
    ways = dict(bare=lambda: bare_epoch(model, dls, lr), learner=lambda: learn.fit(1))
    secs = {k: [] for k in ways}
    with redirect_stdout(Terminal()):
        for f in ways.values(): f()                                    # warm up
        for i in range(n_pairs):
            for k in sorted(ways, reverse=i%2): secs[k].append(timed(ways[k]))
    bare,ours = (statistics.median(secs[k]) for k in ('bare', 'learner'))
    return dict(bare_s=bare, learner_s=ours, ratio=ours/bare, n_pairs=n_pairs, n_batches=len(dls.train)+len(dls.valid), clock=clock.__name__,
                step_ms=1000*bare/(len(dls.train)+len(dls.valid)), pair_ratios=[round(b/a, 4) for a,b in zip(secs['bare'], secs['learner'])])

@inplace
def transformi(b): b['image'] = [TF.to_tensor(o)*2-1 for o in b['image']]

def loader_speed(n, bs, n_pairs):
    "The same images through `DataLoader` over a Hugging Face data set (PNG to tensor) and through `TensorLoader`: images a second"
    x,y = fashion_arrays(say=lambda s: None)['train']; x,y = x[:n],y[:n]
    plain = DataLoaders.from_dd(to_dd({'train': (x,y), 'test': (x[:1],y[:1])}).with_transform(transformi), bs).train
    fast = TensorLoader(x, y, bs, shuffle=True)
    def go(dl):
        for xb,yb in dl: xb.to(def_device)
    go(fast)
    secs = [[timed(lambda: go(dl)) for dl in (plain, fast)] for _ in range(n_pairs)]
    slow,quick = (len(x)/statistics.median(s) for s in zip(*secs))
    return dict(clock=clock.__name__, dataloader_per_s=slow, tensorloader_per_s=quick, ratio=quick/slow, n=len(x), bs=bs, n_pairs=n_pairs)

@call_parse
def main(
    quick:bool=False,  # tiny sizes, to see that it runs; writes no record
):
    "Measure both, print a table, and append two records to results/bench.jsonl"
    dls = fashion_dls(128, *((512, 256) if quick else (12800, 2560)), say=lambda s: None)
    rows = [dict(what='learner overhead') | learner_overhead(dls, 2 if quick else 15),
            dict(what='loader speed') | loader_speed(256 if quick else 12800, 128, 1 if quick else 3)]
    if not quick:
        for r in rows: log_record(results_path('bench'), experiment='learner', command='python bench/learner.py', seed=42, **r)
    print(Table(rows[:1], ['what', 'bare_s', 'learner_s', 'ratio', 'step_ms', 'n_pairs'], '.4g'), Table(rows[1:], ['what', 'dataloader_per_s', 'tensorloader_per_s', 'ratio', 'n'], '.4g'), sep='\n\n')
    return rows
