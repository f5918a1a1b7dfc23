"""Bits per dimension of a shipped network, for lesson 31: `python experiments/likelihood.py`, records in results/eval.jsonl.

bits        of test and training images: the mean by the ODE and by the bound, and the bound of each image
errors      the error of the predicted noise over σ: what the bound integrates
sigma_min   the bits by the ODE, with and without uniform noise, over the level where it begins
fid         images of which a share is noise, and images with a little noise left: FID beside what it costs in bits

Without a part: all. A record that is there is not made again. `--smoke`: a few images, nothing kept."""
import tempfile, time
from pathlib import Path

import torch
from fastcore.script import call_parse

from miniai.core import log_record, read_records, results_path
from miniai.datasets import fashion_dls, to_unit
from miniai.likelihood import bits_per_dim, denoising_errors, log_likelihood, to_bits, variational_bound
from miniai.recipes import load_denoiser, reference_eval
from miniai.solvers import sample

SEED = 42
SIGMAS = [0.001, 0.004, 0.016]

def mean(o): return round(o.mean().item(), 4)
def sem(o): return round((o.std()/len(o)**0.5).item(), 4)

def images(split, n):
    "The first n of a fixed order of Fashion-MNIST's training or test images, and their places"
    dls = fashion_dls(say=lambda s: None)
    x = getattr(dls, 'train' if split == 'train' else 'valid').x.cpu()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))[:n]
    return x[order], order.tolist()

def bits(name, put, n, n_bound):
    den = load_denoiser(name, dtype=None)
    for split in ('test', 'train'):
        x,at = images(split, n_bound)
        start = time.process_time()
        ode = bits_per_dim(den, x[:n])
        ode_s = time.process_time()-start
        b = variational_bound(den, x, 16, seed=SEED)
        put(split=split, n=n, n_bound=n_bound, ode=mean(ode), ode_sem=sem(ode), ode_seconds=round(ode_s, 1),
            bound=mean(b.bits), bound_sem=sem(b.bits), same_images=mean(b.bits[:n]), prior=mean(b.prior),
            diffusion=mean(b.diffusion), reconstruction=mean(b.reconstruction), images=at,
            each=[round(o, 3) for o in b.bits.tolist()], each_ode=[round(o, 3) for o in ode.tolist()])

def errors(name, put, n, n_bound):
    den,(x,_) = load_denoiser(name, dtype=None), images('test', n_bound//2)
    σ,e = denoising_errors(den, to_unit(x), 48, sigma_min=0.001, seed=SEED)
    put(n=len(x), sigma=[round(o, 5) for o in σ.log().mean(0).exp().tolist()],
        error=[round(o, 5) for o in (e.mean(0)/x[0].numel()).tolist()])

def sigma_min(name, put, n, n_bound):
    den,(x,_) = load_denoiser(name, dtype=None), images('test', max(2, n//3))
    for s in SIGMAS:
        raw = to_bits(log_likelihood(den, to_unit(x), sigma_min=s, raw=True), x[0].numel())
        put(sigma_min=s, n=len(x), ode=mean(bits_per_dim(den, x, sigma_min=s)), raw=mean(raw))

def fid(name, put, n, n_bound):
    "The noise of a share of images is uniform over all images: it costs the others at most -log2(1-share) bits an image"
    x = sample(load_denoiser(name), 4*n_bound, steps=10, seed=SEED).clamp(-1, 1)
    ie,g = reference_eval(), torch.Generator().manual_seed(SEED)
    noise = torch.rand(x.shape, generator=g)*2-1
    for share in (0., 0.5, 0.9, 0.99):
        k = round(share*len(x))
        put(n=len(x), share=share, fid=round(ie.fid(torch.cat([noise[:k], x[k:]])), 2))
    for s in (0.004, 0.008, 0.016):
        y = x + s*torch.randn(x.shape, generator=g)
        put(n=len(x), noise=s, fid=round(ie.fid(y.clamp(-1, 1)), 2))

PARTS = dict(bits=bits, errors=errors, sigma_min=sigma_min, fid=fid)

@call_parse
def main(
    part:str=None,               # one of the four; None: all
    weights:str='fashion_edm',   # name of weights that come with the package
    n:int=12,                    # images by the ODE; ten times as many by the bound
    smoke:bool=False,            # a few images, nothing kept
):
    "Measure bits per dimension"
    path = Path(tempfile.mkdtemp())/'likelihood.jsonl' if smoke else results_path('eval')
    n = 2 if smoke else n
    for what in [part] if part else PARTS:
        if read_records(path, what=what, weights=weights): continue
        start,kept = time.process_time(), []
        PARTS[what](weights, lambda **kw: kept.append(kw), n, 10*n)
        secs = round(time.process_time()-start, 1)
        command = f'python experiments/likelihood.py --part {what} --weights {weights} --n {n}'
        for r in kept: log_record(path, experiment='likelihood', what=what, model=weights, seed=SEED, command=command, **r, cpu_seconds=secs)
        print(weights, what, secs, [{k: v for k,v in r.items() if not isinstance(v, list)} for r in kept], flush=True)
