"A fit that was killed, and called again, ends with the same bits as one that never was: weights, optimiser, averages, history"
import os, signal
from functools import partial
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from common import run_python
from miniai.accel import AccumulateCB, ClipGradCB, EMACB, MixedPrecision
from miniai.checkpoint import CheckpointCB
from miniai.core import set_seed
from miniai.datasets import DataLoaders, TensorLoader
from miniai import diffusion, karras, schedules, solvers     # each registers its form
from miniai.init import BatchTransformCB
from miniai.learner import Callback, DeviceCB, Learner, MetricsCB, MomentumLearner, TrainCB, TrainLearner
from miniai.sgd import BatchSchedCB, RecorderCB

N, BS, EPOCHS = 40, 6, 3           # seven batches an epoch, the last one smaller
N_BATCHES = -(-N//BS)

def data():
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (N,1,4,4), generator=g, dtype=torch.uint8), torch.randint(0, 3, (N,), generator=g)

def classifier(): return nn.Sequential(nn.Flatten(), nn.Linear(16,8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8,3))

class Net(nn.Module):
    "A network of noised images and their level"
    def __init__(self): super().__init__(); self.l = nn.Linear(17, 16)
    def forward(self, x, t, y=None): return self.l(torch.cat([x.flatten(1), t[:,None].float()/1000], 1)).view_as(x)

class NoiseCB(Callback):
    "Noise in `before_batch`, from torch's generator or one of its own; in validation too"
    order = DeviceCB.order+1
    def __init__(self, gen=None): self.gen = gen
    def before_batch(self, learn):
        x = learn.batch[0]; t = torch.rand(len(x), generator=self.gen); ε = torch.randn(x.shape, generator=self.gen)
        learn.batch = x*(1-t)[:,None,None,None] + ε*t[:,None,None,None], t, ε

def dls(kind):
    x,y = data(); gen = torch.Generator().manual_seed(5) if 'own' in kind else None
    if 'torch' in kind: return DataLoaders(*(DataLoader(TensorDataset(x.float()/128-1, y), BS, shuffle=s, generator=gen) for s in (True, False)))
    if 'collate' in kind:
        rng = np.random.RandomState(3) if 'old' in kind else np.random.default_rng(3)
        def collate(b):             # draws from two generators, between the draws of the training itself
            xs,ys = zip(*b); return torch.stack(xs) + torch.randn(1) + collate.rng.normal(), torch.stack(ys)
        collate.rng = rng
        ds = TensorDataset(x.float()/128-1, y); ds.rng = rng       # where it can be found
        return DataLoaders(DataLoader(ds, BS, shuffle=True, collate_fn=collate), DataLoader(ds, BS))
    return DataLoaders(TensorLoader(x, y, BS, shuffle=True, generator=gen), TensorLoader(x, y, BS))

def accs():
    from torcheval.metrics import MulticlassAccuracy
    import torchmetrics
    return dict(acc=MulticlassAccuracy(), all=torchmetrics.MetricCollection([torchmetrics.Accuracy('multiclass', num_classes=3), torchmetrics.F1Score('multiclass', num_classes=3, average='macro')]))

def learner(kind):
    "A learner whose training draws random numbers wherever one can"
    set_seed(3); cbs = [DeviceCB('cpu'), MetricsCB(**(accs() if 'metrics' in kind else {}))]
    if kind.startswith('form'):
        drop = 0.5 if 'labels' in kind else None; n = 2 if drop is None else 3
        cbs += [diffusion.NoiseCB(kind.split()[1], drop), MixedPrecision(n, device='cpu') if 'bf16' in kind else TrainCB(n), AccumulateCB(2), EMACB(0.9), EMACB(0.5)]
        return Learner(Net(), dls(kind), F.mse_loss, lr=1e-2, cbs=cbs, opt_func=optim.Adam)
    if 'noise' in kind:
        cbs += [NoiseCB(torch.Generator().manual_seed(9) if 'own' in kind else None), MixedPrecision(2, device='cpu') if 'bf16' in kind else TrainCB(2)]
        if 'ema' in kind: cbs += [EMACB(0.9), BatchSchedCB(lambda opt: lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=EPOCHS*N_BATCHES))]
        return Learner(Net(), dls(kind), F.mse_loss, lr=1e-2, cbs=cbs, opt_func=optim.Adam)
    if 'transform' in kind: cbs.append(BatchTransformCB(lambda b: (b[0]+torch.randn_like(b[0]), b[1])))
    L = MomentumLearner if 'momentum' in kind else TrainLearner
    return L(classifier(), dls(kind), F.cross_entropy, lr=1e-2, cbs=cbs, opt_func=optim.SGD if 'momentum' in kind else optim.Adam)

class Killed(BaseException): "As a kill: nobody catches it"

class KillCB(Callback):
    "Dies after one batch of training or of validation, or before an epoch"
    order = 200
    def __init__(self, epoch, i, training=True): self.at = epoch, i, training
    def _die(self, learn, i):
        if (learn.epoch, i, learn.training) == self.at: raise Killed()
    def before_epoch(self, learn): self._die(learn, -1)
    def after_batch(self, learn): self._die(learn, learn.iter)

def everything(learn):
    "All that must be the same bits"
    ts = [*learn.model.state_dict().values(), *(v for s in learn.opt.state_dict()['state'].values() for v in s.values() if isinstance(v, torch.Tensor))]
    hist = [cb.history for cb in learn.cbs if isinstance(cb, MetricsCB)]
    emas = [v for cb in learn.cbs if isinstance(cb, EMACB) for v in cb.ema.values()]
    return torch.cat([t.detach().double().flatten() for t in [*ts, *emas]]), hist, torch.rand(1).item()

def same(a, b): return torch.equal(a[0], b[0]) and a[1:] == b[1:]

KINDS = ['classifier metrics', 'classifier transform', 'momentum', 'classifier torch', 'classifier torch own', 'classifier collate', 'classifier collate old', 'noise', 'noise own', 'noise torch', 'noise ema', 'noise ema bf16 own',
         'form ddpm', 'form cosine bf16', 'form edm labels', 'form flow torch own']
KILLS = [(1, 3, True), (1, 1, True), (0, N_BATCHES-1, True), (1, 2, False), (2, -1, True), (1, -1, False), (2, N_BATCHES-1, False)]

@pytest.mark.parametrize('kind', KINDS)
def test_killed_and_resumed(kind, tmp_path, capsys):
    whole = learner(kind); whole.fit(EPOCHS); want = everything(whole)
    for n,kill in enumerate(KILLS):
        path = tmp_path/f'c{n}'; ck = lambda: CheckpointCB(path, every=(None, 2, 1, None, 3, 2, 4)[n])
        with pytest.raises(Killed): learner(kind).fit(EPOCHS, cbs=[ck(), KillCB(*kill)])
        again = learner(kind); set_seed(99); again.fit(EPOCHS, cbs=ck())
        assert same(everything(again), want), kill

def test_killed_three_times(tmp_path):
    whole = learner('noise ema'); whole.fit(EPOCHS); want = everything(whole); ck = lambda: CheckpointCB(tmp_path/'c', every=1)
    for kill in ((0, 4, True), (0, 6, True), (2, 3, True)):
        with pytest.raises(Killed): learner('noise ema').fit(EPOCHS, cbs=[ck(), KillCB(*kill)])
    again = learner('noise ema'); again.fit(EPOCHS, cbs=ck())
    assert same(everything(again), want)

def recorded(compiled=False):
    set_seed(3); net = classifier()
    if compiled: net[1] = torch.compile(net[1], backend='eager')
    rec = RecorderCB(lr=lambda cb: cb.pg['lr'], w=lambda cb: next(cb.learn.model.parameters())[0,0], odd=lambda cb: object())
    return TrainLearner(net, dls('classifier'), F.cross_entropy, lr=1e-2, cbs=[DeviceCB('cpu'), ClipGradCB(.1), EMACB(.9), rec], opt_func=optim.Adam)

def test_records_go_on(tmp_path):
    "`recs` and `norms` hold all steps, also those before the kill"
    whole = recorded(); whole.fit(EPOCHS)
    with pytest.raises(Killed): recorded().fit(EPOCHS, cbs=[CheckpointCB(tmp_path/'c', every=2), KillCB(1, 3)])
    again = recorded(); again.fit(EPOCHS, cbs=CheckpointCB(tmp_path/'c'))
    (_,c,_,r),(_,C,_,R) = again.cbs, whole.cbs
    assert len(c.norms) == EPOCHS*N_BATCHES and torch.equal(torch.stack(c.norms), torch.stack(C.norms))
    assert r.recs['lr'] == R.recs['lr'] and torch.equal(torch.stack(r.recs['w']), torch.stack(R.recs['w']))

@pytest.mark.parametrize('first', [True, False], ids=['then not', 'then compiled'])
def test_a_part_that_is_compiled(first, tmp_path):
    "Has other names for its weights: the checkpoint holds those of the model as it is without, and fits both"
    whole = recorded(); whole.fit(EPOCHS)
    with pytest.raises(Killed): recorded(first).fit(EPOCHS, cbs=[CheckpointCB(tmp_path/'c', every=2), KillCB(1, 3)])
    again = recorded(not first); again.fit(EPOCHS, cbs=CheckpointCB(tmp_path/'c'))
    assert all(torch.equal(a, b) for a,b in zip(again.model.parameters(), whole.model.parameters()))
    assert all(torch.equal(a, b) for a,b in zip(again.cbs[2].ema.values(), whole.cbs[2].ema.values()))

GLOBAL = None
def jitter_global(b): return b[0] + torch.randn(b[0].shape, generator=GLOBAL), b[1]
class Jitter(nn.Module):
    "A network that draws from a generator of its own"
    def __init__(self, g): super().__init__(); self.net,self.g = classifier(), g
    def forward(self, x): return self.net(x + torch.randn(x.shape, generator=self.g))

@pytest.mark.parametrize('where', ['closure', 'partial', 'global', 'method', 'model'])
def test_a_generator_wherever_it_is(where, tmp_path):
    "Its draws go on, too, where a function, a part of one, or a network has it"
    def made():
        global GLOBAL
        set_seed(3); GLOBAL = g = torch.Generator().manual_seed(5)
        def closed(b): return b[0] + torch.randn(b[0].shape, generator=g), b[1]
        def asked(b, gen): return b[0] + torch.randn(b[0].shape, generator=gen), b[1]
        class Mine:
            def __init__(self): self.g = g
            def draw(self, b): return closed.__wrapped__(b, self.g)
        closed.__wrapped__ = asked; f = dict(closure=closed, partial=partial(asked, gen=g), method=Mine().draw).get(where, jitter_global)
        model = Jitter(g) if where == 'model' else classifier()
        return TrainLearner(model, dls('classifier'), F.cross_entropy, lr=1e-2, cbs=[DeviceCB('cpu'), MetricsCB()] + [BatchTransformCB(f)]*(where != 'model'), opt_func=optim.Adam)
    whole = made(); whole.fit(EPOCHS); want = everything(whole)
    with pytest.raises(Killed): made().fit(EPOCHS, cbs=[CheckpointCB(tmp_path/'c', every=2), KillCB(1, 3)])
    again = made(); again.fit(EPOCHS, cbs=CheckpointCB(tmp_path/'c'))
    assert same(everything(again), want)

@pytest.mark.parametrize('words,kw', [('loss.beta was 1.0, now 0.5', dict(loss=nn.SmoothL1Loss(beta=.5))), ('loss.reduction was .mean., now not given', dict(loss=partial(F.smooth_l1_loss, beta=2.))), ('mom was 0.85, now 0.5', dict(mom=.5))], ids=['beta', 'function', 'momentum'])
def test_another_loss_or_momentum_is_refused(words, kw, tmp_path):
    def made(loss=nn.SmoothL1Loss(), mom=.85):
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)); dl = [(x, x[:,:2])]
        return MomentumLearner(nn.Linear(4, 2), DataLoaders(dl, dl), loss, lr=1e-2, cbs=[DeviceCB('cpu')], mom=mom)
    made().fit(1, cbs=CheckpointCB(tmp_path/'c'))
    with pytest.raises(ValueError, match=words): made(**kw).fit(2, cbs=CheckpointCB(tmp_path/'c'))

def test_another_highest_rate_is_refused(tmp_path):
    "The checkpoint's own rates would be used, and nobody would know"
    def make(max_lr):
        set_seed(3); sched = BatchSchedCB(lambda opt: lr_scheduler.OneCycleLR(opt, max_lr, total_steps=EPOCHS*N_BATCHES))
        return TrainLearner(classifier(), dls(''), F.cross_entropy, lr=1e-2, cbs=[DeviceCB('cpu'), sched], opt_func=optim.Adam)
    with pytest.raises(Killed): make(0.1).fit(EPOCHS, cbs=[CheckpointCB(tmp_path/'c'), KillCB(1, 2)])
    with pytest.raises(ValueError, match=r'max_lr was \[0.1\], now \[0.5\]'): make(0.5).fit(EPOCHS, cbs=CheckpointCB(tmp_path/'c'))
