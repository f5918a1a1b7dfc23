"""Trainings of notebooks 13, 14 and 14b: `python experiments/classifier.py [NAME …]`, one record a run in results/train.jsonl.

depth       plain and residual stacks of 5 and 35 layers on 12,800 images for 12 epochs: do they fit the training images?
few         2,000 images for 40 epochs: nothing, dropout, augmentation, both
linear      2,000 images for 60 epochs, a network of linear layers: nothing, dropout
challenge5  all images for 5 epochs: no dropout, Dropout, Dropout2d, both
challenge20 the two best of these for 20 epochs, images moved and mirrored
challenge50 the best of these for 50 epochs, pieces of the images copied as well
reference   the shipped fashion_classifier (10 epochs) and its sisters of 5 epochs again, bfloat16, first block at full size
ship        rounds the best trained network and writes it to miniai/weights/fashion_classifier2

Without a name: all but reference, in the order of worth. Runs that have a record are left out, so the same command goes on after a kill.
`--smoke` runs each for a few steps and records nothing. One thread, float32 unless told otherwise, channels last."""
import argparse, statistics, time
from collections import OrderedDict
from functools import cache, partial
from pathlib import Path

import fastcore.all as fc
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim import lr_scheduler

from miniai.augment import Dropout, Dropout2d, rand_copy, rand_crop, rand_flip
from miniai.conv import conv
from miniai.core import load, log_record, read_records, results_path, save, set_seed
from miniai.datasets import FASHION_CLASSES, DataLoaders, TensorLoader, fashion_dls
from miniai.init import BatchTransformCB, init_weights
from miniai.learner import DeviceCB, MetricsCB, TrainLearner
from miniai.resnet import WEIGHTS, resnet_model
from miniai.sgd import BatchSchedCB
from torcheval.metrics import MulticlassAccuracy      # after miniai.core, which makes torchvision importable

KEEP = Path(__file__).parent.parent/'checkpoints'/'classifier'     # weights of the runs, outside git
RESULTS = results_path('train')

# --- networks

class Plain(nn.Module):
    "Two convolutions with batch norm"
    def __init__(self, nf):
        super().__init__()
        bn = nn.BatchNorm2d
        self.convs = nn.Sequential(conv(nf, nf, stride=1, norm=bn), conv(nf, nf, stride=1, act=None, norm=bn))
    def forward(self, x): return F.relu(self.convs(x))

class Residual(Plain):
    "The same, added to the input"
    def forward(self, x): return F.relu(self.convs(x) + x)

def stack(block, depth, nf=16):
    "Two convolutions down to 7×7, `depth` blocks, the mean of each map, a linear layer"
    stem = [conv(1, 8, norm=nn.BatchNorm2d), conv(8, nf, norm=nn.BatchNorm2d)]
    return nn.Sequential(*stem, *(block(nf) for _ in range(depth)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nf, 10))

def with_dropout(model, p=0., p2d=0.):
    "The classifier with channels dropped after its fourth block and features before its head; the other layers keep their names"
    layers = []
    for nm,m in model.named_children():
        if nm == 'lin' and p: layers.append(('drop', Dropout(p)))
        layers.append((nm, m))
        if nm == 'block3' and p2d: layers.append(('drop2d', Dropout2d(p2d)))
    return nn.Sequential(OrderedDict(layers))

def small_resnet(p=0., p2d=0.): return with_dropout(resnet_model(stride=2), p, p2d).apply(partial(init_weights, leaky=0.1))

# --- a run

def on_images(f): return lambda b: (f(b[0]), *b[1:])
MOVED = on_images(lambda x: rand_flip(rand_crop(x)))
COPIED = on_images(lambda x: rand_copy(rand_flip(rand_crop(x))))

class ChannelsLastLearner(TrainLearner):
    half = False
    def predict(self):
        x = self.batch[0].contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half): self.preds = self.model(x).float()

@cache
def images(): return fashion_dls(256, say=fc.noop)

def first(n, bs, n_valid):
    "Loaders over the first `n` training and `n_valid` test images"
    a,b = images().train, images().valid
    return DataLoaders(TensorLoader(a.x[:n], a.y[:n], bs, shuffle=True), TensorLoader(b.x[:n_valid], b.y[:n_valid], 500))

def score(model, loader, tta=False):
    "Accuracy, in eval mode"
    learn = ChannelsLastLearner(model, DataLoaders([], loader), F.cross_entropy, cbs=DeviceCB(), opt_func=None)
    preds,targs = learn.tta() if tta else learn.capture_preds()
    return (preds.argmax(1) == targs).double().mean().item()

def train(make, epochs, seed, n_train=60_000, bs=256, n_valid=10_000, max_lr=5e-3, wd=0.05, tfm=None, half=False):
    "`(model, loaders, what was measured)`"
    dls = first(n_train, bs, n_valid)
    set_seed(seed); model = make().to(memory_format=torch.channels_last)
    m = MetricsCB(accuracy=MulticlassAccuracy()); m.show = fc.noop
    cbs = [DeviceCB(), m, BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=max_lr, total_steps=epochs*len(dls.train)))]
    if tfm: cbs.append(BatchTransformCB(tfm, on_val=False))
    learn = ChannelsLastLearner(model, dls, F.cross_entropy, lr=max_lr, cbs=cbs, opt_func=partial(optim.AdamW, weight_decay=wd))
    learn.half, c, t = half, time.process_time(), time.perf_counter()
    learn.fit(epochs)
    took = dict(cpu_seconds=time.process_time()-c, seconds=time.perf_counter()-t)
    return model, dls, dict(took, n_train=n_train, bs=bs, lr=max_lr, weight_decay=wd, history=m.history)

def run(what, name, make, epochs, seed, smoke=False, keep=False, **kw):
    "Trains, measures, appends a record; nothing if it is there"
    if read_records(RESULTS, experiment='classifier', what=what, run=name, epochs=epochs, seed=seed) and not smoke: return
    if smoke: epochs,kw = 1, kw | dict(n_train=256, n_valid=100)
    model,dls,rec = train(make, epochs, seed, **kw)
    test = first(256, 256, 100 if smoke else 10_000).valid
    rec |= dict(accuracy=score(model, test), accuracy_tta=score(model, test, tta=True), accuracy_train=score(model, TensorLoader(dls.train.x[:10_000], dls.train.y[:10_000], 500)),
                n_test=len(test.x), half='bfloat16' if kw.get('half') else 'float32', command=f'python experiments/classifier.py {what}')
    print(time.strftime('%H:%M:%S'), what, name, f'{epochs} epochs, seed {seed}:', *(f'{k} {rec[k]:.4f}' for k in ('accuracy', 'accuracy_tta', 'accuracy_train')), f'{rec["cpu_seconds"]:.0f} CPU s', flush=True)
    if smoke: return
    if keep: save(model, KEEP/f'{what}_{name}_{seed}'.replace(' ', '_'), dtype=torch.float16)
    log_record(RESULTS, experiment='classifier', what=what, run=name, epochs=epochs, seed=seed, **rec)

# --- the experiments

STACKS = {'plain, 5 layers': (Plain, 1), 'plain, 35 layers': (Plain, 16), 'residual, 35 layers': (Residual, 16)}
def depth(seeds=(0, 1, 2), **kw):
    for s in seeds:
        for nm,(block,d) in STACKS.items(): run('depth', nm, partial(stack, block, d), 12, s, n_train=12_800, bs=64, n_valid=2000, max_lr=1e-2, wd=0.01, **kw)

FEW = {'nothing': ({}, None), 'dropout': (dict(p=0.5, p2d=0.2), None), 'augmentation': ({}, COPIED), 'both': (dict(p=0.5, p2d=0.2), COPIED)}
def few(seeds=(42, 43, 44), **kw):
    for s in seeds:
        for nm,(drop,tfm) in FEW.items(): run('few', nm, partial(small_resnet, **drop), 40, s, n_train=2000, bs=64, n_valid=2000, tfm=tfm, **kw)

def linear_layers(p=0., p_in=0., width=512):
    "Three linear layers, `p_in` of the pixels and `p` of each hidden layer dropped"
    hidden = [nn.Linear(784, width), nn.ReLU(), Dropout(p), nn.Linear(width, width), nn.ReLU(), Dropout(p)]
    return nn.Sequential(nn.Flatten(), Dropout(p_in), *hidden, nn.Linear(width, 10))

LINEAR = {'nothing': {}, 'dropout': dict(p=0.5, p_in=0.2)}
def linear(seeds=(42, 43, 44), **kw):
    for s in seeds:
        for nm,drop in LINEAR.items():
            run('linear', nm, partial(linear_layers, **drop), 60, s, n_train=2000, bs=64, n_valid=2000, max_lr=2e-3, wd=0., **kw)

DROPS = {'no dropout': {}, 'Dropout': dict(p=0.2), 'Dropout2d': dict(p2d=0.1), 'both': dict(p=0.2, p2d=0.1)}
def challenge5(seeds=(42, 43, 44), **kw):
    for s in seeds:
        for nm,drop in DROPS.items(): run('challenge5', nm, partial(small_resnet, **drop), 5, s, keep=True, **kw)

def best(what, n):
    "The `n` kinds of dropout with the highest mean accuracy so far"
    recs = read_records(RESULTS, experiment='classifier', what=what)
    means = {nm: statistics.mean(accs) for nm in DROPS if (accs := [r['accuracy'] for r in recs if r['run'] == nm])}
    return sorted(means, key=means.get, reverse=True)[:n]

def challenge20(seeds=(42, 43, 44), n=2, **kw):
    for s in seeds:
        for nm in best('challenge5', n): run('challenge20', nm, partial(small_resnet, **DROPS[nm]), 20, s, keep=True, tfm=MOVED, **kw)

def challenge50(seeds=(42,), **kw):
    for s in seeds:
        for nm in best('challenge20', 1): run('challenge50', nm, partial(small_resnet, **DROPS[nm]), 50, s, keep=True, tfm=COPIED, **kw)

def reference(**kw):
    "What is shipped as fashion_classifier: `again` in the records, since the first run has its own record"
    def one(name, epochs, seed, drop={}, tfm=COPIED):
        make = lambda: with_dropout(resnet_model(), **drop).apply(partial(init_weights, leaky=0.1))
        run('reference', name, make, epochs, seed, keep=True, tfm=tfm, half=True, **kw)
    one('again', 10, 42)
    for s in (42, 43, 44):
        one('5 epochs', 5, s); one('5 epochs, dropout', 5, s, dict(p=0.2, p2d=0.1)); one('5 epochs, no augmentation', 5, s, tfm=None)

def ship(smoke=False):
    "The longest training there is, the kind of dropout with the best mean of those whose weights are here, the first seed: chosen before looking at single runs"
    what = next((w for w in ('challenge50', 'challenge20', 'challenge5') if read_records(RESULTS, experiment='classifier', what=w)), None)
    if smoke: return
    if what is None: raise FileNotFoundError(f'{RESULTS} has no run of the challenge; run `python experiments/classifier.py challenge5` first')
    kept = lambda nm, seed: KEEP/f'{what}_{nm}_{seed}'.replace(' ', '_')
    name = next(nm for nm in best(what, len(DROPS)) if kept(nm, 42).with_suffix('.safetensors').exists()); rec = min(read_records(RESULTS, experiment='classifier', what=what, run=name), key=lambda r: r['seed'])
    model,_ = load(kept(name, rec["seed"]), resnet_model(stride=2))
    test = first(256, 256, 10_000).valid; tfm = dict(challenge5='none', challenge20='moved by up to a pixel, mirrored', challenge50='moved by up to a pixel, mirrored, pieces copied')
    card = dict(data='Fashion-MNIST, 60,000 training images, files checked against the published MD5s (datasets.check_md5)', architecture='miniai.resnet.resnet_model(stride=2)',
        model=dict(stride=2), input_size=[1,28,28], input_range=[-1,1], classes=FASHION_CLASSES, feature_layer='pool (model[:-2], cut_classifier())', n_features=512,
        recipe=f'AdamW {rec["lr"]} one-cycle, weight decay {rec["weight_decay"]}, batches of {rec["bs"]}, augmentation: {tfm[what]}; dropout: {name} {DROPS[name]}; float32',
        accuracy=score(model, test), accuracy_tta=score(model, test, tta=True), stored_as='float16')
    path = save(model, WEIGHTS/'fashion_classifier2', dtype=torch.float16, **card, **{k: rec[k] for k in ('epochs', 'seed', 'n_train', 'n_test', 'cpu_seconds', 'device', 'versions', 'time', 'command')})
    print(f'{path.name}: {path.stat().st_size/1e6:.1f} MB, {card["accuracy"]:.4f}, by {what}, {name}, seed {rec["seed"]}')

ALL = dict(depth=depth, few=few, linear=linear, challenge5=challenge5, challenge20=challenge20, challenge50=challenge50, reference=reference, ship=ship)

def in_order_of_worth(**kw):
    depth(seeds=(0,), **kw); few(seeds=(42,), **kw); linear(**kw); challenge5(seeds=(42,), **kw); challenge20(seeds=(42,), n=1, **kw); ship(**kw)
    depth(**kw); few(seeds=(42, 43), **kw); challenge5(**kw); few(**kw); challenge20(**kw); ship(**kw); challenge50(**kw); ship(**kw)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', metavar='NAME'); p.add_argument('--smoke', action='store_true')
    a = p.parse_args(); torch.set_num_threads(1)
    if unknown := [nm for nm in a.names if nm not in ALL]: p.error(f'no experiment {unknown[0]!r}; there are: {", ".join(ALL)}')
    if not a.names: return in_order_of_worth(smoke=a.smoke)
    for nm in a.names: ALL[nm](smoke=a.smoke)

if __name__ == '__main__': main()
