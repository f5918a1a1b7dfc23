"""Seconds of CPU to a FID of 10×, 5× and 2.5× the floor, on Fashion-MNIST.

    python experiments/speedrun.py --name NAME [--seconds 200] [--seed 42]     train, score, append to results/eval.jsonl
    python experiments/speedrun.py --show                               the board, from the records
    python experiments/speedrun.py --draw-to nbs/images/losses.png      the same noises by the networks of three losses

Rules.
1. Data: Fashion-MNIST's 60,000 training images in ±1. Labels may be used in training; then samples are drawn with labels,
   every class alike. No other data, no other network's weights.
2. The clock is CPU seconds of the whole process, all threads together, from the first training step to the last,
   without reading data, without scoring. The record says which CPU, and whether it computes in bfloat16: the same
   recipe costs two to three times more on a CPU that does not, so compare rows of one machine only.
3. Score: FID between 2,048 samples (seed 42) and the 10,000 test images by the features of the shipped classifier
   `fashion_classifier`, floor 0.27 (2,048 training images against the same). Ten calls of the network for a sample, by
   dpmpp_2m on Karras's grid from 80 to 0.01.
4. Everything else may be tuned, on seed 42. A row counts as kept when three other seeds agree with it: the worst of
   them must beat the best of the row it replaces. A row with one seed is a lead and says so.
5. Failures stay in the log."""
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from fastcore.script import call_parse

from miniai.accel import EMACB, MixedPrecision
from miniai.core import Table, half_dtype, load, log_record, read_records, results_path, save, set_seed
from miniai.datasets import fashion_dls, image_grid
from miniai.denoiser import Denoiser, WrappedDenoiser
from miniai.diffusion import NoiseCB
from miniai.flow import flow_logit
from miniai.karras import edm
from miniai.learner import Callback, CancelFitException, DeviceCB, Learner, TrainCB
from miniai.recipes import MuonAdam, reference_eval, score
from miniai.solvers import flow, sample
from miniai.unet import UNet

@dataclass(frozen=True)
class Recipe:
    "What may differ between two rows of the board"
    bs:int = 32             # images in a batch
    lr:float = 2e-3         # the highest rate of Adam
    muon:float = 0.         # the highest rate of Muon on the matrices; 0: Adam for everything
    attn:int = 0            # sizes with attention
    widths:tuple = (64,96)
    patch:int = 2
    P_mean:float = -0.6
    P_std:float = 1.0
    ema:float = 0.99
    drop:float = -1.        # share of labels left out; -1: no labels
    loss:str = 'mse_loss'   # a function of torch.nn.functional
    form:str = 'edm'        # or 'flow', or 'flow_logit': then P_mean and P_std are those of log σ/α, and sigma_data is not used
    sigma_data:float = 0.706
    shift:float = 0.        # added to every pixel in training, and taken off again in sampling: 0.43 is minus the mean of all pixels

RECIPES = dict(former=Recipe(bs=64, attn=1, P_mean=-1.2, P_std=1.2), small_batch=Recipe(attn=1, P_mean=-1.2, P_std=1.2),
               no_attention=Recipe(P_mean=-1.2, P_std=1.2), levels=Recipe(), muon=Recipe(muon=0.01), muon_labels=Recipe(muon=0.01, drop=0.1),
               muon_labels_attn=Recipe(muon=0.01, drop=0.1, attn=1), muon_labels_64=Recipe(muon=0.01, drop=0.1, bs=64),
               labels=Recipe(drop=0.1),
               narrow=Recipe(muon=0.01, widths=(48,96)),
               l1=Recipe(muon=0.01, loss='l1_loss'), smooth_l1=Recipe(muon=0.01, loss='smooth_l1_loss'),
               half_sigma_data=Recipe(muon=0.01, sigma_data=0.353), centred=Recipe(muon=0.01, shift=0.43),
               flow=Recipe(muon=0.01, form='flow'), flow_logit=Recipe(muon=0.01, form='flow_logit', P_mean=0., P_std=1.))
KEEP = Path(__file__).parent.parent/'checkpoints'/'speedrun'        # weights, outside git

class ShiftCB(Callback):
    "Adds a number to every pixel, before the noise"
    order = DeviceCB.order+0.5
    def __init__(self, shift): self.shift = shift
    def before_batch(self, learn): learn.batch = (learn.batch[0]+self.shift, *learn.batch[1:])

class Shifted(WrappedDenoiser):
    "A denoiser of shifted images as one of images"
    def __init__(self, den, shift): super().__init__(den); self.shift = shift
    def __call__(self, x, level, y=None):
        x0,e = super().__call__(x + level.alpha*self.shift, level, y)
        return x0-self.shift, e

class BudgetCB(Callback):
    "Warms the rate up over a tenth of the CPU seconds, lets it fall as a cosine over the rest, and stops; `steps` and `seconds` say how far it came"
    order = 97
    def __init__(self, seconds): self.budget,self.steps = seconds, 0
    def before_fit(self, learn): self.start,self.lrs = time.process_time(), [g['lr'] for g in learn.opt.param_groups]; self._set(learn)
    @property
    def seconds(self): return time.process_time()-self.start
    def _set(self, learn):
        u = min(self.seconds/self.budget, 1.); cosine = 0.5+0.5*torch.tensor(torch.pi*(u-0.1)/0.9).cos().item()
        for g,lr in zip(learn.opt.param_groups, self.lrs): g['lr'] = lr*(max(u, 1e-3)/0.1 if u < 0.1 else cosine)
    def after_batch(self, learn):
        self.steps += 1; self._set(learn)
        if self.seconds >= self.budget: raise CancelFitException()

def form_of(r):
    "The form of a recipe"
    if r.form == 'flow': return flow()
    return flow_logit(mean=r.P_mean, std=r.P_std) if r.form == 'flow_logit' else edm(r.sigma_data, r.P_mean, r.P_std)

def network(r):
    "The U-Net of a recipe"
    net = UNet(1, r.widths, n_blocks=1, attn=r.attn, patch=r.patch, t_scale=form_of(r).t_scale, n_classes=10*(r.drop >= 0))
    return net.to(memory_format=torch.channels_last)

def draw(path, names=('muon', 'smooth_l1', 'l1'), seed=42, n=8):
    "One row of images for each recipe, from the same noises"
    fig,axs = plt.subplots(len(names), 1, figsize=(8, 1.2*len(names)), layout='constrained')
    for ax,nm in zip(axs, names):
        r = RECIPES[nm]; net = network(r); net.load_state_dict(load(KEEP/f'{nm}_{seed}')[0])
        x = sample(Denoiser(net.eval(), form_of(r), half_dtype()), (n,1,28,28), seed=0)
        ax.imshow(image_grid(x, ncols=n, gap=2, scale=4)); ax.set_title(r.loss.removesuffix('_loss').replace('_', '-'), loc='left'); ax.axis('off')
    fig.savefig(path, dpi=110)

def train(r, seconds, seed):
    "`(denoiser, steps, CPU seconds)` of a recipe"
    set_seed(seed); labels = r.drop >= 0; form = form_of(r); net = network(r)
    n_inp = 2+labels; budget,ema = BudgetCB(seconds), EMACB(r.ema)
    cbs = [DeviceCB(), ShiftCB(r.shift), NoiseCB(form, r.drop if labels else None, vrange=None), MixedPrecision(n_inp) if half_dtype() else TrainCB(n_inp), ema, budget]
    learn = Learner(net, fashion_dls(r.bs, say=lambda s: None), getattr(F, r.loss), lr=r.lr, cbs=cbs, opt_func=lambda ps, lr: MuonAdam(net, lr, r.muon))
    learn.fit(1000, valid=False); spent = budget.seconds
    net.load_state_dict(ema.ema)
    den = Denoiser(net.eval(), form, half_dtype(), dict(size=(1,28,28)))
    return Shifted(den, r.shift) if r.shift else den, budget.steps, spent

def board():
    "The rows of the log, best first within each budget; of a row that was run again the last"
    last = {(r['name'], r['budget'], r['seed']): r | dict(times=r['fid']/r['floor']) for r in read_records(results_path('eval'), experiment='speedrun')}
    cols = dict(name='recipe', budget='CPU s', seed='seed', train_steps='steps', fid='FID', times='times the floor', cpu='CPU', half='precision')
    return Table(sorted(last.values(), key=lambda r: (r['budget'], r['fid'])), cols)

def cpu_name():
    "The processor, as /proc/cpuinfo names it, where there is one"
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return 'unknown'

@call_parse
def main(
    name:str='',          # of a recipe
    seconds:float=200.,   # CPU seconds of training
    seed:int=42,          # of weights, data and noise
    n:int=2048,           # images to score
    show:bool=False,      # only show the board
    draw_to:str='',       # only draw images by the networks of three losses, to this file
    note:str='',          # what the log should say of this run
):
    "Train one row of the board, or show it"
    torch.set_num_threads(1)
    if show: return print(board())
    if draw_to: return draw(draw_to)
    if name not in RECIPES: raise SystemExit(f'no recipe {name!r}: there are {", ".join(RECIPES)}')
    r = RECIPES[name]; den,steps,spent = train(r, seconds, seed)
    save(den.net, KEEP/f'{name}_{seed}')
    sampling = dict(y=torch.arange(n) % 10) if r.drop >= 0 else {}
    rec = score(den, reference_eval(), n=n, sampling=sampling)
    rec |= dict(experiment='speedrun', what='speedrun', name=name, budget=seconds, train_steps=steps, train_cpu_seconds=round(spent, 1), seed=seed, sampling_seed=42, recipe=asdict(r), cpu=cpu_name(),
                half=str(half_dtype() or torch.float32), note=note, command=f'python experiments/speedrun.py --name {name} --seconds {seconds:g} --seed {seed}')
    log_record(results_path('eval'), **rec); print(name, seed, steps, round(spent), round(rec['fid'], 2), flush=True)
