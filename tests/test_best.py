"The best epoch is kept, a fit that no longer improves ends, and predictions for new inputs leave the learner as it was"
import math
import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn, optim
from miniai import checkpoint, watching
from miniai.accel import EMACB
from miniai.augment import rand_flip, FlipCB, InputTransformCB
from miniai.checkpoint import CheckpointCB
from miniai.core import load, set_seed
from miniai.datasets import DataLoaders
from miniai.learner import Callback, DeviceCB, MetricsCB, TrainLearner
from miniai.recipes import OneCycleCB
from miniai.watching import EarlyStopCB, SaveBestCB

class Told:
    "A metric whose values are told beforehand, one an epoch"
    def __init__(self, *vals): self.vals = list(vals)
    def reset(self): pass
    def update(self, p, t): pass
    def compute(self): return self.now
    def state_dict(self): return {}
    def load_state_dict(self, s): pass

class Tell(Callback):
    order = -1
    def __init__(self, told): self.told = told
    def before_epoch(self, learn): self.told.now = self.told.vals[learn.epoch]

def learner(vals, *cbs):
    set_seed(0); b = [(x := torch.randn(8,2), 2*x)]*3; told = Told(*vals); m = MetricsCB(score=told); m.show = lambda d: None
    return TrainLearner(nn.Linear(2,2), DataLoaders(b, b[:1]), F.mse_loss, lr=.05, cbs=[m, Tell(told), *cbs])

@pytest.mark.parametrize('lower,vals,best', [(True, [3,1,2,1], 1), (False, [3,1,4,4], 2), (True, [3,math.nan,1,math.nan], 2)], ids=str)
def test_the_best_epoch_is_saved(tmp_path, lower, vals, best):
    "Not the last, nor another as good; with the weights that were validated"
    avg = EMACB(.9); seen = []
    class Look(Callback):
        order = 79
        def after_epoch(self, learn): seen.append(None if learn.training else learn.model.weight.detach().clone())
    learner(vals, avg, Look(), SaveBestCB(tmp_path/'b', 'score', lower, note='mine')).fit(4); sd,card = load(tmp_path/'b')
    assert card['epoch'] == best and card['score'] == vals[best] and card['note'] == 'mine' and torch.equal(sd['weight'], seen[2*best+1])

@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), SafetensorError('I/O error: No space left on device')], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('what', ['best', 'checkpoint'])
def test_a_disk_that_is_full(what, error, monkeypatch, tmp_path, capsys):
    "It is said (of the checkpoint's last save again), the fit goes on to the same weights, and the old file stays"
    whole = learner([4,3,2,1]); whole.fit(4); files = []
    class Fill(Callback):
        order = 200
        def after_epoch(self, learn):
            if learn.epoch or learn.training: return
            files.append((tmp_path/'f.safetensors').read_bytes())
            monkeypatch.setattr(watching if what == 'best' else checkpoint, 'save' if what == 'best' else '_write_tensors', full)
    def full(*a, **k): raise error
    cb = SaveBestCB(tmp_path/'f', 'score') if what == 'best' else CheckpointCB(tmp_path/'f'); l = learner([4,3,2,1], Fill()); l.fit(4, cbs=cb)
    said = capsys.readouterr().out
    assert said.count('No space left on device') == said.count('training goes on') == (1 if what == 'best' else 2)
    assert torch.equal(l.model.weight, whole.model.weight) and (tmp_path/'f.safetensors').read_bytes() == files[0]

@pytest.mark.parametrize('vals,ran', [([3,2,2,2,1,0], 4), ([3,2,2,1,1,1], 6), ([1]*6, 3), ([1,2,math.nan,0,5,5], 6)], ids=str)
def test_a_fit_that_no_longer_improves_ends(vals, ran):
    l = learner(vals, EarlyStopCB('score', patience=2)); l.fit(6); assert sum(d['train'] == 'eval' for d in l.metrics.history) == ran

def test_an_interrupted_fit_ends_where_the_whole_one_does(tmp_path):
    class Kill(Callback):
        order = 200
        def before_epoch(self, learn):
            if learn.epoch == 2: raise RuntimeError('killed')
    make = lambda *cbs: learner([3,2,2,2,1,0], EarlyStopCB('score', 2), *cbs)
    whole = make(); whole.fit(6)
    with pytest.raises(RuntimeError): make(Kill()).fit(6, cbs=CheckpointCB(tmp_path/'c'))
    rest = make(); rest.fit(6, cbs=CheckpointCB(tmp_path/'c'))
    assert rest.metrics.history == whole.metrics.history and torch.equal(rest.model.weight, whole.model.weight)

def test_a_metric_that_is_not_there():
    with pytest.raises(ValueError, match="follows 'fid', which is no metric of this fit: score, loss"): learner([1], EarlyStopCB('fid')).fit(1)

def test_predictions_for_new_inputs():
    l = learner([1,1], DeviceCB(), OneCycleCB(.1)); l.opt_func = optim.Adam; l.fit(1); x = torch.randn(10,2); was = dict(vars(l)); h = list(l.metrics.history)
    p = l.get_preds(x, bs=4); assert torch.allclose(p, l.model(x.to(next(l.model.parameters()).device)).cpu())
    assert torch.equal(l.get_preds([(x[:3], 'no target')]), p[:3]) and dict(vars(l)) == was and l.metrics.history == h
    assert torch.allclose(l.get_preds(x, cbs=InputTransformCB(lambda x: -x)), l.get_preds(-x))

def test_half_are_mirrored_in_training_alone():
    x = torch.randn(200,1,4,4); cb = FlipCB()
    class L: training,batch = True,(x, 'y')
    l = L(); cb.before_batch(l); same = (l.batch[0] == x).flatten(1).all(1); flipped = (l.batch[0] == x.flip(-1)).flatten(1).all(1)
    assert (same ^ flipped).all() and 60 < same.sum() < 140 and l.batch[1] == 'y'
    l = L(); l.training = False; cb.before_batch(l); assert l.batch[0] is x
