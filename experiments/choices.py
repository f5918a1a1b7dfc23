"""What lesson 19 compares: ranges of pixels and schedules (a training each), and calling the network less often.
`python experiments/choices.py` trains in ±0.5 with β up to 0.01, as the lesson had it; `--choice '±1'` is the control;
`python experiments/choices.py --choice sparse` scores the lesson's list of 296 times with `fashion_ddpm`, `skip` its other one,
`every` all thousand, `ddim` 25 steps of DDIM.
Appends to results/eval.jsonl; what is on record already is not made again."""
import time

import torch
from fastcore.script import call_parse

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

def train(choice, seed, n_train=38_400):
    "`(images in ±1, fields)` of one epoch of the smallest U-Net"
    size,beta_max = TRAININGS[choice]
    set_seed(seed)
    form,start = ddpm(beta_max=beta_max), time.process_time()
    learn = diffusion_learner(fashion_dls(64, n_train, say=lambda s: None), form, UNet(widths=(32,64), n_blocks=1, patch=2),
                              cbs=[ScaleCB(size)])
    learn.fit(1)
    den = clip_x0(Denoiser(learn.model.eval(), form, torch.bfloat16), (-size, size))
    x = sample(den, (512,1,28,28), 'ddim', levels=levels(form, subsequence(50, 1000, 'trailing')), seed=seed)
    return x/size, dict(what='choice', choice=choice, n_train=n_train, epochs=1, nfe=50, lo=-size, hi=size, beta_max=beta_max,
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
):
    "Make and score 512 images"
    path = results_path('eval')
    command = f"python experiments/choices.py --choice '{choice}' --seed {seed}"
    if read_records(path, experiment='choices', command=command): return
    x,fields = train(choice, seed) if choice in TRAININGS else call(choice, seed)
    r = log_record(path, **reference_eval().report(x.clamp(-1, 1), seed=seed, experiment='choices', command=command, **fields))
    print(choice, seed, round(r['fid'], 2), r.get('loss'), r['cpu_seconds'], flush=True)
