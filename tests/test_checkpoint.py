"What a checkpoint refuses, what it says, and what it leaves behind"
import math, os, signal, sys, threading, time
from functools import partial
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim import lr_scheduler
from common import ROOT, run_python
from miniai.accel import EMACB
from miniai.checkpoint import CheckpointCB, _pack, _unpack
from miniai.core import save, set_seed
from miniai.datasets import DataLoaders
from miniai.learner import (Callback, CancelFitException, DeviceCB, Learner, MetricsCB, SingleBatchCB, TrainCB, TrainLearner)
from miniai.sgd import BatchSchedCB

def batches(n=6): return [(torch.full((4,2), float(i)), torch.ones(4,1)) for i in range(n)]

def learner(*cbs, width=2, n=6, **kw):
    set_seed(1); b = batches(n)
    if width != 2: b = [(torch.zeros(4, width), y) for _,y in b]
    return TrainLearner(nn.Linear(width,1), DataLoaders(b, b[:1]), F.mse_loss, **dict(lr=0.01) | kw, cbs=[DeviceCB('cpu'), MetricsCB(), *cbs])

def one_cycle(epochs): return BatchSchedCB(lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=6*epochs))
def bits(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def refused(words, *cbs, epochs=2, path, settings=None, **kw):
    with pytest.raises(ValueError, match=words) as e: learner(*cbs, **kw).fit(epochs, cbs=CheckpointCB(path, settings=settings))
    assert len(str(e.value).splitlines()) == 1 and 'delete' in str(e.value)

class StopCB(Callback):
    "Raises what it is given, after a batch of training"
    order = 200
    def __init__(self, what, epoch=1, i=2): self.what, self.at = what, (epoch, i)
    def after_batch(self, learn):
        if learn.training and (learn.epoch, learn.iter) == self.at: raise self.what

@pytest.fixture
def half(tmp_path):
    "A run that was killed in its second epoch"
    with pytest.raises(KeyboardInterrupt):
        learner().fit(2, cbs=[CheckpointCB(tmp_path/'c', every=2, settings=dict(data='clothes', seed=1)), StopCB(KeyboardInterrupt())])
    return tmp_path/'c'

@pytest.mark.parametrize('words,kw', [
    ('lr was 0.01, now 0.02', dict(lr=0.02)),
    ('optimiser was .SGD., now .Adam.', dict(opt_func=optim.Adam)),
    ('batches was 6, now 5', dict(n=5)),
    (r'another model than this Linear: of another shape: weight \(1, 2\) for \(1, 3\)', dict(width=3)),
    ('seed was 1, now 2', dict(settings=dict(data='clothes', seed=2))),
    ('seed was 1, now not given', dict(settings=dict(data='clothes'))),
    ('form was not given, now .edm.', dict(settings=dict(data='clothes', seed=1, form='edm'))),
    ('after batch 2 of epoch 1, and 1 epochs are asked for', dict(epochs=1))], ids=lambda o: '')
def test_other_settings_are_refused(half, words, kw): refused(words, path=half, **dict(settings=dict(data='clothes', seed=1)) | kw)

def test_another_callback_is_refused(half):
    refused('other callbacks: EMACB|EMACB.decay was not given', EMACB(0.9), path=half, settings=dict(data='clothes', seed=1))

def test_another_decay_is_refused(tmp_path):
    learner(EMACB(0.9)).fit(1, cbs=CheckpointCB(tmp_path/'c'))
    refused(r'EMACB\.decay was 0\.9, now 0\.99', EMACB(0.99), path=tmp_path/'c')

def test_more_epochs_extend(tmp_path):
    whole = learner(); whole.fit(4)
    learner().fit(2, cbs=CheckpointCB(tmp_path/'c')); again = learner(); again.fit(4, cbs=CheckpointCB(tmp_path/'c'))
    assert torch.equal(bits(again), bits(whole)) and again.metrics.history == whole.metrics.history
    refused('at the start of epoch 4, and 3 epochs are asked for', path=tmp_path/'c', epochs=3)

def test_a_schedule_of_another_length_is_refused(tmp_path):
    learner(one_cycle(1)).fit(1, cbs=CheckpointCB(tmp_path/'c'))
    refused(r'BatchSchedCB\.total_steps was 6, now 12', one_cycle(2), path=tmp_path/'c')

def test_a_finished_file_undoes_nothing(tmp_path, capsys):
    learn = learner(); ck = lambda: CheckpointCB(tmp_path/'c'); learn.fit(2, cbs=ck()); done = bits(learn)
    capsys.readouterr(); learn.fit(2, cbs=ck())
    assert torch.equal(bits(learn), done) and 'nothing left to do' in capsys.readouterr().out
    learn.fit(1); later = bits(learn)
    with pytest.raises(ValueError, match='this model was trained since'): learn.fit(2, cbs=ck())
    assert torch.equal(bits(learn), later)
    fresh = learner(); set_seed(7); fresh.lr_find(); fresh.fit(2, cbs=ck())     # a new learner is given the weights; a search for the rate is no training
    assert torch.equal(bits(fresh), done)

def test_killed_in_the_last_validation(tmp_path, capsys):
    class Stop(Callback):
        def after_batch(self, learn):
            if learn.epoch == 1 and not learn.training: raise RuntimeError
    with pytest.raises(RuntimeError): learner().fit(2, cbs=[CheckpointCB(tmp_path/'c'), Stop()])
    learner().fit(2, cbs=CheckpointCB(tmp_path/'c')); capsys.readouterr()
    learner().fit(2, cbs=CheckpointCB(tmp_path/'c')); assert 'nothing left to do' in capsys.readouterr().out

def test_remove_is_exact(tmp_path):
    for nm in ('a1', 'a12', 'ab', 'a[1]'): learner().fit(1, cbs=CheckpointCB(tmp_path/nm))
    for nm in ('a?', 'a[1]'): CheckpointCB(tmp_path/nm).remove()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a1.safetensors', 'a12.safetensors', 'ab.safetensors']

def test_a_cancelled_fit_keeps_what_it_has(tmp_path, capsys):
    learn = learner(); learn.fit(5, cbs=[StopCB(CancelFitException()), CheckpointCB(tmp_path/'c')]); capsys.readouterr()
    again = learner(); again.fit(5, cbs=CheckpointCB(tmp_path/'c'))
    assert torch.equal(bits(again), bits(learn)) and 'cancelled: its weights are loaded' in capsys.readouterr().out

def test_nothing_trained_nothing_saved(tmp_path):
    learner().fit(1, train=False, cbs=CheckpointCB(tmp_path/'c')); assert not list(tmp_path.iterdir())
    learner(CheckpointCB(tmp_path/'c')).lr_find(); assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('what,words', [(b'', 'not a complete checkpoint'), (b'PK\x03\x04 a pickle, perhaps', 'not a complete checkpoint'), (None, 'no checkpoint of this version')], ids=str)
def test_files_that_are_none(tmp_path, what, words):
    p = tmp_path/'c.safetensors'
    if what is None: save(nn.Linear(2,1), p)
    else: p.write_bytes(what)
    refused(words, path=p)

def test_a_truncated_or_changed_file(tmp_path):
    learner().fit(1, cbs=CheckpointCB(tmp_path/'c')); p = tmp_path/'c.safetensors'; whole = p.read_bytes()
    p.write_bytes(whole[:-5]); refused('not a complete checkpoint', path=p)
    p.write_bytes(whole.replace(b'\\"t0\\"', b'\\"u0\\"')); refused('broken checkpoint|not a complete', path=p)

def test_weights_that_are_not_finite_do_not_replace_good_ones(tmp_path):
    learner().fit(1, cbs=CheckpointCB(tmp_path/'c')); good = (tmp_path/'c.safetensors').read_bytes()
    class Spoil(Callback):
        def after_step(self, learn):
            if learn.epoch == 1 and learn.iter == 5: next(learn.model.parameters()).data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match='no longer finite'): learner(Spoil()).fit(2, cbs=CheckpointCB(tmp_path/'c'))
    assert (tmp_path/'c.safetensors').read_bytes() == good

def test_packing():
    x = {'a': [1, 2.5, None, 'ü', True], 'b': (torch.arange(3), {'c': torch.ones(2, dtype=torch.bfloat16)}), 3: ()}; ts = {}
    y = _unpack(_pack(x, ts), ts)
    assert y['a'] == x['a'] and torch.equal(y['b'][0], x['b'][0]) and y['b'][1]['c'].dtype == torch.bfloat16 and y[3] == ()
    with pytest.raises(TypeError, match='not object'): _pack({'a': object()}, {})

def test_the_signals_are_given_back(tmp_path):
    was = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    learner().fit(1, cbs=CheckpointCB(tmp_path/'c')); assert was == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))

def test_in_another_thread(tmp_path):
    t = threading.Thread(target=lambda: learner().fit(1, cbs=CheckpointCB(tmp_path/'c'))); t.start(); t.join()
    assert (tmp_path/'c.safetensors').exists()

class SignalCB(Callback):
    "A signal, as from the keyboard or from `kill`, in the middle of a batch"
    def __init__(self, num, training=True): self.num, self.training = num, training
    def after_predict(self, learn):
        if learn.epoch == 1 and learn.training == self.training and learn.iter == (3 if self.training else 0): signal.raise_signal(self.num)

@pytest.fixture
def own_signals():
    "As in a terminal: a process that was started in the background ignores Ctrl-C"
    was = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, was)

def test_a_signal_that_is_ignored_ends_nothing(tmp_path, own_signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    whole = learner(); whole.fit(3); learn = learner(); learn.fit(3, cbs=[CheckpointCB(tmp_path/'c'), SignalCB(signal.SIGINT)])
    assert all(torch.equal(a, b) for a,b in zip(whole.model.parameters(), learn.model.parameters()))

@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('num,error', [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_leaves_a_checkpoint_and_a_sentence(tmp_path, capsys, num, error, training, own_signals):
    whole = learner(); whole.fit(3); learn = learner(); ck = CheckpointCB(tmp_path/'c')
    with pytest.raises(error): learn.fit(3, cbs=[ck, SignalCB(num, training)])
    where = 'after batch 4 of epoch 1' if training else 'after the training of epoch 1'
    assert f'c.safetensors is {where}, and the same fit goes on from there' in capsys.readouterr().out
    again = learner(); again.fit(3, cbs=CheckpointCB(tmp_path/'c')); assert torch.equal(bits(again), bits(whole)) and again.metrics.history == whole.metrics.history

def test_the_second_signal_stops_at_once(tmp_path):
    class Twice(Callback):
        def after_predict(self, learn): signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)
    learn = learner(Twice())
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=CheckpointCB(tmp_path/'c'))
    assert learn.iter == 0 and not (tmp_path/'c.safetensors').exists()

def test_a_resumed_fit_keeps_the_layout_of_its_tensors(tmp_path):
    "Fused Adam reads a weight and its averages in memory's order: channels last must come back as channels last"
    def fit(cbs, epochs=2):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(memory_format=torch.channels_last)
        x,y = torch.randn(6,3,8,8), torch.arange(6) % 4
        batches = [(x[i:i+2], y[i:i+2]) for i in (0,2,4)]
        learn = Learner(net, DataLoaders(batches, batches), nn.functional.cross_entropy, lr=0.1, cbs=[TrainCB(), *cbs],
                        opt_func=partial(torch.optim.Adam, fused=True))
        learn.fit(epochs, valid=False)
        return net[0].weight
    class Kill(Callback):
        order = 99
        def after_batch(self, learn):
            if learn.epoch == 1: raise KeyboardInterrupt
    whole = fit([])
    with pytest.raises(KeyboardInterrupt): fit([CheckpointCB(tmp_path/'c', every=1), Kill()])
    assert torch.equal(fit([CheckpointCB(tmp_path/'c', every=1)]), whole)
