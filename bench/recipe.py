"What made the reference network good: one choice changed at a time, the same seconds of one CPU core for each; appends to results/recipe.jsonl: python bench/recipe.py [names]"
import sys, time
import torch
from miniai.accel import EMACB
from miniai.core import log_record, results_path, set_seed
from miniai.cli import T_SCALES, diffusion_learner, reference_eval
from miniai.datasets import DataLoaders, TensorLoader, fashion_dls
from miniai.diffusion import Denoiser, edm_form, eps_pred, generate, levels, rho_grid, step_dpmpp_2m, ve, v_pred
from miniai.learner import Callback, DeviceCB
from miniai.unet import UNet

SECONDS, SD, N, NFE, SEED = 200, 0.706, 2048, 10, 42          # CPU seconds of training; σ_data; images and calls in scoring
BASE = dict(bs=64, patch=2, widths=(64,96), pred='EDM', flip=False)
CHOICES = {'as the reference': {}, 'batches of 128': dict(bs=128), 'batches of 32': dict(bs=32), 'half mirrored': dict(flip=True), 'asks for ε': dict(pred='ε'),
           'asks for v': dict(pred='v'), 'no patches, narrower': dict(patch=1, widths=(32,48,64)), 'wider': dict(widths=(96,128)), 'P_mean -0.8': dict(P_mean=-0.8)}

class FlipCB(Callback):
    "Mirrors half of the training images"
    order = DeviceCB.order+0.5
    def before_batch(self, learn):
        if learn.training: x = learn.batch[0]; learn.batch = (torch.where(torch.rand(len(x),1,1,1, device=x.device) < .5, x.flip(-1), x), *learn.batch[1:])

def form_of(pred, P_mean=-1.2):
    "EDM's noise levels and scaling, another question"
    form = edm_form(SD, P_mean)
    return form if pred == 'EDM' else form._replace(pred=dict(ε=eps_pred, v=v_pred)[pred])

def learner(o, steps, cbs=()):
    "A learner that will take so many steps in one epoch"
    set_seed(SEED); x = fashion_dls(o['bs'], say=lambda s: None).train.x
    n = steps*o['bs']; x = torch.cat([x[torch.randperm(len(x))] for _ in range(-(-n//len(x)))])[:n]
    dls = DataLoaders(TensorLoader(x, None, o['bs'], shuffle=True), [])
    model = UNet(1, o['widths'], n_blocks=1, attn=1, patch=o['patch'], t_scale=T_SCALES['edm'])
    return diffusion_learner(dls, 1, form_of(o['pred'], o.get('P_mean', -1.2)), model=model, cbs=[*([FlipCB()] if o['flip'] else []), *cbs])

def steps_in(o, seconds):
    "How many steps so many CPU seconds are worth: timed on six, after two"
    for k in (2, 6): start = time.process_time(); learner(o, k).fit(1, valid=False)
    a = time.process_time()-start; start = time.process_time(); learner(o, 2).fit(1, valid=False)
    return round(seconds/((a-(time.process_time()-start))/4))

def run(name, ie, path):
    "Train for SECONDS with one choice changed, score, record"
    o = BASE | CHOICES[name]; steps = steps_in(o, SECONDS); ema = EMACB(0.99)
    learn = learner(o, steps, [ema]); start = time.process_time(); learn.fit(1, valid=False); secs = time.process_time()-start
    learn.model.load_state_dict(ema.ema); den = Denoiser(learn.model.eval(), form_of(o['pred'], o.get('P_mean', -1.2)), bf16=True)
    x = generate(den, (N,1,28,28), levels(ve, rho_grid(NFE)), step_dpmpp_2m, SEED).x.clamp(-1, 1)
    r = log_record(path, **ie.report(x, seed=SEED, what='recipe', choice=name, **o, steps=steps, cpu_seconds=round(secs), images=steps*o['bs'], params=sum(p.numel() for p in learn.model.parameters()), ema=0.99, solver='dpmpp_2m', nfe=NFE))
    print(name, steps, round(secs), round(r['fid'], 2), flush=True)

if __name__ == '__main__':
    torch.set_num_threads(1); ie = reference_eval()
    for name in sys.argv[1:] or CHOICES: run(name, ie, results_path('recipe'))
