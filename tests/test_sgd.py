"Schedulers step when they should, and the recorder writes down what was"
from functools import partial
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim import lr_scheduler
from miniai.datasets import DataLoaders
from miniai.learner import LRFinderCB, TrainLearner
from miniai.sgd import BatchSchedCB, EpochSchedCB, RecorderCB, plain

FEW = DataLoaders([(torch.ones(2,1), torch.ones(2,1))]*3, [(torch.ones(2,1), torch.ones(2,1))])
halve = partial(lr_scheduler.ExponentialLR, gamma=0.5)
def learner(cbs, **kw): return TrainLearner(nn.Linear(1,1), FEW, F.mse_loss, lr=1., cbs=cbs, **kw)
def lr_recorder(): return RecorderCB(lr=lambda cb: cb.pg['lr'])

@pytest.mark.parametrize('S,want', [(BatchSchedCB, [1, .5, .25, .125, .0625, .03125]), (EpochSchedCB, [1, 1, 1, .5, .5, .5])])
def test_each_batch_or_each_epoch(S, want):
    rec = lr_recorder()
    learner([S(halve), rec]).fit(2)
    assert rec.recs['lr'] == want and rec.learn is None

def test_one_cycle_peaks_at_its_rate_and_ends_at_nothing():
    rec, n = lr_recorder(), 10
    learner([BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=3*n)), rec]).fit(n)
    lrs = rec.recs['lr']
    assert len(lrs) == 3*n and max(lrs) == pytest.approx(.1, rel=.05) and lrs[0] < .01 and lrs[-1] < lrs[0]

def test_idle_in_a_search_for_the_learning_rate():
    cb, learn = BatchSchedCB(halve), learner([])
    learn.fit(1, valid=False, cbs=[cb, LRFinderCB(gamma=2.)])
    assert cb.schedo is None and cb.state_dict() == {}

def test_recorded_tensors_are_copies():
    rec = RecorderCB(w=lambda cb: cb.learn.model.weight)
    learner([rec]).fit(1)
    assert len({o.item() for o in rec.recs['w']}) == 3 and not rec.recs['w'][0].requires_grad

def test_sentences():
    with pytest.raises(ValueError, match='nothing recorded yet'): lr_recorder().plot()
    with pytest.raises(ValueError, match='BatchSchedCB needs an optimiser'):
        learner([BatchSchedCB(halve)], opt_func=None).fit(1, train=False)

def test_plain_drops_functions_at_any_depth():
    s = lr_scheduler.LambdaLR(optim.SGD([nn.Parameter(torch.zeros(1))], lr=.1), lambda e: 1.)
    assert plain({'a': [1, print, (2., {'b': print, 'c': 'x'})], 'd': print}) == {'a': [1, [2., {'c': 'x'}]]}
    assert 'last_epoch' in plain(s.state_dict())
