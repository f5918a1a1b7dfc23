"""Adam's eps at a large learning rate, for lesson 17: `python experiments/eps.py`, records in results/train.jsonl.
A tiny U-Net, 160 steps of one cycle up to 0.01 in bfloat16, with eps 1e-8 and 1e-5 from the same start; what is on record is not made again."""
import time
from functools import partial

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import optim
from torch.optim.lr_scheduler import OneCycleLR

from miniai.accel import MixedPrecision
from miniai.core import log_record, read_records, results_path, set_seed
from miniai.datasets import fashion_dls
from miniai.diffusion import NoiseCB, ddpm
from miniai.learner import Callback, DeviceCB, Learner
from miniai.sgd import BatchSchedCB
from miniai.unet import UNet

class LossesCB(Callback):
    "Keeps the loss of each batch"
    order = 70
    def before_fit(self, learn): self.losses = []
    def after_loss(self, learn): self.losses.append(learn.loss.item())

def losses(eps, seed, lr, steps, bs):
    "The mean loss of each eight steps"
    set_seed(seed)
    rec,cycle = LossesCB(), BatchSchedCB(partial(OneCycleLR, max_lr=lr, total_steps=steps))
    cbs = [DeviceCB(), NoiseCB(ddpm()), MixedPrecision(2), rec, cycle]
    dls,net = fashion_dls(bs, steps*bs, bs, say=lambda s: None), UNet(1, (16,32), n_blocks=1, patch=2)
    Learner(net, dls, F.mse_loss, lr, cbs, partial(optim.Adam, eps=eps)).fit(1, valid=False)
    return torch.tensor(rec.losses).view(-1, 8).mean(1).tolist()

@call_parse
def main(
    seeds:int=2,   # from 42 on
    lr:float=0.01, # the highest of the cycle
):
    "Train, and append the losses"
    torch.set_num_threads(1); path = results_path('train')
    for seed in range(42, 42+seeds):
        for eps in (1e-8, 1e-5):
            what = dict(experiment='eps', what='training', eps=eps, seed=seed, lr=lr, train_steps=160, bs=64)
            if read_records(path, **what): continue
            start,l = time.process_time(), losses(eps, seed, lr, 160, 64)
            log_record(path, **what, losses=l, cpu_seconds=round(time.process_time()-start), command='python experiments/eps.py')
            print(seed, eps, round(l[-1], 3), flush=True)
