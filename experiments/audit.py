"""What each metric notices, for lessons 28 and 28b: `python experiments/audit.py [PART …]`, records in results/eval.jsonl.

floor         twelve disjoint sets of real training images, each scored by all seven metrics
changed       two of these sets after each of `audit.MANIPULATIONS`; sets with a class missing, images repeated, noise
attack        real images, bad samples and noise, attacked by 2, 4 and 8 levels, scored by a second classifier too
memorisation  real test images, samples of a network, and copies of training images, as they are and in disguise

Without a part: all. A record that is there is not made again, so the same command goes on after a kill. `--smoke`: a few images, nothing kept.
About 600 CPU seconds in all. The records of November 2026 have samples of `fashion_ddpm` (rows "U-Net", "bad"), and, as a second classifier, one
of half the width trained for half an epoch; now they are `fashion_edm` and, where it is shipped, `fashion_classifier2`."""
import argparse, tempfile
from functools import cache
from pathlib import Path

import torch

from miniai.audit import MANIPULATIONS, attack_fid, memorisation_test
from miniai.core import log_record, read_records, results_path
from miniai.datasets import to_unit
from miniai.fid import Extractor, ImageEval
from miniai.recipes import load_denoiser, reference_eval
from miniai.resnet import WEIGHTS, cut_classifier, fashion_classifier
from miniai.solvers import sample

SEED = 42

class Audit:
    "All images that the parts score, and where the records go"
    def __init__(self, path, n, n_floor, ie):
        self.path, self.n, self.n_floor, self.ie = path, n, n_floor, ie
        data = ie.dls.train
        order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(SEED))
        self.train, self.labels = to_unit(data.x[order].cpu()), data.y[order].cpu()
        self.test = to_unit(ie.dls.valid.x.cpu())
        self.spare = self.train[n*n_floor:], self.labels[n*n_floor:]
    def part(self, i): return self.train[i*self.n:(i+1)*self.n]
    def done(self, what, **kw): return bool(read_records(self.path, experiment='audit', what=what, n=self.n, **kw))
    def score(self, what, x, **kw):
        "Score images by every metric, and append the record"
        feats = self.ie.get_feats(x)
        rec = log_record(self.path, experiment='audit', what=what, command=f'python experiments/audit.py {what}',
                         **self.ie.report(feats, **{'seed': SEED} | kw), **self.ie.prdc(feats))
        print(what, kw, round(rec['fid'], 2), flush=True)
    @cache
    def drawn(self, steps): return sample(load_denoiser('fashion_edm'), self.n, steps=steps, seed=SEED).clamp(-1, 1)
    @property
    def noise(self): return torch.rand(self.n, 1, 28, 28, generator=torch.Generator().manual_seed(SEED))*2-1
    def without(self, i, cls, left):
        "Part i of the spare training images, of whose class `cls` only `left` are left"
        x,y = (o[2*i*self.n:2*(i+1)*self.n] for o in self.spare)
        gone = y == cls
        return x[~gone | (gone & (gone.cumsum(0) <= left))][:self.n]
    def surest(self):
        "Of each class the image that the classifier is surest of, many times"
        x = self.spare[0][:4*self.n]
        with torch.no_grad(): p = fashion_classifier('cpu')(x).softmax(1)
        return x[p.argmax(0)].repeat(self.n//10+1, 1, 1, 1)[:self.n]

def floor(a):
    for i in range(a.n_floor):
        if not a.done('floor', part=i): a.score('floor', a.part(i), part=i)

def changed(a):
    n = a.n
    for i in range(2):
        sets = {k: lambda f=f: f(a.part(i)) for k,f in MANIPULATIONS.items()} | {
            'other training images': lambda: a.spare[0][len(a.spare[0])-(i+1)*n:][:n],
            'no trousers': lambda: a.without(i, 1, 0), 'one pair of trousers': lambda: a.without(i, 1, 1),
            'half of the images, twice': lambda: a.part(i)[:n//2].repeat(2, 1, 1, 1),
            'a tenth, ten times': lambda: a.part(i)[:n//10].repeat(11, 1, 1, 1)[:n]}
        if not i: sets |= {'ten images, one per class': a.surest, 'uniform noise': lambda: a.noise,
                           "the U-Net's samples, 10 steps": lambda: a.drawn(10), "the U-Net's samples, 3 steps": lambda: a.drawn(3)}
        for name,make in sets.items():
            if not a.done('changed', name=name, part=i): a.score('changed', make(), name=name, part=i)

def attack(a, steps=5):
    second = None
    if (WEIGHTS/'fashion_classifier2.safetensors').exists():
        clf = fashion_classifier(name='fashion_classifier2')
        second = ImageEval(Extractor(cut_classifier(clf), 1, 28, name='fashion_classifier2'), a.ie.dls)
    for of,x in (('real', a.part(0)), ('bad', a.drawn(3)), ('noise', a.noise)):
        for eps in (0, 2, 4, 8):
            if a.done('attack', of=of, eps=eps): continue
            y = attack_fid(a.ie.extractor, x, a.ie.ref, eps, steps, of != 'real')[0] if eps else x
            twice = dict(fid2=float(second.fid(y)), floor2=second.floor(a.n), extractor2=second.extractor.hash) if second else {}
            a.score('attack', y, of=of, eps=eps, goal='raise' if of == 'real' else 'lower', **twice)

def memorisation(a):
    half = len(a.test)//2
    seen,held,fresh = a.train[-half:], a.test[:half], a.test[half:]
    copies = seen[torch.randperm(half, generator=torch.Generator().manual_seed(1))[:a.n]]
    sets = {f'real test images, {i}': fresh[i*a.n:(i+1)*a.n] for i in range(half//a.n)}
    sets |= {f'{s:.0%} copies': torch.cat([copies[:int(s*a.n)], fresh[int(s*a.n):a.n]]) for s in (.02, .05, .1, .2, .5, 1.)}
    for nm in ('JPEG 50', 'one pixel to the right', 'noise 0.02', 'contrast -5%'): sets[f'copies, {nm}'] = MANIPULATIONS[nm](copies)
    sets |= {'copies, mirrored': copies.flip(-1), 'fashion_edm, 10 steps': a.drawn(10)}
    feats = [a.ie.get_feats(o) for o in (seen, held)]
    for nm,x in sets.items():
        for space,args in (('pixels', (x, seen, held)), ('features', (a.ie.get_feats(x), *feats))):
            if a.done('memorisation', of=nm, space=space): continue
            m = memorisation_test(*args)
            log_record(a.path, experiment='audit', what='memorisation', command='python experiments/audit.py memorisation', of=nm, space=space,
                       seed=SEED, n_train=half, n_held=half, n_nearest=m.n, **(m._asdict() | dict(n=a.n)))
            print(nm, space, m, flush=True)

PARTS = dict(floor=floor, changed=changed, attack=attack, memorisation=memorisation)

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('parts', nargs='*', metavar='PART', help=', '.join(PARTS))
    ap.add_argument('--smoke', action='store_true', help='a few images, nothing kept')
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        path,n,n_floor = (Path(tmp)/'audit.jsonl', 40, 3) if args.smoke else (results_path('eval'), 512, 12)
        job = Audit(path, n, n_floor, reference_eval())
        for nm in args.parts or PARTS: PARTS[nm](job)
