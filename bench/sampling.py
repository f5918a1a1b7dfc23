"""What our DDIM loop costs beside diffusers' scheduler loop: the same U-Net, times and noise, paired in one process, in alternating order;
what fifty steps of 2M around an analytic denoiser cost beside k-diffusion's; and how many images a second the shipped U-Net makes. `python bench/sampling.py [--quick]` appends to results/bench.jsonl."""
import statistics

import torch
from fastcore.script import call_parse

from miniai.core import Table, def_device, log_record, results_path     # first: it makes torchvision importable beside a CPU build of torch
from miniai.ddim import sample_ddim
from miniai.diffusion import levels, sample_loop
from miniai.karras import from_x0, sample_dpmpp_2m, sigmas_karras, ve
from miniai.unet import load_unet
from peers import k_sampling
from timing import clock, timed
from diffusers import DDIMScheduler

def seeded(): return torch.Generator(def_device).manual_seed(42)

def ours(net, shape, steps): return sample_ddim(net, shape, steps, clip=True, generator=seeded())

@torch.no_grad()
def theirs(net, shape, steps):
    "diffusers' own loop: as its pipelines write it, without the pipeline"
    sch = DDIMScheduler(beta_end=0.02, clip_sample=True); sch.set_timesteps(steps)
    x = torch.randn(shape, device=def_device, generator=seeded())
    for t in sch.timesteps: x = sch.step(net(x, t), t, x, use_clipped_model_output=True).prev_sample
    return x.cpu()

def analytic(x, sigma, m=.6, s=.3):
    "x̂0 for pixels that are -m or m, give or take s"
    v = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1]*(x.ndim-1))**2 + s**2
    return (s**2*x + (v-s**2)*m*(m*x/v).tanh())/v

def beside_k(shape, steps):
    "Our loop and k-diffusion's, as functions without arguments"
    k,σs,x = k_sampling(), sigmas_karras(steps), 80*torch.randn(shape, generator=seeded())
    def loop(): *_,now = sample_loop(from_x0(analytic), x, levels(ve, σs), sample_dpmpp_2m); return now.x
    return dict(miniai=lambda *_: loop(), other=lambda *_: k.sample_dpmpp_2m(analytic, x, σs.float(), disable=True))

def compare(what, net, shape, steps, n_pairs, ways=None):
    "Pairs of whole sampling runs: the record's fields"
    ways = ways or dict(miniai=ours, other=theirs); secs = {k: [] for k in ways}
    a,b = (f(net, shape, steps) for f in ways.values())                   # warms up, and shows that both do the same
    for i in range(n_pairs):
        for k in sorted(ways, reverse=i%2): secs[k].append(timed(lambda: ways[k](net, shape, steps)))
    med = {k: statistics.median(v) for k,v in secs.items()}
    return dict(what='sampling loop', net=what, shape=list(shape), nfe=steps, n_pairs=n_pairs, clock=clock.__name__, median_seconds=med,
                ratio=med['miniai']/med['other'], pair_ratios=[round(o/t, 4) for o,t in zip(secs['miniai'], secs['other'])],
                largest_difference=(a-b).abs().max().item())

def throughput(net, n, steps):
    "Images a second in bfloat16, whole batch at once: the record's fields"
    with torch.autocast(torch.device(def_device).type, torch.bfloat16): secs = timed(lambda: ours(net, (n,1,28,28), steps))
    return dict(what='sampling speed', model='fashion_ddpm', solver='ddim', n=n, nfe=steps, seconds=secs, images_per_s=n/secs, clock=clock.__name__)

@call_parse
def main(
    quick:bool=False,  # a few steps and no record: does it run?
):
    "Measure, print, and append to results/bench.jsonl"
    net,_ = load_unet(); steps = 3 if quick else 50
    recs = [compare('the shipped U-Net', net, (4,1,28,28), steps, 1 if quick else 9),
            compare('no network: the loop alone', lambda x, t: 0.9*x, (4,1,28,28), steps, 3 if quick else 25),
            compare('an analytic denoiser, beside k-diffusion', None, (16,1,28,28), steps, 3 if quick else 25, beside_k((16,1,28,28), steps)),
            throughput(net, 4 if quick else 128, steps)]
    if not quick: recs = [log_record(results_path('bench'), experiment='sampling', command='python bench/sampling.py', **r) for r in recs]
    print(Table([r | {f'{k}_s': v for k,v in r['median_seconds'].items()} for r in recs[:3]],
                dict(net='network', nfe='NFE', miniai_s='miniai, s', other_s='the other, s', ratio='ratio', n_pairs='pairs', largest_difference='largest difference')))
    print(f"{recs[3]['images_per_s']:.2f} images a second, {recs[3]['nfe']} steps, batch of {recs[3]['n']}")
