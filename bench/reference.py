"""Trains the reference network as `miniai_train` does, and keeps averages of several lengths at the end of each epoch; then scores what was kept.
`python bench/reference.py train`, then `python bench/reference.py score` (appends to results/reference.jsonl), `python bench/reference.py solvers` and `python bench/reference.py seeds` (to results/karras.jsonl)."""
import json, sys, time
from pathlib import Path

import torch

from miniai.accel import EMACB
from miniai.cli import diffusion_learner, load_denoiser, reference_eval, score_solver
from miniai.core import log_record, read_records, results_path, save, set_seed
from miniai.datasets import fashion_dls
from miniai.diffusion import Denoiser, FORMS
from miniai.checkpoint import CheckpointCB
from miniai.learner import Callback
from miniai.unet import load_unet

OUT, EPOCHS, SEED, FORM = Path('runs/ref/fashion_edm'), 11, 42, dict(name='edm', sigma_data=0.706)
DECAYS = 0.99, 0.998, 0.9995

class KeepCB(Callback):
    "Saves the averaged weights of all lengths, and the CPU seconds they took, at the end of each epoch"
    order = EMACB.order+1
    def __init__(self, avgs): self.avgs,self.epoch,self.spent = avgs, 0, 0.
    def before_fit(self, learn):
        for o in self.avgs: o.before_fit(learn)
        self.start = time.process_time()
    def after_step(self, learn):
        for o in self.avgs: o.after_step(learn)
    def after_epoch(self, learn):
        if not learn.training: return
        self.epoch += 1
        for o in self.avgs: save(o.ema, f'{OUT}_e{self.epoch}_{o.decay}', dtype=torch.float16, model='UNet', config=learn.model.config, formulation=FORM, epochs=self.epoch, steps=o.n, seconds=round(self._seconds()), ema=o.decay)
    def _seconds(self): return self.spent + time.process_time()-self.start
    def state_dict(self): return dict(epoch=self.epoch, spent=self._seconds(), avgs=[o.state_dict() for o in self.avgs])
    def load_state_dict(self, state):
        self.epoch,self.spent = state['epoch'], state['spent']
        for o,s in zip(self.avgs, state['avgs']): o.load_state_dict(s)

def train():
    "The reference recipe; a killed run goes on where it was"
    set_seed(SEED); dls = fashion_dls(64, None, 2000)
    learn = diffusion_learner(dls, EPOCHS, FORM, cbs=[KeepCB([EMACB(d) for d in DECAYS])])
    learn.fit(EPOCHS, cbs=CheckpointCB(f'{OUT}-checkpoint', every=250))

def score(n=2048, last=False):
    "FID of what was kept against training time, by ten calls of DPM-Solver++(2M)"
    ie = reference_eval(); path,n = results_path('reference'), int(n)
    for card in sorted(OUT.parent.glob(f'fashion_edm_e{EPOCHS}_{max(DECAYS)}.json' if last else 'fashion_edm_e*.json')):
        c = json.loads(card.read_text())
        if c['epochs'] not in ((1, 2, 4, 7, 9, EPOCHS) if c['ema'] == max(DECAYS) else (EPOCHS,)) or read_records(path, epochs=c['epochs'], ema=c['ema'], n=n): continue
        net,_ = load_unet(card.with_suffix('')); den = Denoiser(net, FORMS['edm'](FORM['sigma_data']), bf16=True)
        r = log_record(path, **score_solver(den, ie, 'dpmpp_2m', 10, n, SEED, model='fashion_edm', epochs=c['epochs'], steps_trained=c['steps'], ema=c['ema'], cpu_seconds=c['seconds']))
        print(c['epochs'], c['ema'], round(r['fid'], 2), flush=True)

TABLE = [('dpmpp_2m', 10, None), ('dpmpp_2m', 20, None), ('unipc', 10, None), ('dpmpp_3m', 10, None), ('lms', 20, None), ('dpmpp_2m', 15, None), ('heun', 20, None), ('ddim', 100, 1.), ('ddim', 100, 0.5), ('ddim', 100, None), ('heun', 50, None),
         ('dpmpp_2m', 5, None), ('unipc', 5, None), ('dpmpp_3m', 5, None), ('lms', 5, None), ('ddim', 5, None), ('heun', 3, None), ('lms', 10, None), ('ddim', 10, None), ('ddim', 20, None), ('heun', 10, None), ('unipc', 20, None), ('dpmpp_3m', 20, None),
         ('ddim', 20, 1.), ('unipc', 15, None), ('ddim', 20, 0.5), ('dpmpp_2m', 50, None), ('ddim', 50, 1.), ('ddim', 50, None), ('dpmpp_2m', 100, None)]

def solvers(part=0, parts=1, n=2048):
    "Every solver on the reference network; what is on record already is not made again"
    den,_ = load_denoiser('fashion_edm'); ie = reference_eval(); path = results_path('karras')
    for name,steps,eta in TABLE[int(part)::int(parts)]:
        if read_records(path, what='solver', model='fashion_edm', solver=name, steps=steps, eta=eta, n=n): continue
        r = log_record(path, **score_solver(den, ie, name, steps, n, SEED, eta=eta, model='fashion_edm'))
        print(name, steps, eta, r['nfe'], round(r['fid'], 2), r['seconds'], flush=True)

def seeds(n=2048):
    "The best of few calls and the best of all, from other noise: is the difference between them one?"
    den,_ = load_denoiser('fashion_edm'); ie = reference_eval(); path = results_path('karras')
    for seed in (SEED, SEED+1, SEED+2):
        for name,steps,eta in (('unipc', 10, None), ('ddim', 50, 1.)):
            what = dict(model='fashion_edm', solver=name, steps=steps, eta=eta, n=n, seed=seed)
            if read_records(path, what='solver, seeds', **what): continue
            old = read_records(path, what='solver', **what); r = old[-1] if old else score_solver(den, ie, name, steps, n, seed, eta=eta, model='fashion_edm')
            r = log_record(path, **{k: v for k,v in r.items() if k not in ('time', 'scale', 'device', 'versions')} | dict(what='solver, seeds')); print(name, seed, round(r['fid'], 2), flush=True)

if __name__ == '__main__': dict(train=train, score=score, solvers=solvers, seeds=seeds)[sys.argv[1]](*sys.argv[2:])
