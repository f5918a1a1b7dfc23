"""What a training step of our U-Net costs beside diffusers' `UNet2DModel` of as many parameters, and what each learns in the same seconds.
`python bench/unet.py [--quick] [--seconds 480] [--bf16]` appends to results/bench.jsonl; Ctrl-C ends the training early and keeps what was measured."""
import statistics
from functools import cache

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn, optim
from torch.utils.flop_counter import FlopCounterMode

from miniai.accel import MixedPrecision, init_ddpm
from miniai.core import Table, def_device, half_dtype, log_record, results_path, set_seed     # first: it makes torchvision importable beside a CPU build of torch
from miniai.datasets import DataLoaders, TensorLoader, fashion_arrays, to_unit
from miniai.diffusion import NoiseCB, ddpm, noisify
from miniai.learner import DeviceCB, Learner, MetricsCB, TrainCB
from miniai.unet import SelfAttention, UNet
from timing import clock, timed
from diffusers import UNet2DModel

class Wrapped(nn.Module):
    "diffusers' U-Net on images folded into patches, or padded on each side; what it returns is undone"
    def __init__(self, net, patch=1, pad=0): super().__init__(); self.net,self.patch,self.pad = net,patch,pad
    def forward(self, x, t):
        h,w = x.shape[-2:]; x = F.pixel_unshuffle(F.pad(x, (self.pad,)*4), self.patch)
        return F.pixel_shuffle(self.net(x, t).sample, self.patch)[...,self.pad:self.pad+h,self.pad:self.pad+w]

def theirs(widths, layers=2, channels=1, **kwargs):
    "diffusers' U-Net with its own defaults: attention at all sizes but the first; zeroed and orthogonal as in notebook 17"
    n = len(widths)
    net = UNet2DModel(in_channels=channels, out_channels=channels, block_out_channels=widths, layers_per_block=layers, norm_num_groups=8,
                      down_block_types=('DownBlock2D',)+('AttnDownBlock2D',)*(n-1), up_block_types=('AttnUpBlock2D',)*(n-1)+('UpBlock2D',))
    return Wrapped(init_ddpm(net), **kwargs)

OURS,THEIRS = 'miniai, 2×2 patches','diffusers, 28×28'
OTHER_PATCHES = 'miniai, no patches','diffusers, 2×2 patches in front'
NETS = {OURS: lambda: UNet(widths=(64,96), n_blocks=1, patch=2), THEIRS: lambda: theirs((32,56,80)),      # all within 5% of as many parameters
        OTHER_PATCHES[0]: lambda: UNet(widths=(64,96), n_blocks=1, patch=1),
        'diffusers, padded to 32×32': lambda: theirs((16,32,56,80), pad=2),
        OTHER_PATCHES[1]: lambda: theirs((64,104), layers=1, channels=4, patch=2)}

class Stream:
    "An endless stream of batches that is handed out some at a time; the same for the same seed"
    def __init__(self, dl, n): self.n, self.it = n, self.go(dl)
    def go(self, dl):
        while True: yield from dl
    def __len__(self): return self.n
    def __iter__(self): return (next(self.it) for _ in range(self.n))

@cache
def images(): return list(fashion_arrays(say=lambda s: None).values())[:2]

def make_learner(name, bs, n_valid, n_steps, bf16=True, seed=42, lr=1e-3):
    "A learner whose `fit(1)` takes the next `n_steps` steps and validates on the same noisy images each time; Adam lives on from fit to fit"
    (x,_),(xv,_) = images()
    set_seed(seed); net = NETS[name]().to(def_device); opt = optim.Adam(net.parameters(), lr, eps=1e-5)
    dls = DataLoaders(Stream(TensorLoader(x, None, bs, shuffle=True, generator=torch.Generator().manual_seed(seed)), n_steps), TensorLoader(xv[:n_valid], None, 128))
    metrics = MetricsCB(); metrics.show = lambda d: None
    return Learner(net, dls, F.mse_loss, lr=lr, cbs=[DeviceCB(), NoiseCB(ddpm()), MixedPrecision(2) if bf16 else TrainCB(2), metrics],
                   opt_func=lambda ps, lr: opt)

def cost(net):
    "Parameters, and millions of operations for one image"
    with FlopCounterMode(display=False) as c, torch.no_grad(): net(torch.zeros(1,1,28,28,device=def_device), torch.tensor([3],device=def_device))
    return dict(parameters=sum(p.numel() for p in net.parameters()), mflops=c.get_total_flops()/1e6)

def steps(bs, n_rounds):
    "A training step of every network in turn, in float32 and bfloat16: a record's fields for each"
    ways = {(nm, bf16): make_learner(nm, bs, 1, 1, bf16) for nm in NETS for bf16 in (False, True)}
    secs = {k: [] for k in ways}
    for i in range(n_rounds+1):                                                    # the first round warms up
        for k in sorted(ways, reverse=i%2):
            s = timed(lambda: ways[k].fit(1, valid=False)); secs[k] += [s] if i else []
            print(f'round {i}, {k[0]}, {"bfloat16" if k[1] else "float32"}: {s:.2f} s', flush=True)
    return [dict(what='unet_step', net=nm, half='bfloat16' if bf else 'float32', bs=bs, n_rounds=n_rounds, clock=clock.__name__, **cost(ways[nm,bf].model),
                 step_s=statistics.median(v), times_ours=statistics.median([a/b for a,b in zip(v, secs[OURS,bf])]), all_s=[round(o, 3) for o in v]) for (nm,bf),v in secs.items()]

def reach(curve, loss):
    "Seconds until a curve's loss is first at or below `loss`; None: never"
    return next((s for s,l in zip(curve['seconds'], curve['loss']) if l <= loss), None)

def curves(seconds, bs, n_valid, n_steps, bf16=False, seed=42, lr=1e-3):
    "Networks trained in one process, in turns, each for so many seconds of training: a record's fields"
    learns = {nm: make_learner(nm, bs, n_valid, n_steps, bf16=bf16, seed=seed, lr=lr) for nm in (OURS, THEIRS, *OTHER_PATCHES)}
    got = {nm: dict(seconds=[], steps=[], loss=[]) for nm in learns}; spent = dict.fromkeys(learns, 0.); turn = dict.fromkeys(learns, 0)
    try:
        while (nm := min(spent, key=spent.get)) and spent[nm] < seconds:
            set_seed(seed*10_000 + turn[nm]); turn[nm] += 1                        # all of them: the same images, times and noises at the same step
            spent[nm] += timed(lambda: learns[nm].fit(1, valid=False)); learns[nm].fit(1, train=False)
            for k,v in dict(seconds=round(spent[nm], 2), steps=turn[nm]*n_steps, loss=learns[nm].metrics.history[-1]['loss']).items(): got[nm][k].append(v)
            print(f'{nm}: {spent[nm]:.0f} s, step {turn[nm]*n_steps}, validation loss {got[nm]["loss"][-1]:.4f}', flush=True)
    except KeyboardInterrupt: print('ended early')
    best = min(got[THEIRS]['loss']); a,b = reach(got[OURS], best),reach(got[THEIRS], best)
    return dict(what='unet_curve', ours=OURS, theirs=THEIRS, half='bfloat16' if bf16 else 'float32', bs=bs, lr=lr, optimiser='Adam, constant learning rate', n_valid=n_valid, seed=seed,
                clock=clock.__name__, parameters={nm: sum(p.numel() for p in l.model.parameters()) for nm,l in learns.items()}, curves=got,
                loss=best, until={OURS: a, THEIRS: b}, ratio=a and a/b)

class FusedAttention(SelfAttention):
    "Attention by torch's fused function, as it was before it was written out"
    def forward(self, x):
        n,c,h,w = x.shape
        q,k,v = self.qkv(self.norm(x)).reshape(n, 3, self.heads, -1, h*w).transpose(-1,-2).unbind(1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(-1,-2).reshape(n, c, h, w))

PARTS = {'former: fused attention, Adam in a loop': dict(sdpa=True), 'attention written out': dict(),
         'and fused Adam': dict(fused=True), 'and channels last': dict(fused=True, last=True),
         'and no attention': dict(fused=True, attn=0)}

def one_step(bs, sdpa=False, fused=False, last=False, attn=1, seed=42):
    "A function that takes one training step on the same noisy clothes, and returns its loss"
    torch.manual_seed(seed); net = UNet(widths=(64,96), n_blocks=1, patch=2, attn=attn).to(def_device)
    for m in net.modules():
        if sdpa and type(m) is SelfAttention: m.__class__ = FusedAttention
    if last: net = net.to(memory_format=torch.channels_last)
    opt = optim.Adam(net.parameters(), 1e-3, eps=1e-5, fused=fused); g = torch.Generator().manual_seed(seed)
    x = images()[0][0]; half = half_dtype()
    def _step():
        i = torch.randint(len(x), (bs,), generator=g)
        (x_t,t),ε = noisify(to_unit(torch.as_tensor(x[i])).to(def_device), ddpm(), g)
        with torch.autocast(torch.device(def_device).type, half or torch.bfloat16, enabled=half is not None): out = net(x_t, t)
        loss = F.mse_loss(out.float(), ε); loss.backward(); opt.step(); opt.zero_grad()
        return loss.item()
    return _step

def parts(bs, n_rounds):
    "What each choice costs: CPU-ms per image of a training step, all of them in turn in one process"
    ways = {nm: one_step(bs, **kw) for nm,kw in PARTS.items()}; ms = {nm: [] for nm in ways}; losses = {nm: [] for nm in ways}
    for i in range(n_rounds+1):                                                    # the first round warms up
        for nm in sorted(ways, reverse=i%2):
            s = timed(lambda: losses[nm].append(ways[nm]())); ms[nm] += [1000*s/bs] if i else []
    first = ms[next(iter(PARTS))]
    return [dict(what='unet_parts', net=nm, bs=bs, n_rounds=n_rounds, half=str(half_dtype() or torch.float32), clock=clock.__name__, ms_per_image=statistics.median(v),
                 share=statistics.median([a/b for a,b in zip(v, first)]), loss=sum(losses[nm][-50:])/len(losses[nm][-50:]), loss_of=len(losses[nm][-50:])) for nm,v in ms.items()]

@call_parse
def main(
    quick:bool=False,   # tiny sizes, to see that it runs; writes no record
    seconds:int=480,    # of training, for each network of the curves
    only:str='',        # 'steps', 'parts' or 'curves'; '': all
    bs:int=32,          # images in a step, for 'parts'
    rounds:int=20,      # steps of each, for 'parts'
    bf16:bool=False,    # train in bfloat16 for the curves, not float32
    seed:int=42,        # of weights, data and noise
):
    "Measure, print two tables, and append to results/bench.jsonl"
    log = (lambda r: r) if quick else lambda r: log_record(results_path('bench'), experiment='unet', command='python bench/unet.py', **r)
    if only in ('', 'parts'):
        rows = [log(dict(seed=42) | r) for r in parts(*((4, 1) if quick else (bs, rounds)))]
        print(Table(rows, dict(net='training step', ms_per_image='CPU-ms an image', share='of the former', loss='loss')))
    if only in ('', 'steps'):
        rows = [log(dict(seed=42) | r) for r in steps(*((4, 1) if quick else (128, 3)))]
        print(Table(rows, dict(net='U-Net', half='precision', parameters='parameters', mflops='MFLOPs an image', step_s='s a step', times_ours='times ours')))
    if only in ('', 'curves'):
        r = log(curves(*((0.5, 4, 8, 1) if quick else (seconds, 128, 512, 4)), bf16=bf16, seed=seed))
        print(Table([dict(net=nm, seconds=s, loss=r['loss']) for nm,s in r['until'].items()], dict(net='U-Net', seconds='seconds of training', loss='until the validation loss is at most')))
