"""A U-Net that is told the noise level and one that is not, trained alike, and a small network that reads the level off an image: notebook 22_noise-pred.

    python experiments/blind.py                 train all three → runs/blind, results/train.jsonl; called again, it goes on
    python experiments/blind.py --score-it      FID of each way to sample, three seeds → results/eval.jsonl
    python experiments/blind.py --draw-it FILE  the same eight noises by each way, as a PNG"""
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn, optim
from torch.optim import lr_scheduler

from miniai.accel import EMACB
from miniai.checkpoint import CheckpointCB
from miniai.core import half_dtype, load, log_record, read_records, results_path, save, set_seed
from miniai.datasets import fashion_dls, image_grid
from miniai.ddim import step_ddim
from miniai.denoiser import Denoiser
from miniai.diffusion import levels
from miniai.learner import Callback, DeviceCB, Learner, MetricsCB, TrainCB
from miniai.recipes import diffusion_learner, reference_eval
from miniai.resnet import ResBlock
from miniai.schedules import abar, cosine, log_snr, uniform_grid
from miniai.sgd import BatchSchedCB
from miniai.solvers import sample
from miniai.unet import UNet

RECIPE = dict(bs=64, epochs=3, lr=2e-3, muon=0.01, ema=0.998, seed=42)
WAYS = {'told, DDIM': (True, False), 'not told, DDIM': (False, False), 'not told, corrected': (False, True), 'told, corrected': (True, True)}

class Untold(UNet):
    "A U-Net that sees the same time whatever the time is"
    def forward(self, x, t): return super().forward(x, torch.zeros(len(x), device=x.device))

def unet(told):
    "The network of `small_unet` without attention"
    return (UNet if told else Untold)(1, widths=(64,96), n_blocks=1, attn=0, patch=2, t_scale=cosine().t_scale).to(memory_format=torch.channels_last)

def level_net(nf=16):
    "Three residual blocks of stride 2 and two linear layers: images → logit ᾱ"
    blocks = [ResBlock(a, b, stride=2, norm=nn.BatchNorm2d) for a,b in ((1,nf), (nf,2*nf), (2*nf,4*nf))]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(16*4*nf, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))

class LevelCB(Callback):
    "Noises each batch at the times of the cosine; the target is logit ᾱ"
    order = DeviceCB.order+1
    def before_epoch(self, learn): self.gen = None if learn.training else torch.Generator().manual_seed(0)
    def before_batch(self, learn):
        x0 = learn.batch[0]; ᾱ = abar(torch.rand(len(x0), generator=self.gen)*0.995 + 0.0025); a = ᾱ[:,None,None,None]
        learn.batch = a.sqrt()*x0 + (1-a).sqrt()*torch.randn(x0.shape, generator=self.gen), log_snr(ᾱ)

def train_unet(out, told):
    "Same start, images, times and noise in the same order, whether told or not"
    r,name = RECIPE, 'told' if told else 'not_told'
    if (out/f'{name}.safetensors').exists(): return
    set_seed(r['seed']); net,avg,start = unet(told), EMACB(r['ema']), time.process_time()
    dls = fashion_dls(r['bs'], n_valid=2048, say=lambda s: None)
    learn = diffusion_learner(dls, cosine(), net, lr=r['lr'], muon=r['muon'], cbs=[avg])
    learn.fit(r['epochs'], cbs=CheckpointCB(out/f'{name}-checkpoint', every=200, settings=r))
    loss = learn.metrics.history[-1]['loss']
    log_record(results_path('train'), experiment='blind', what='U-Net', told=told, **r, train_steps=r['epochs']*len(dls.train), loss=loss, n_valid=2048, n_train=60_000,
               parameters=sum(p.numel() for p in net.parameters()), cpu_seconds=round(time.process_time()-start), command='python experiments/blind.py')
    save(avg.ema, out/name, dtype=torch.float16)

def train_level(out, epochs=5, bs=128, lr=3e-3):
    "The network that reads the level"
    if (out/'level.safetensors').exists(): return
    set_seed(RECIPE['seed']); dls = fashion_dls(bs, n_valid=2048, say=lambda s: None)
    sched = BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=lr, total_steps=epochs*len(dls.train)))
    learn = Learner(level_net(), dls, F.mse_loss, lr=lr, cbs=[DeviceCB(), TrainCB(), LevelCB(), MetricsCB(), sched], opt_func=optim.Adam)
    learn.fit(epochs); save(learn.model, out/'level')

def step_seen(run, x, l, m, level, eta=0., width=0.5):
    "DDIM from the level that is seen in each image, at most `width` logit units from the batch's median"
    y = level(x.float()).double(); y = y.clamp(y.median()-width, y.median()+width)
    x0,ε = run(x, l._replace(alpha=y.sigmoid().sqrt(), sigma=(1-y.sigmoid()).sqrt()))
    if not eta or not m.sigma: return m.alpha*x0 + m.sigma*ε
    r = m.sigma*l.alpha/(l.sigma*m.alpha); σ = min(eta*m.sigma*max(1-r**2, 0)**0.5, m.sigma)
    return m.alpha*x0 + (m.sigma**2-σ**2)**0.5*ε + σ*run.randn()

def ways(out):
    "`(name, denoiser, step)` of each way to sample"
    nets = {told: load(out/('told' if told else 'not_told'), unet(told))[0].eval() for told in (True, False)}
    level = load(out/'level', level_net())[0].eval()
    for nm,(told,seen) in WAYS.items():
        yield nm, Denoiser(nets[told], cosine(), half_dtype(), dict(size=(1,28,28))), partial(step_seen, level=level) if seen else step_ddim

def score_ways(out, n, seeds, steps=100):
    "A record of each way, η and seed that has none yet; for the first seed the FID of x̂0 on the way, too"
    path,ie,grid = results_path('eval'), reference_eval(), levels(cosine(), uniform_grid(steps))
    for seed in seeds:
        for nm,den,step in ways(out):
            for eta in (0., 1.):
                what = dict(experiment='blind', what='samples', way=nm, eta=eta, n=n, nfe=steps, seed=seed, command='python experiments/blind.py --score-it')
                if read_records(path, **what): continue
                start,kept = time.process_time(), {}
                def keep(i, now):
                    k = now.nfe-1
                    if seed == seeds[0] and (k % 9 == 0 or k == steps-1): kept.setdefault((k, now.level.t), []).append(now.x0_hat.cpu())
                with torch.no_grad(): x = sample(den, n, step, levels=grid, seed=seed, eta=eta, on_step=keep)
                secs = round(time.process_time()-start)
                per = [dict(step=k, t=t, x0_fid=ie.report(torch.cat(v).clamp(-1,1), seed=seed)['fid']) for (k,t),v in kept.items()]
                rec = log_record(path, **ie.report(x.clamp(-1,1)) | what, per_step=per, cpu_seconds=secs)
                print(nm, eta, seed, round(rec['fid'], 2), flush=True)

def draw(out, path, n=8):
    "The ways as rows, η = 0, from the same noise"
    grid = levels(cosine(), uniform_grid(100)); fig,axs = plt.subplots(len(WAYS), 1, figsize=(8, 4.8), layout='constrained')
    for ax,(nm,den,step) in zip(axs, ways(out)):
        with torch.no_grad(): x = sample(den, n, step, levels=grid, seed=42, eta=0.)
        ax.imshow(image_grid(x, ncols=n, gap=2, scale=4)); ax.set_title(nm, loc='left'); ax.axis('off')
    fig.savefig(path, dpi=110)

@call_parse
def main(
    out:str='runs/blind',  # folder of checkpoints and weights
    score_it:bool=False,   # score in place of training
    draw_it:str='',        # draw into this PNG in place of training
    n:int=512,             # images to score
    seeds:int=3,           # sampling seeds, from 42 on
):
    "Train, score or draw"
    torch.set_num_threads(1); out = Path(out); out.mkdir(parents=True, exist_ok=True)
    if score_it: return score_ways(out, n, range(42, 42+seeds))
    if draw_it: return draw(out, draw_it)
    train_level(out); train_unet(out, True); train_unet(out, False)
