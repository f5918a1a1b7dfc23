"""Easy consistency tuning: a network that comes with the package learns to say in one call where the ODE would end (Geng et al.
2024, arXiv:2406.14548). Called again, it goes on from its checkpoint.

    python experiments/ect.py [--steps 6000]      tune → runs/ect
    python experiments/ect.py --ship-it           the result → miniai/weights/fashion_ect
    python experiments/ect.py --score-only           FID of one and two calls → results/eval.jsonl

At noise level t the network's image is pulled to its own (held still) at a lower level r, of the same image and noise. r starts at
0, which is the training of a diffusion model, and moves up to t in stages: then one call agrees with the next, all along the way."""
import time
from pathlib import Path

import torch
from fastcore.script import call_parse
from torch import optim

from miniai.accel import EMACB, MixedPrecision
from miniai.checkpoint import CheckpointCB
from miniai.core import half_dtype, load, log_record, results_path, save, set_seed
from miniai.datasets import fashion_dls
from miniai.denoiser import Denoiser
from miniai.diffusion import Level, beside, levels
from miniai.karras import draw_sigmas, ve
from miniai.learner import Callback, CancelFitException, DeviceCB, Learner, TrainCB
from miniai.recipes import load_denoiser, reference_eval, score
from miniai.unet import WEIGHTS

RECIPE = dict(bs=32, lr=2e-4, ema=0.999, P_mean=-1.1, P_std=2.0, q=2., k=8., b=1., stages=8, seed=42)

def lower_level(
    t,      # noise levels σ
    stage,  # 0, 1, …
    q=2.,   # each stage brings r this many times nearer to t
    k=8.,   # how much farther it stays where t is small
    b=1.,   # and how sharply that ends
):
    "r < t, at least 0 (Geng et al. 2024, §3.3)"
    return (t*(1 - (1 + k*torch.sigmoid(-b*t))/q**(stage+1))).clamp(min=0)

class ConsistencyCB(Callback):
    "Noises each batch, and sets as target what the network itself says at the lower level"
    order = DeviceCB.order+1
    def __init__(self, form, steps): self.form,self.steps,self.n = form, steps, 0
    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, state): self.n = state['n']
    def before_fit(self, learn): learn.model.form = self.form
    def after_step(self, learn): self.n += 1
    def before_batch(self, learn):
        x0,*y = learn.batch
        y,R = y[:1] if learn.model.n_classes else [], RECIPE
        t = draw_sigmas(len(x0), R['P_mean'], R['P_std'], device=x0.device)
        r = lower_level(t, R['stages']*self.n//self.steps, R['q'], R['k'], R['b'])
        ε,one = torch.randn_like(x0), torch.ones_like(t)
        with torch.no_grad(): below = Denoiser(learn.model, self.form)(x0 + beside(r, x0)*ε, Level(None, one, r.clamp(min=0.002)), *y)[0]
        want = torch.where(beside(r, x0) > 0, below, x0)
        learn.batch = (*self._inputs(x0 + beside(t, x0)*ε, t, one), *y, *self._targets(x0 + beside(t, x0)*ε, want, t, r, one))
    def _inputs(self, x, t, one):
        k = self.form.scale(one, t)
        return beside(k, x)*x, self.form.time(k, k*t)
    def _targets(self, x, want, t, r, one):
        "The mix F that would give `want`, and the weight that makes an error in F one in x̂0, over t - r"
        k = self.form.scale(one, t); a,b = self.form.pred(k, k*t)
        F = beside(a, x)*want + beside(b, x)*(x-want)/beside(t, x)
        return F, (t/(b-t*a)).abs()/(t-r)

def loss(F, want, weight):
    "Distance of whole images (not its square), weighted"
    return ((F.float()-want).flatten(1).square().mean(1)+1e-8).sqrt().mul(weight).mean()

class StopCB(Callback):
    "Ends the fit after so many steps, and prints the loss now and then"
    order = 96
    def __init__(self, steps): self.steps,self.before = steps, 0.
    def state_dict(self): return dict(before=self.before + time.process_time()-self.start)
    def load_state_dict(self, state): self.before = state['before']
    def before_fit(self, learn): self.start = time.process_time()
    def after_batch(self, learn):
        n = learn.tuning.n
        if n % 200 == 0: print(n, round(learn.loss.item(), 4), f'{self.before + time.process_time()-self.start:.0f} s', flush=True)
        if n >= self.steps: raise CancelFitException()

def tune(weights, out, steps, save_every=200, dls=None):
    "Tune, from the checkpoint on if there is one; the averaged weights go to OUT/ect"
    set_seed(RECIPE['seed']); den = load_denoiser(weights, dtype=None)
    dls = dls or fashion_dls(RECIPE['bs'], n_valid=RECIPE['bs'], say=lambda s: None)
    tuning,ema = ConsistencyCB(den.form, steps), EMACB(RECIPE['ema'])
    n_inp = 3 if den.n_classes else 2
    cbs = [DeviceCB(), tuning, MixedPrecision(n_inp) if half_dtype() else TrainCB(n_inp), ema]
    learn = Learner(den.net.train(), dls, loss, lr=RECIPE['lr'], cbs=cbs, opt_func=lambda ps, lr: optim.RAdam(ps, lr=lr, betas=(0.9, 0.99)))
    learn.tuning = tuning
    check = CheckpointCB(Path(out)/'checkpoint', every=save_every, settings=RECIPE | dict(steps=steps, weights=weights))
    stop = StopCB(steps)
    learn.fit(1 + steps//len(dls.train), valid=False, cbs=[check, stop])
    secs = round(stop.before + time.process_time()-stop.start)
    return save(ema.ema, Path(out)/'ect', dtype=torch.float16, **den.card | dict(tuned=RECIPE | dict(steps=steps, start=weights), solvers=None, tuning_cpu_seconds=secs))

def score_it(out, weights, n, steps):
    "FID of one call, and of two: noise of σ = 0.8 added to what the first gave"
    den,ie = load_denoiser(Path(out)/'ect'), reference_eval()
    y = {'y': torch.arange(n) % den.n_classes} if den.n_classes else {}
    for calls,grid in ((1, [80.]), (2, [80., 0.8])):
        what = dict(model=weights, tuned='ect', tuning_steps=steps, command=f'python experiments/ect.py --score-only --steps {steps}')
        r = log_record(results_path('eval'), **score(den, ie, 'ancestral', calls, n, sampling=dict(levels=levels(ve, grid)) | y, **what) | dict(what='ect', experiment='fewer'))
        print(calls, round(r['fid'], 2), flush=True)

def ship(out, to='fashion_ect'):
    "The tuned weights into miniai/weights; the card says from which network they come"
    sd,card = load(Path(out)/'ect'); tuned = card['tuned']
    card |= dict(recipe='python experiments/ect.py', history=[], epochs=round(tuned['steps']*tuned['bs']/60000, 2), lr=tuned['lr'], bs=tuned['bs'], ema=tuned['ema'],
                 optimizer='RAdam', cpu_seconds=card['tuning_cpu_seconds'])
    print(save(sd, WEIGHTS/to, dtype=torch.float16, **card))

@call_parse
def main(
    weights:str='fashion',  # name of weights that come with the package, of EDM's form
    out:str='runs/ect',     # folder of checkpoint and result
    steps:int=6000,         # of 32 images, in all
    score_only:bool=False,  # score in place of tuning
    ship_it:bool=False,     # write the result to miniai/weights/fashion_ect
    n:int=2048,             # images to score
):
    "Tune, or score"
    torch.set_num_threads(1)
    if ship_it: return ship(out)
    score_it(out, weights, n, steps) if score_only else tune(weights, out, steps)
