"""Do two classifiers agree? FID of each shipped network by the features of either, and the share of drawn classes that each finds.

    python experiments/judges.py       → results/eval.jsonl; what is on record is not made again

`fashion_classifier` is the yardstick of all tables here; `fashion_classifier2` has half its first sizes and another training
(experiments/classifier.py). FIDs of two classifiers have different units, so each stands beside its own floor: that of as many training images, picked at random,
and for a network that is asked for each class alike that of training images with each class alike (model "real")."""
import torch
from fastcore.script import call_parse

from miniai.core import log_record, read_records, results_path
from miniai.datasets import fashion_dls, to_unit
from miniai.recipes import load_denoiser, reference_eval
from miniai.resnet import fashion_classifier
from miniai.solvers import sample

JUDGES = 'fashion_classifier', 'fashion_classifier2'
DRAWN = [('fashion', 'dpmpp_2m', 10, True), ('fashion', 'dpmpp_2m', 10, False), ('fashion_edm', 'dpmpp_2m', 10, False), ('fashion_edm', 'dpmpp_2m', 5, False),
         ('fashion_ddpm', 'dpmpp_2m', 10, False), ('fashion_early', 'dpmpp_2m', 10, True), ('fashion', 'dpmpp_2m', 5, True), ('fashion', 'ddim', 10, True), ('real', None, 0, True)]

def real(n, seed):
    "Training images, each class alike, picked at random"
    d = fashion_dls(256, say=lambda s: None).train
    order = torch.randperm(len(d.y), generator=torch.Generator().manual_seed(seed)); y = d.y[order]
    return to_unit(d.x[order[torch.stack([(y == c).nonzero().flatten()[:n//10+1] for c in range(10)], 1).flatten()[:n]]])

def agreement(judge, x, y):
    "Share of images that the classifier puts into the class that was asked for"
    clf = fashion_classifier(name=judge)
    return (torch.cat([clf(o).argmax(1).cpu() for o in x.clamp(-1,1).split(256)]) == y).float().mean().item()

@call_parse
def main(
    n:int=2048,    # images
    seed:int=42,   # of the noise
):
    "Score each network by each classifier"
    torch.set_num_threads(1); path,evals,y = results_path('eval'), {j: reference_eval(fashion_dls(256, say=lambda s: None), j) for j in JUDGES}, torch.arange(n) % 10
    for model,solver,steps,labels in DRAWN:
        what = dict(experiment='judges', what='solver', model=model, solver=solver, steps=steps, labels=labels, n=n, seed=seed)
        todo = [j for j in JUDGES if not read_records(path, **what, extractor=j, extractor_hash=evals[j].extractor.hash)]
        if not todo: continue
        x = real(n, seed) if model == 'real' else sample(load_denoiser(model), n, solver, steps, y if labels else None, seed)
        for j in todo:
            rec = evals[j].report(x.clamp(-1,1), seed=seed) | what | dict(nfe=steps, agreement=agreement(j, x, y) if labels else None)
            print(model, solver, steps, labels, j, round(log_record(path, **rec, command='python experiments/judges.py')['fid'], 3), flush=True)
