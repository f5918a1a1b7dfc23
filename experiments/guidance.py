"""What guidance does to the clothes of the network `fashion`, for lesson 26: `python experiments/guidance.py`.

Samples of every class alike, guided by the label, by the label within an interval of noise levels, and by an early snapshot,
each scored by FID, precision, recall, Inception Score, and by how often two classifiers see the class that was asked for
→ results/eval.jsonl. A record that is there is not made again, so the same command goes on after a kill; the most
telling ones are made first. About 30 CPU s for 2,048 images by ten calls, twice that where two calls are made at each level."""
import time
from pathlib import Path

import judges
import torch
from fastcore.script import call_parse

import miniai.neighbours     # gives `ImageEval.prdc`
from miniai.core import log_record, read_records, results_path
from miniai.guidance import autoguided, guided
from miniai.recipes import load_denoiser, reference_eval
from miniai.datasets import to_unit
from miniai.solvers import sample

INTERVAL = 0.2, 5.
WAYS = [('none', 1., 42), ('interval', 2., 42), ('label', 2., 42), ('early', 2., 42), ('label', 4., 42), ('interval', 4., 42),
        ('label', 1.5, 42), ('interval', 1.5, 42), ('early', 1.5, 42), ('early', 3., 42)]
WAYS += [(how, w, seed) for seed in (43, 44) for how,w in (('none', 1.), ('early', 1.5), ('interval', 1.5))]

def denoiser(how, scale, den, bad):
    "The denoiser of one row"
    if how == 'none': return den
    if how == 'early': return autoguided(den, bad, scale)
    return guided(den, scale, INTERVAL) if how == 'interval' else guided(den, scale)

@torch.no_grad()
def agreement(x, y):
    "Share of images in which each classifier sees the class that was asked for"
    return {j: judges.agreement(j, x, y) for j in judges.JUDGES}

def row(ie, x, y, nfe, secs, **what):
    "Scores of images, as a record"
    feats = ie.get_feats(x)
    return what | ie.report(feats, seed=what['seed'], nfe=nfe, cpu_seconds=secs) | ie.prdc(feats) | dict(agreement=agreement(x, y))

def draw(den, n, y, seed, steps):
    "Images, calls of the network for each, CPU seconds"
    calls,start = [], time.process_time()
    x = sample(den, n, steps=steps, y=y, seed=seed, on_step=lambda i, now: calls.append(now.nfe)).clamp(-1, 1)
    return x, calls[-1], round(time.process_time()-start, 1)

def real(ie, n):
    "Training images as the yardstick, their labels, no calls"
    data,pick = ie.dls.train, torch.randperm(len(ie.dls.train.x), generator=torch.Generator().manual_seed(42))[:n]
    return to_unit(data.x[pick]).cpu(), data.y[pick].cpu()

@call_parse
def main(
    n:int=2048,            # images of each row
    steps:int=10,          # noise levels, by dpmpp_2m
    rows:int=None,         # only the first so many
    out:str='',            # where records go; '': results/eval.jsonl
):
    "Make the records that are not there yet"
    torch.set_num_threads(1)
    path,ie = Path(out) if out else results_path('eval'), reference_eval()
    den,bad = load_denoiser('fashion'), load_denoiser('fashion_early')
    y,made = torch.arange(n) % 10, dict(experiment='guidance', model='fashion', early='fashion_early', n=n, steps=steps)
    command = f'python experiments/guidance.py --n {n}'
    if not read_records(path, experiment='guidance', how='real', n=n):
        x,labels = real(ie, n)
        log_record(path, **row(ie, x, labels, 0, 0., experiment='guidance', what='guidance', how='real', guidance=None, seed=42, command=command))
    for how,scale,seed in WAYS[:rows]:
        if read_records(path, how=how, guidance=scale, seed=seed, **made): continue
        x,nfe,secs = draw(denoiser(how, scale, den, bad), n, y, seed, steps)
        r = row(ie, x, y, nfe, secs, what='guidance', how=how, guidance=scale, seed=seed, solver='dpmpp_2m', command=command,
                interval=INTERVAL if how == 'interval' else None, **made)
        log_record(path, **r)
        print(how, scale, seed, {k: round(r[k], 3) for k in ('fid', 'precision', 'recall', 'inception_score')}, r['agreement'], flush=True)
