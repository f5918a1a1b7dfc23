"""Trains the networks that come with the package, from scratch: `fashion`, clothes with or without labels, in EDM's form, and
`fashion_ddpm`, which predicts the noise at DDPM's thousand levels.

    python experiments/fashion.py [--name fashion]               train → runs/NAME; called again, it goes on
    python experiments/fashion.py --score-it [--name fashion]          FID of every snapshot → results/eval.jsonl
    python experiments/fashion.py --ship --snapshot ema0.1-8000        a snapshot → miniai/weights/NAME
    python experiments/fashion.py --lengths 5000                       FID of averages of other lengths → results/eval.jsonl

Muon turns the matrices, Adam the rest. The learning rate falls as 1/√step and the weights are averaged over a fixed share of the training (Karras et al. 2024,
*Analyzing and Improving the Training Dynamics of Diffusion Models*, §3): one may look at any time, and let it go on.
In the last `anneal` steps the rate falls to zero."""
import json, time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import optim

from miniai import phema
from miniai.accel import MixedPrecision
from miniai.core import half_dtype, load, log_record, read_records, results_path, set_seed
from miniai.datasets import fashion_dls
from miniai.diffusion import NoiseCB, ddpm
from miniai.karras import edm
from miniai.checkpoint import CheckpointCB
from miniai.learner import Callback, CancelFitException, DeviceCB, Learner, TrainCB
from miniai.denoiser import Denoiser
from miniai.recipes import Card, MuonAdam, reference_eval, save_denoiser, score, small_unet
from miniai.sgd import BatchSchedCB
from miniai.unet import WEIGHTS, load_unet

RECIPES = dict(
    fashion=dict(form=edm(sigma_data=0.706, P_mean=-0.8, P_std=1.1), drop=0.1, net=dict(attn=0, widths=(64,128)), steps=8000, anneal=2500),
    fashion_ddpm=dict(form=ddpm(), drop=None, net=dict(attn=0, widths=(64,128)), steps=5000, anneal=1800))
SHARED = dict(bs=128, lr=2e-3, muon=0.01, flat=2500, warmup=200, seed=42, emas=[0.05, 0.1])
CLASSES = 'T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot'.split(',')

class PowerEMACB(phema.PowerEMACB):
    "Its snapshots say what `load_unet` needs, and what they cost"
    def __init__(self, out, widths, every):
        super().__init__(out, widths, every, lambda learn: dict(cpu_seconds=learn.clock.total, config=learn.model.config))

class ClockCB(Callback):
    "CPU seconds of the training, those before a kill included (up to the checkpoint)"
    order = -60
    def __init__(self): self.before,self.start = 0., None
    @property
    def total(self): return self.before + (time.process_time()-self.start if self.start is not None else 0)
    def before_fit(self, learn): learn.clock,self.start = self,time.process_time()
    def state_dict(self): return dict(before=self.total)
    def load_state_dict(self, state): self.before,self.start = state['before'],time.process_time()

class LogCB(Callback):
    "Appends mean loss, learning rate and CPU seconds to a file, every so many steps"
    order = 95
    def __init__(self, path, every=50): self.path,self.every,self.sum = Path(path), every, 0.
    def after_batch(self, learn):
        self.sum += learn.loss.item()
        if learn.ema.n % self.every: return
        row = dict(step=learn.ema.n, loss=round(self.sum/self.every, 5), lr=learn.opt.param_groups[0]['lr'], cpu_seconds=round(learn.clock.total, 1))
        self.sum = 0.
        with self.path.open('a') as f: f.write(json.dumps(row)+'\n')

class StopCB(Callback):
    "Ends the fit after so many steps"
    order = 96
    def __init__(self, steps): self.steps = steps
    def after_batch(self, learn):
        if learn.ema.n >= self.steps: raise CancelFitException()

def recipe(name):
    "What that network's training is made of"
    if name not in RECIPES: raise SystemExit(f'no network {name!r}: there are {", ".join(RECIPES)}')
    return SHARED | RECIPES[name]

def network(r):
    "The small U-Net of a recipe, with room for labels where it has them"
    labels = {} if r['drop'] is None else dict(n_classes=10)
    return small_unet(1, t_scale=250. if labels else r['form'].t_scale, **r['net'], **labels)

def rate(i, steps, anneal, warmup, flat):
    "The learning rate after i steps, as a share of the highest: a short warm-up, flat, falling as 1/√i, at the end to 0 along a line"
    return min((i+1)/warmup, 1)/max(i/flat, 1)**0.5 * min(max(steps-i, 0)/max(anneal, 1), 1)

def learner(r, out, every, steps, anneal):
    "The learner of the experiment; its fit may be ended at any step"
    set_seed(r['seed']); net = network(r); ema = PowerEMACB(out, r['emas'], every)
    dls = fashion_dls(r['bs'], n_valid=r['bs'], say=lambda s: None)
    n_inp = 2 + (r['drop'] is not None)
    verbs = MixedPrecision(n_inp) if half_dtype() else TrainCB(n_inp); verbs.order = DeviceCB.order+10
    sched = partial(rate, steps=steps, anneal=anneal, warmup=r['warmup'], flat=r['flat'])
    cbs = [DeviceCB(), ClockCB(), NoiseCB(r['form'], r['drop']), verbs, ema, LogCB(Path(out)/'log.jsonl'),
           BatchSchedCB(lambda opt: optim.lr_scheduler.LambdaLR(opt, sched))]
    learn = Learner(net, dls, F.mse_loss, lr=r['lr'], cbs=cbs, opt_func=lambda ps, lr: MuonAdam(net, lr, r['muon']))
    learn.ema = ema
    return learn

def snapshots(out):
    "Paths of the snapshots, in the order of their steps"
    return sorted((p.with_suffix('') if p.suffix == '.json' else p for p in Path(out).glob('ema*-*.json')), key=lambda p: int(p.name.rsplit('-')[-1]))

def denoiser(r, path):
    "The denoiser of a snapshot"
    net,card = load_unet(path)
    return Denoiser(net.to(memory_format=torch.channels_last), r['form'], half_dtype(), dict(size=(1,28,28), drop=r['drop'])), card

def score_snapshots(name, out, n, labels, only='', seed=42):
    "A record of each snapshot that has none yet"
    path = results_path('eval'); ie = reference_eval(); r = recipe(name); labels = labels and r['drop'] is not None
    for p in snapshots(out):
        if only not in p.name or read_records(path, experiment='fashion', model=name, snapshot=p.name, n=n, labels=labels, seed=seed): continue
        den,card = denoiser(r, p); y = torch.arange(n) % 10 if labels else None
        rec = log_record(path, **score(den, ie, n=n, seed=seed, sampling=dict(y=y)), command=f'python experiments/fashion.py --name {name} --score-it',
                         experiment='fashion', model=name, snapshot=p.name, labels=labels, step=card['step'], ema=card['ema'], train_cpu_seconds=round(card['cpu_seconds']))
        print(p.name, 'labels' if labels else 'no labels', round(rec['fid'], 3), flush=True)

def score_lengths(name, out, n, step, widths=(0.04, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25), seed=42):
    "A record of averages of other lengths, rebuilt from the snapshots, at this step (notebook 26a)"
    path = results_path('eval'); ie = reference_eval(); r = recipe(name); net = network(r); y = None if r['drop'] is None else torch.arange(n) % 10
    for width in widths:
        what = dict(experiment='fashion', model=name, snapshot='rebuilt', step=step, ema=width, n=n, seed=seed)
        if read_records(path, **what): continue
        net.load_state_dict(phema.rebuild(out, width, step))
        den = Denoiser(net.eval(), r['form'], half_dtype(), dict(size=(1,28,28), drop=r['drop']))
        rec = log_record(path, **score(den, ie, n=n, seed=seed, sampling=dict(y=y)) | what, labels=y is not None, command=f'python experiments/fashion.py --name {name} --lengths {step}')
        print(step, width, round(rec['fid'], 3), flush=True)

def train(name, out, steps, anneal, every, save_every=200):
    "Train, from the checkpoint on if there is one"
    r = recipe(name); Path(out).mkdir(parents=True, exist_ok=True); learn = learner(r, out, every, steps, anneal)
    settings = r | dict(form=r['form'].card(), steps=steps, anneal=anneal)
    check = CheckpointCB(Path(out)/'checkpoint', every=save_every, settings=settings)
    learn.fit(1 + steps*r['bs']//60000, valid=False, cbs=[check, StopCB(steps)])
    return learn

def ship_snapshot(name, path, to):
    "Weights and card of a snapshot into miniai/weights"
    r = recipe(name); sd,card = load(path); rows = [json.loads(l) for l in (path.parent/'log.jsonl').open()]
    history = [row for row in rows if row['step'] <= card['step']][::10]
    what = Card(config=card['config'], form=r['form'].card(), size=[1,28,28], data='Fashion-MNIST', n_train=60000, epochs=round(card['step']*r['bs']/60000, 2),
                recipe=f"python experiments/fashion.py --name {name}: {path.name}", lr=r['lr'], bs=r['bs'], ema=card['ema'], seed=r['seed'], cpu_seconds=round(card['cpu_seconds']),
                history=history, drop=r['drop'], classes=CLASSES if r['drop'] is not None else None, optimizer=f"Muon at {r['muon']} on matrices, Adam on the rest")
    print(save_denoiser(sd, WEIGHTS/to, what))

def draw_curve(path):
    "FID against images trained on: the records of `fashion`, and the former recipe from results/speedrun.md"
    recs = sorted(read_records(results_path('eval'), experiment='fashion', model='fashion', n=2048, seed=42, labels=True, ema=0.1), key=lambda r: r['step'])
    former = [(758, 12.), (1512, 5.5), (4188, 2.19)]           # CPU seconds and FID; 660,000 images took 4,188
    fig,ax = plt.subplots(figsize=(7,4), layout='constrained')
    ax.plot([s*660/4188 for s,_ in former], [f for _,f in former], 'o-', color='tab:gray', label='former recipe: Adam, attention, no labels (fashion_edm)')
    ax.plot([r['step']*0.128 for r in recs], [r['fid'] for r in recs], 'o-', color='tab:blue', label='Muon, labels, no attention, batch 128 (fashion)')
    for times in (10, 5, 2.5, 1):
        ax.axhline(times*recs[0]['floor'], color='k', lw=0.5, ls=':')
        ax.text(1020, times*recs[0]['floor'], f'{times:g}× the floor', ha='right', va='bottom', fontsize=8)
    ax.set(yscale='log', xlabel='thousand images', ylabel='FID, n=2,048, ten calls', title='Two recipes')
    ax.legend()
    fig.savefig(path, dpi=110)

@call_parse
def main(
    name:str='fashion',       # which network
    out:str='',               # folder of checkpoint, snapshots and log; '': runs/NAME
    steps:int=None,           # of 128 images, in all; None: the recipe's
    anneal:int=None,          # the last so many of them, in which the rate falls to 0; None: the recipe's
    every:int=1000,           # steps between snapshots
    score_it:bool=False,      # score the snapshots that are not scored yet
    only:str='',              # score only snapshots whose name contains this
    no_labels:bool=False,     # score without labels, else with every class alike
    n:int=2048,               # images to score
    seed:int=42,              # of the sampling, for `score_it`
    ship:bool=False,          # copy a snapshot into miniai/weights
    snapshot:str='',          # which, for `ship`: its file's name without suffix
    to:str='',                # under which name, for `ship`; '': NAME
    lengths:int=None,         # score averages of other lengths at this step
    curve:str='',             # draw FID against images into this file
):
    "Train, score or ship"
    torch.set_num_threads(1); r = recipe(name); out = out or f'runs/{name}'
    if curve: return draw_curve(curve)
    if lengths: return score_lengths(name, out, n, lengths)
    if score_it: return score_snapshots(name, out, n, not no_labels, only, seed)
    if ship: return ship_snapshot(name, Path(out)/snapshot, to or name)
    train(name, out, steps or r['steps'], r['anneal'] if anneal is None else anneal, every)
