"""Fewer calls: fits a solver to a network that comes with the package, and scores solvers at 1…50 calls (lessons 24a, 27).
`python experiments/fewer.py --fit-it` first writes a solver of five calls into the card of the network;
then, and without it, FIDs are appended to results/eval.jsonl. What is on record already is not made again."""
import time

import torch
from fastcore.script import call_parse

from miniai.core import log_record, read_records, results_path
from miniai.denoiser import image_noise
from miniai.learned import fingerprint, fit_solver, keep_solver
from miniai.recipes import load_denoiser, reference_eval, score
from miniai.solvers import sample
from miniai.unet import WEIGHTS

# solver, noise levels, seed: the most wanted first
NEW = [('learned', 5), ('ipndm', 5), ('ddim', 1), ('ipndm', 10), ('dpmpp_2m', 10), ('ddim', 2)]
CURVES = [('dpmpp_2m', 5), ('unipc', 5), ('unipc', 10), ('dpmpp_2m', 3), ('ipndm', 3), ('ddim', 5), ('ddim', 10), ('dpmpp_2m', 20),
          ('ipndm', 20), ('ddim', 20), ('dpmpp_2m', 50), ('ddim', 50)]
SEEDS = [(solver, steps, seed) for seed in (43, 44) for solver,steps in (('learned', 5), ('dpmpp_2m', 5), ('dpmpp_2m', 10))]
TABLE = [(*o, 42) for o in NEW] + SEEDS + [(*o, 42) for o in CURVES]

def labels(den, n):
    "Every class alike, for a network that was trained with labels"
    return torch.arange(n) % den.n_classes if den.n_classes else None

def fit(weights, steps, n, calls, n_iter):
    "Fit a solver to what `calls` calls make of n noises; it goes into the card, and a record to results/train.jsonl"
    den,start = load_denoiser(weights), time.process_time()
    y = labels(den, n)
    noise = image_noise(7, 0, (n, *den.size), 'cpu')()
    images = sample(den, n, 'dpmpp_3m', calls, x=noise, y=y, sigma_min=0.002)
    teacher = time.process_time()-start
    solver = fit_solver(den, noise, images, steps, y=y, n_iter=n_iter)
    solver.fit.update(teacher=f'dpmpp_3m, {calls} calls', cpu_seconds=round(time.process_time()-start))
    keep_solver(solver, WEIGHTS/weights)
    command = f'python experiments/fewer.py --fit-it --weights {weights} --steps {steps} --n-fit {n} --calls {calls} --n-iter {n_iter}'
    log_record(results_path('train'), experiment='fewer', what='fit', model=weights, command=command, steps=steps, teacher_cpu_seconds=round(teacher),
               sigmas=solver.sigmas, told=solver.told, weights=solver.weights, network=solver.network, **solver.fit)
    print(solver.fit, [round(s, 3) for s in solver.sigmas])

@call_parse
def main(
    weights:str='fashion_edm',  # name of weights that come with the package
    fit_it:bool=False,          # fit a solver first
    steps:int=5,                # calls of the solver to fit
    n_fit:int=256,              # noises to fit it on, a quarter of them held out
    calls:int=30,               # of the sampler that it is fitted to
    n_iter:int=60,              # steps of the fit
    n:int=2048,                 # images to score
    first:int=99,               # score only the first so many rows
):
    "Fit a solver, score the table"
    torch.set_num_threads(1)
    if fit_it: fit(weights, steps, n_fit, calls, n_iter)
    den,ie,path = load_denoiser(weights), reference_eval(), results_path('eval')
    who = fingerprint(den)
    for solver,steps,seed in TABLE[:first]:
        if read_records(path, experiment='fewer', model=weights, network_hash=who, solver=solver, steps=steps, n=n, seed=seed): continue
        y = labels(den, n)
        r = log_record(path, **score(den, ie, solver, steps, n, seed, {} if y is None else dict(y=y), experiment='fewer', model=weights, network_hash=who, labels=y is not None,
                                     command=f'python experiments/fewer.py --weights {weights} --n {n}'))
        print(solver, steps, seed, r['nfe'], round(r['fid'], 2), r['cpu_seconds'], flush=True)
