"""What lesson 19 compares: ranges of pixels and schedules (a training each), and calling the network less often.
`python experiments/choices.py` trains in ±0.5 with β up to 0.01, as the lesson had it; `--choice '±1'` is the control;
`--long` trains either until its images are garments: three epochs of all images, a larger network, Muon on the matrices, an average of the weights;
`python experiments/choices.py --choice sparse` scores the lesson's list of 296 times with `fashion_ddpm`, `skip` its other one,
`every` all thousand, `ddim` 25 steps of DDIM.
Appends to results/eval.jsonl; what is on record already is not made again."""
import time

import torch
from fastcore.script import call_parse

from miniai.accel import EMACB
from miniai.core import log_record, read_records, results_path, set_seed
from miniai.datasets import fashion_dls
from miniai.ddim import subsequence
from miniai.denoiser import Denoiser, WrappedDenoiser, clip_x0
from miniai.diffusion import ddpm, levels
from miniai.learner import Callback, DeviceCB
from miniai.recipes import diffusion_learner, load_denoiser, reference_eval
from miniai.solvers import sample
from miniai.unet import UNet

TRAININGS = {'±1': (1., 0.02), '±0.5': (0.5, 0.02), '±1, β to 0.01': (1., 0.01), '±0.5, β to 0.01': (0.5, 0.01)}
CALLS = {'sparse': {t for t in range(1000) if (t+101) % ((t+101)//100) == 0},
         'skip': {t for t in range(1000) if t < 50 or (999-t) % 3 == 0}, 'every': set(range(1000))}

class ScaleCB(Callback):
    "Images times a factor, before they are noised"
    order = DeviceCB.order+0.5
    def __init__(self, size): self.size = size
    def before_batch(self, learn): learn.batch = (learn.batch[0]*self.size, *learn.batch[1:])

class AskAt(WrappedDenoiser):
    "A denoiser that is called at the times in `at` only; at others its last ε̂ is used again"
    def __init__(self, den, at):
        super().__init__(den)
        self.at,self.ε = at, None
    def __call__(self, x, level, y=None):
        if self.ε is None or level.t in self.at or len(self.ε) != len(x): self.ε = super().__call__(x, level, y)[1]
        return (x - level.sigma*self.ε)/level.alpha, self.ε

SHORT = dict(n_train=38_400, epochs=1, widths=(32,64), attn=1, muon=0.)
LONG = dict(n_train=60_000, epochs=3, widths=(64,96), attn=0, muon=0.01)

def train(choice, seed, n_train, epochs, widths, attn, muon):
    "`(images in ±1, fields)` of a training"
    size,beta_max = TRAININGS[choice]
    set_seed(seed)
    form,start = ddpm(beta_max=beta_max), time.process_time()
    net,avg = UNet(widths=widths, n_blocks=1, attn=attn, patch=2), EMACB(0.998)
    learn = diffusion_learner(fashion_dls(64, n_train, say=lambda s: None), form, net.to(memory_format=torch.channels_last),
                              muon=muon, cbs=[ScaleCB(size), *([avg] if muon else [])])
    learn.fit(epochs)
    if muon: learn.model.load_state_dict(avg.ema)
    den = clip_x0(Denoiser(learn.model.eval(), form, torch.bfloat16), (-size, size))
    x = sample(den, (512,1,28,28), 'ddim', levels=levels(form, subsequence(50, 1000, 'trailing')), seed=seed)
    return x/size, dict(what='choice', choice=choice, n_train=n_train, epochs=epochs, nfe=50, lo=-size, hi=size, beta_max=beta_max,
                        loss=learn.metrics.history[-1]['loss'], cpu_seconds=round(time.process_time()-start))

def call(choice, seed):
    "`(images, fields)` of the whole way back, with the network called at some times only, or of 25 steps of DDIM"
    den,start = load_denoiser('fashion_ddpm'), time.process_time()
    ls = levels(den.form, subsequence(25) if choice == 'ddim' else reversed(range(1000)))
    asked = clip_x0(den if choice == 'ddim' else AskAt(den, CALLS[choice]))
    x = sample(asked, 512, 'ddim' if choice == 'ddim' else 'ddpm', levels=ls, seed=seed, bs=512)
    return x, dict(what='asking', solver=choice, nfe=25 if choice == 'ddim' else len(CALLS[choice]), model='fashion_ddpm',
                   trained=den.card['cpu_seconds'], cpu_seconds=round(time.process_time()-start))

@call_parse
def main(
    choice:str='±0.5, β to 0.01',  # a training, or 'sparse', 'skip', 'every' or 'ddim'
    seed:int=42,                   # of weights and noise
    long:bool=False,               # train until the images are garments
):
    "Make and score 512 images"
    path = results_path('eval')
    command = f"python experiments/choices.py --choice '{choice}' --seed {seed}" + ' --long'*long
    if read_records(path, experiment='choices', command=command): return
    x,fields = train(choice, seed, **(LONG if long else SHORT)) if choice in TRAININGS else call(choice, seed)
    r = log_record(path, **reference_eval().report(x.clamp(-1, 1), seed=seed, experiment='choices', command=command, **fields))
    print(choice, seed, round(r['fid'], 2), r.get('loss'), r['cpu_seconds'], flush=True)
