"""Trains the network `fashion`: clothes with or without labels, from the weights `fashion_edm` on.

    python experiments/fashion.py [--out runs/fashion] [--steps 3600]      train; called again, it goes on
    python experiments/fashion.py --score-it [--out runs/fashion]             FID of every snapshot → results/fashion.jsonl
    python experiments/fashion.py --ship fashion --snapshot ema0.1-3600    a snapshot → miniai/weights/NAME

The learning rate falls as 1/√step and the weights are averaged over a fixed share of the training (Karras et al. 2024,
*Analyzing and Improving the Training Dynamics of Diffusion Models*, §3): one may look at any time, and let it go on.
In the last `anneal` steps the rate falls to zero."""
import json, time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import optim

from miniai.accel import MixedPrecision
from miniai.core import half_dtype, load, log_record, read_records, results_path, save, set_seed
from miniai.datasets import fashion_dls
from miniai.diffusion import NoiseCB
from miniai.karras import edm
from miniai.checkpoint import CheckpointCB
from miniai.learner import Callback, CancelFitException, DeviceCB, Learner, TrainCB
from miniai.denoiser import Denoiser
from miniai.recipes import Card, reference_eval, save_denoiser, score
from miniai.sgd import BatchSchedCB
from miniai.unet import UNet, WEIGHTS, load_unet

FORM = edm(sigma_data=0.706, P_mean=-0.6, P_std=1.0)
RECIPE = dict(start='fashion_edm', bs=32, lr=7e-4, flat=500, warmup=100, drop=0.15, seed=42, label_lr=4., emas=[0.05, 0.1])
CLASSES = 'T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle boot'.split(' ')

def gamma(
    width,  # standard deviation of the average's profile, as a share of the training so far
):
    "The exponent of a power-function average of that width (Karras et al. 2024, eq. 124: σ² = (γ+1)/((γ+2)²(γ+3)))"
    lo,hi = 0., 1e4
    for _ in range(100):
        g = (lo+hi)/2
        lo,hi = (g,hi) if ((g+1)/((g+2)**2*(g+3)))**0.5 > width else (lo,g)
    return g

class PowerEMACB(Callback):
    "Averages of the weights over a fixed share of the training so far (Karras et al. 2024, eq. 123), and snapshots of them"
    order = 60
    def __init__(self, out, widths, every):
        self.out,self.widths,self.every,self.n,self.avgs = Path(out), widths, every, 0, None
        self.gammas = [gamma(w) for w in widths]
    def before_fit(self, learn):
        if self.avgs is None: self.avgs = [{k: v.detach().clone() for k,v in learn.model.state_dict().items()} for _ in self.widths]
    @torch.no_grad()
    def after_step(self, learn):
        self.n += 1; now = learn.model.state_dict()
        for g,avg in zip(self.gammas, self.avgs): torch._foreach_lerp_(list(avg.values()), list(now.values()), 1-(1-1/self.n)**(g+1))
        if self.n % self.every == 0: self._write(learn)
    def _write(self, learn):
        for w,avg in zip(self.widths, self.avgs):
            save(avg, self.out/f'ema{w:g}-{self.n}', dtype=torch.float16, step=self.n, ema=w, cpu_seconds=learn.clock.total, config=learn.model.config)
    def state_dict(self): return dict(n=self.n, avgs=self.avgs)
    def load_state_dict(self, state): self.n,self.avgs = state['n'], state['avgs']

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
        self.sum += learn.loss.item(); i = learn.iter+1
        if i % self.every: return
        row = dict(step=learn.ema.n, loss=round(self.sum/self.every, 5), lr=learn.opt.param_groups[0]['lr'], cpu_seconds=round(learn.clock.total, 1))
        self.sum = 0.
        with self.path.open('a') as f: f.write(json.dumps(row)+'\n')

class StopCB(Callback):
    "Ends the fit after so many steps"
    order = 96
    def __init__(self, steps): self.steps = steps
    def after_batch(self, learn):
        if learn.ema.n >= self.steps: raise CancelFitException()

def network():
    "The U-Net of the start, its weights, and room for labels that begin as zeros"
    sd,card = load(WEIGHTS/RECIPE['start'])
    net = UNet(**card['config'] | dict(n_classes=10))
    net.load_state_dict({k: v.float() for k,v in sd.items()} | {'labels.weight': net.labels.weight.detach()})
    return net

def optimiser(net, lr):
    "Fused Adam; the labels, which begin at zero, learn faster"
    labels = [p for n,p in net.named_parameters() if n.startswith('labels')]
    rest = [p for n,p in net.named_parameters() if not n.startswith('labels')]
    return optim.Adam([dict(params=rest), dict(params=labels, lr=lr*RECIPE['label_lr'])], lr=lr, eps=1e-5, fused=True)

def rate(i, steps, anneal):
    "The learning rate after i steps, as a share of the highest: a short warm-up, flat, falling as 1/√i, at the end to 0 along a line"
    return min((i+1)/RECIPE['warmup'], 1)/max(i/RECIPE['flat'], 1)**0.5 * min(max(steps-i, 0)/max(anneal, 1), 1)

def learner(out, every, steps, anneal):
    "The learner of the experiment; its fit may be ended at any step"
    set_seed(RECIPE['seed']); net = network(); ema = PowerEMACB(out, RECIPE['emas'], every)
    dls = fashion_dls(RECIPE['bs'], n_valid=RECIPE['bs'], say=lambda s: None)
    verbs = MixedPrecision(3) if half_dtype() else TrainCB(3); verbs.order = DeviceCB.order+10
    cbs = [DeviceCB(), ClockCB(), NoiseCB(FORM, RECIPE['drop']), verbs, ema, LogCB(Path(out)/'log.jsonl'),
           BatchSchedCB(lambda opt: optim.lr_scheduler.LambdaLR(opt, partial(rate, steps=steps, anneal=anneal)))]
    learn = Learner(net, dls, F.mse_loss, lr=RECIPE['lr'], cbs=cbs, opt_func=lambda ps, lr: optimiser(net, lr))
    learn.ema = ema
    return learn

def snapshots(out):
    "Paths of the snapshots, in the order of their steps"
    return sorted((p.with_suffix('') if p.suffix == '.json' else p for p in Path(out).glob('ema*-*.json')), key=lambda p: int(p.name.rsplit('-')[-1]))

def denoiser(path):
    "The denoiser of a snapshot"
    net,card = load_unet(path)
    return Denoiser(net, FORM, half_dtype(), dict(size=(1,28,28), drop=RECIPE['drop'])), card

def score_snapshots(out, n, labels, only=''):
    "A record of each snapshot that has none yet"
    path = results_path('fashion'); ie = reference_eval()
    for p in snapshots(out):
        if only not in p.name or read_records(path, snapshot=p.name, n=n, labels=labels): continue
        den,card = denoiser(p); y = torch.arange(n) % 10 if labels else None
        r = log_record(path, **score(den, ie, n=n, sampling=dict(y=y)), command='python experiments/fashion.py --score-it', snapshot=p.name, labels=labels,
                       step=card['step'], ema=card['ema'], train_cpu_seconds=round(card['cpu_seconds']), start=RECIPE['start'])
        print(p.name, 'labels' if labels else 'no labels', round(r['fid'], 3), flush=True)

def train(out, steps, anneal, every, save_every=100):
    "Train, from the checkpoint on if there is one"
    Path(out).mkdir(parents=True, exist_ok=True); learn = learner(out, every, steps, anneal)
    check = CheckpointCB(Path(out)/'checkpoint', every=save_every, settings=RECIPE | dict(steps=steps, anneal=anneal))
    learn.fit(1 + steps*RECIPE['bs']//60000, valid=False, cbs=[check, StopCB(steps)])
    return learn

def ship_snapshot(path, name):
    "Weights and card of a snapshot into miniai/weights"
    sd,card = load(path); rows = [json.loads(l) for l in (path.parent/'log.jsonl').open()]
    start = json.loads((WEIGHTS/f"{RECIPE['start']}.json").read_text(encoding='utf-8'))
    history = [r for r in rows if r['step'] <= card['step']][::5]
    what = Card(config=card['config'], form=FORM.card(), size=[1,28,28], data='Fashion-MNIST', n_train=60000, epochs=round(card['step']*RECIPE['bs']/60000, 2),
                recipe=f"experiments/fashion.py, from {RECIPE['start']} ({start.get('cpu_seconds', start.get('seconds'))} CPU s on another CPU) on", lr=RECIPE['lr'], bs=RECIPE['bs'],
                ema=card['ema'], seed=RECIPE['seed'], cpu_seconds=round(card['cpu_seconds']), history=history, drop=RECIPE['drop'], classes=CLASSES, optimizer='Adam, fused')
    print(save_denoiser(sd, WEIGHTS/name, what))

@call_parse
def main(
    out:str='runs/fashion',   # folder of checkpoint, snapshots and log
    steps:int=3600,           # of 32 images, in all
    anneal:int=700,           # the last so many of them, in which the rate falls to 0
    every:int=250,            # steps between snapshots
    score_it:bool=False,      # score the snapshots that are not scored yet
    only:str='',              # score only snapshots whose name contains this
    labels:bool=True,         # score with labels (every class alike), else without
    n:int=2048,               # images to score
    ship:str='',              # copy a snapshot into miniai/weights under this name
    snapshot:str='',          # which, for `ship`: its file's name without suffix
):
    "Train, score or ship"
    torch.set_num_threads(1)
    if score_it: return score_snapshots(out, n, labels, only)
    if ship: return ship_snapshot(Path(out)/snapshot, ship)
    train(out, steps, anneal, every)
