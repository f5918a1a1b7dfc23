"""Restores held-out garments from what a mask, a small copy or a blur left of them: lesson 32's table.
`python experiments/inverse.py` appends to results/eval.jsonl; what is on record already is not made again.
`--beside` instead compares DPS and MMPS with the azula library's, on the same network and noise."""
import importlib.metadata, itertools, math, time
from functools import partial

import torch
import torch.nn.functional as F
from fastcore.script import call_parse

from miniai.core import log_record, read_records, results_path
from miniai.datasets import fashion_dls, to_unit
from miniai.ddim import step_ddim
from miniai.diffusion import Level, levels, sample_loop
from miniai.inverse import Blur, Downsample, Mask, measure, measured, mmps, pigdm, step_dps, step_repaint
from miniai.recipes import load_denoiser, reference_eval
from miniai.solvers import sample

NOISE = 0.02
hole = torch.ones(28, 28)
hole[7:21,7:21] = 0
TASKS = dict(hole=Mask(hole), small=Downsample(4), blur=Blur(2.))
# method → denoiser round the denoiser, solver, noise levels; std: that of Fashion-MNIST's pixels
METHODS = dict(DPS=(measured, step_dps, 50),
               PiGDM=(partial(pigdm, std=0.7), 'ancestral', 30), MMPS=(mmps, 'ancestral', 30))
MORE = {'RePaint': (measured, partial(step_repaint, times=5), 30),
        'MMPS, 3 iterations': (partial(mmps, iterations=3), 'ancestral', 30)}       # for the hole alone

def psnr(a, b):
    "Mean over images of 10·log₁₀(range²/squared error), in dB; the range is 2"
    return (10*torch.log10(4/((a-b)**2).flatten(1).mean(1))).mean().item()

def nearest(op, y, train):
    "The training image whose measurement is nearest to each"
    seen = torch.cat([op(o).flatten(1) for o in train.split(4096)])
    return train[torch.cdist(y.flatten(1), seen).argmin(1)]

def simple(op, y, train):
    "What one would do without a model"
    mean = train.mean(0, keepdim=True)
    if isinstance(op, Mask): yield 'mean image in the hole', y + mean - op(mean)
    elif isinstance(op, Downsample):
        yield 'adjoint', op.T(y)*op.k**2
        yield 'bicubic', F.interpolate(y, scale_factor=op.k, mode='bicubic', align_corners=False)
    else: yield 'as measured', y
    yield 'nearest training image', nearest(op, y, train)

def restored(den, op, y, seed, methods):
    "Yield `method, images, calls, CPU seconds`"
    for name,(wrap,solver,steps) in methods.items():
        calls,start = [], time.process_time()
        x = sample(wrap(den, op, y, NOISE), len(y), solver, steps, seed=seed, on_step=lambda i, now: calls.append(now.nfe))
        yield name, x, calls[-1], round(time.process_time()-start, 1)

def in_azula(den, ls):
    "Our denoiser as one of azula's, whose times 1…0 are the levels `ls` in their order"
    from azula.denoise import Denoiser, DiracPosterior
    class Ours(Denoiser):
        def schedule(self, t):
            l = ls[round((1-t.item())*(len(ls)-1))]
            return torch.as_tensor(l.alpha, dtype=torch.float64), torch.as_tensor(l.sigma, dtype=torch.float64)
        def forward(self, x_t, t): return DiracPosterior(mean=den(x_t, Level(None, *map(float, self.schedule(t))))[0])
    return Ours()

def theirs(name, den, op, y, noise, ls, x, seed, zeta=1.):
    "Images by azula's DPS or MMPS, from noise x over the levels"
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.sample import DDIMSampler
    d,steps = in_azula(den, ls), len(ls)-1
    flat = lambda v: op(v).flatten(1)
    if name == 'DPS': s = DPSSampler(d, y.flatten(1), flat, zeta=zeta, steps=steps, silent=True, dtype=torch.float64)
    else:
        m = MMPSDenoiser(d, y.flatten(1), flat, IsotropicCovariance(torch.tensor(noise**2)), solver='cg', iterations=1)
        s = DDIMSampler(m, steps=steps, silent=True, dtype=torch.float64)
    torch.manual_seed(seed)
    return s(ls[0].sigma*x)

def ours(name, den, op, y, noise, ls, x, seed):
    "The same by `sample_loop`, with torch's own generator"
    den,step = (measured(den, op, y, noise), step_dps) if name == 'DPS' else (mmps(den, op, y, noise), step_ddim)
    torch.manual_seed(seed)
    for now in sample_loop(den, ls[0].sigma*x, ls, step): pass
    return now.x

def beside_azula(weights, x, seed, path, what):
    "Records of DPS and MMPS here and in azula: the largest difference of a pixel, and CPU seconds"
    try: import azula  # noqa: F401
    except ImportError: raise SystemExit('azula is not installed, and nothing was compared: pip install azula') from None
    den,op,ls = load_denoiser(weights, dtype=None), TASKS['small'], levels(sine, torch.linspace(0.999, 0.01, 20))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    y = measure(op, x, NOISE, seed)
    for name in ('DPS', 'MMPS'):
        out,secs = [], []
        for f in (ours, theirs):
            start = time.process_time()
            parts = range(len(x)) if name == 'DPS' else [slice(None)]           # azula's DPS takes one norm of a whole batch
            parts = [slice(i, i+1) if isinstance(i, int) else i for i in parts]
            out.append(torch.cat([f(name, den, op, y[p], NOISE, ls, z[p], seed) for p in parts]))
            secs.append(round(time.process_time()-start, 2))
        r = log_record(path, what='azula', method=name, n=len(x), **what, azula=importlib.metadata.version('azula'),
                       largest_difference=(out[0]-out[1]).abs().max().item(), cpu_ratio=round(secs[0]/secs[1], 3), cpu_pairs=secs)
        print(name, r['largest_difference'], r['cpu_ratio'], flush=True)

def sine(t):
    "α and σ with α² + σ² = 1, as in DDPM, where DPS was written down"
    return (t*math.pi/2).cos(), (t*math.pi/2).sin()

@call_parse
def main(
    weights:str='fashion_edm',  # name of weights that come with the package
    n:int=64,                   # held-out images
    seed:int=42,                # of the measurements' noise and of the sampling
    tasks:str='hole,small,blur',  # which to do
    beside:bool=False,          # compare with azula instead, on four images
    record:str=None,            # a .jsonl; None: results/eval.jsonl
):
    "Restore n test images by every method, and by simple means"
    path = record or results_path('eval')
    what = dict(experiment='inverse', model=weights, seed=seed, noise=NOISE, command=f'python experiments/inverse.py --weights {weights} --n {n} --seed {seed}' + ' --beside'*beside)
    dls = fashion_dls(64, None, n, say=lambda s: None)
    x = next(iter(dls.valid))[0][:n].cpu()
    if beside: return beside_azula(weights, x[:4], seed, path, what)
    train,den,ie = to_unit(dls.train.x).cpu(), load_denoiser(weights), reference_eval()
    fx = ie.get_feats(x)
    stranger = torch.pdist(fx).mean().item()                     # between two garments
    for task in tasks.split(','):
        op = TASKS[task]
        y = measure(op, x, NOISE, seed)
        done = [(name, im, 0, None) for name,im in simple(op, y, train)]
        skip = [r['method'] for r in read_records(path, experiment='inverse', what='restore', task=task, n=n, model=weights, seed=seed)]
        todo = {k: v for k,v in (METHODS | (MORE if isinstance(op, Mask) else {})).items() if k not in skip}
        for name,im,calls,secs in itertools.chain(done, restored(den, op, y, seed, todo)):
            if name in skip: continue
            im = im.clamp(-1, 1)
            d = (ie.get_feats(im)-fx).norm(dim=1).mean().item()/stranger
            r = log_record(path, what='restore', task=task, method=name, n=n, **what, calls=calls, psnr=psnr(im, x), distance=d,
                           stranger=stranger, extractor=ie.extractor.name, cpu_seconds=secs)
            print(task, name, round(r['psnr'], 2), round(d, 3), secs, flush=True)
