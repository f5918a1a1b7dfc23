"Bad input gets one clear sentence: what was given, what was expected, what to do"
import os, pty, re, signal, subprocess, sys, time
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from miniai.core import load, run_scale, save
from miniai.datasets import DataLoaders
from miniai.learner import Callback, DeviceCB, Learner, MetricsCB, MomentumLearner, ProgressCB, TrainCB, TrainLearner, VERBS
from common import ROOT

def dls(n=4, y=None):
    b = [(torch.randn(8,3), torch.randn(8,1) if y is None else y) for _ in range(n)]
    return DataLoaders(b, b[:1])

def learner(cls=TrainLearner, data=None, loss=F.mse_loss, model=None, **kw): return cls(model or nn.Linear(3,1), data or dls(), loss, **kw)

def usable(learn):
    "It is as it was before: nothing left over, and it trains"
    assert not [v for v in VERBS if v in learn.__dict__]
    learn.dls, learn.loss_func, learn.lr = dls(), F.mse_loss, 0.01
    learn.fit(1)

def fails(learn, error, words, **kw):
    with pytest.raises(error) as e: learn.fit(1, **kw)
    assert re.search(words, str(e.value)), e.value
    assert str(e.value).count('\n') == 0 and e.value.__context__ is None, 'one sentence, and no second error behind it'

def test_two_providers_of_a_verb():
    class HalfCB(TrainCB): pass
    fails(learner(cbs=TrainCB()), ValueError, 'TrainLearner and TrainCB both provide `predict`; exactly one may')
    fails(learner(Learner, cbs=[TrainCB(), HalfCB()]), ValueError, 'TrainCB and HalfCB both provide')
    class StepCB(Callback):
        def step(self, learn): pass
    fails(learner(Learner, cbs=[TrainCB(), StepCB()]), ValueError, 'TrainCB and StepCB both provide `step`')

def test_nobody_provides_a_verb():
    fails(learner(Learner), ValueError, 'nobody provides `predict`: use TrainLearner, or add the callback TrainCB')

@pytest.mark.parametrize('cls', [TrainLearner, MomentumLearner])
def test_no_loss_function(cls):
    learn = learner(cls, loss=None); fails(learn, ValueError, 'no loss function: give the Learner a `loss_func`'); usable(learn)

@pytest.mark.parametrize('empty,which', [(DataLoaders([], [1]), 'train'), (DataLoaders(), 'train')])
def test_an_empty_loader(empty, which):
    learn = learner(data=empty); fails(learn, ValueError, rf'`dls\.{which}` is empty: .*or call `fit\({which}=False\)`'); usable(learn)

def test_a_learner_without_data():
    fails(TrainLearner(nn.Linear(3,1), loss_func=F.mse_loss), ValueError, '`dls.train` is empty')

@pytest.mark.parametrize('loss', [F.mse_loss, nn.MSELoss(), F.l1_loss, nn.SmoothL1Loss(), nn.BCEWithLogitsLoss()])
def test_shapes_that_would_broadcast(loss):
    learn = learner(data=dls(y=torch.rand(8)), loss=loss)
    fails(learn, ValueError, r'compares element by element, but the model gave \(8, 1\) for targets \(8,\); make the shapes equal'); usable(learn)

def test_a_batch_without_a_target():
    data = DataLoaders([(torch.randn(8,3),)]*2, [(torch.randn(8,3),)])
    fails(learner(data=data), ValueError, 'the batch holds no target')

@pytest.mark.parametrize('bar', [False, True])
def test_nan_loss(bar):
    data = dls(6); x,y = data.train[3]; data.train[3] = (x, y*float('nan'))
    learn = learner(data=data, lr=0.013, cbs=[DeviceCB(), MetricsCB(), *([ProgressCB()] if bar else [])])
    fails(learn, FloatingPointError, r'the loss of batch 3 of epoch 0 is not finite \(learning rate 0\.013; last finite loss \d')
    assert all(p.isfinite().all() for p in learn.model.parameters())         # stopped before the step
    usable(learn)

def test_exploding_loss():
    fails(learner(data=dls(50), lr=1e6), FloatingPointError, r'is not finite \(learning rate 1e\+06')

def test_an_error_before_the_bar_is_there():
    "A callback that fails before the progress bar is made: its error is the one that is seen"
    class EarlyCB(Callback):
        order = -99
        def before_fit(self, learn): raise RuntimeError('the real reason')
    fails(learner(cbs=[ProgressCB(), MetricsCB(), EarlyCB()]), RuntimeError, 'the real reason')

def test_unknown_scale(monkeypatch):
    monkeypatch.setenv('MINIAI_SCALE', 'huge')
    with pytest.raises(ValueError, match="MINIAI_SCALE is 'huge'; it must be one of smoke, cpu, gpu, or unset"): run_scale()

# --- weights

def test_a_pickle_is_not_loaded(tmp_path):
    torch.save(nn.Linear(3,1).state_dict(), tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='w.safetensors is not a complete safetensors file .*Nothing is unpickled here'): load(tmp_path/'w', nn.Linear(3,1))

def test_truncated_weights(tmp_path):
    p = save(nn.Linear(300,10), tmp_path/'w'); p.write_bytes(p.read_bytes()[:-100])
    with pytest.raises(ValueError, match='not a complete safetensors file'): load(p, nn.Linear(300,10))

def test_weights_of_another_architecture(tmp_path):
    p = save(nn.Linear(3,1), tmp_path/'w')
    with pytest.raises(ValueError, match=r'w.safetensors holds weights of another architecture than Sequential: missing: 0.bias, 0.weight; not in the model: bias, weight'):
        load(p, nn.Sequential(nn.Linear(3,1)))
    with pytest.raises(ValueError, match=r'of another shape: weight \(1, 3\) for \(1, 4\)'): load(p, nn.Linear(4,1))

def test_no_weights_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist; `save'): load(tmp_path/'w')

# --- Ctrl-C

CHILD = '''
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)     # a job in the background is started with it ignored
import time, torch, torch.nn.functional as F
from torch import nn
from miniai.datasets import DataLoaders
from miniai.learner import *

class SlowCB(Callback):
    def before_batch(self, learn):
        if slow: time.sleep(0.02)
    def after_batch(self, learn):
        if slow and learn.iter == 20: print('@going', end='', flush=True)

b = [(torch.randn(8,3), torch.randn(8,1))]*1000
learn = TrainLearner(nn.Linear(3,1), DataLoaders(b, b[:1]), F.mse_loss, lr=0.01, cbs=[MetricsCB(), ProgressCB(), SlowCB()])
slow = True
try: learn.fit(2)
except KeyboardInterrupt: print('interrupted')
print('cbs', len(learn.cbs), 'verbs', [v for v in VERBS if v in learn.__dict__])
slow = False; learn.dls = DataLoaders(b[:5], b[:1]); learn.fit(1)
print('again')
'''

def screen(text):
    "What a terminal shows at the end: a carriage return goes back to the start of the line, and what follows overwrites"
    lines = []
    for raw in text.replace('\r\n', '\n').split('\n'):
        row = ''
        for part in raw.split('\r'): row = part + row[len(part):]
        lines.append(row.rstrip())
    return [l for l in lines if l]

def in_terminal(code, until, key, timeout=240):
    "Run `code` in a pseudo-terminal, type `key` when `until` appears; everything that it printed, and its exit status"
    pid,fd = pty.fork()
    if pid == 0: os.chdir(ROOT); os.execv(sys.executable, [sys.executable, '-c', code])
    out, typed, end = '', False, time.time()+timeout
    try:
        while time.time() < end:
            try: chunk = os.read(fd, 4096)
            except OSError: break                      # the other end is closed
            if not chunk: break
            out += chunk.decode(errors='replace')
            if until in out and not typed: os.write(fd, key); typed = True
    finally:
        if time.time() >= end: os.kill(pid, signal.SIGKILL)
        _,status = os.waitpid(pid, 0); os.close(fd)
    return out, os.waitstatus_to_exitcode(status)

def test_ctrl_c_in_a_terminal():
    out,rc = in_terminal(CHILD, '@going', b'\x03')
    assert rc == 0, out
    assert '█' in out                                  # there was a bar
    shown = screen(out.replace('@going', '').replace('^C', ''))     # the terminal itself echoes the key
    assert 'interrupted' in shown and 'cbs 3 verbs []' in shown and shown[-1] == 'again'
    assert not [l for l in shown if '█' in l or '%' in l], 'the bar is still on the screen'
    assert [l for l in shown if l.split()[1:] and 'train' in l] and [l for l in shown if 'eval' in l]      # and the second fit has its rows

def test_sigint_without_a_terminal():
    p = subprocess.Popen([sys.executable, '-c', CHILD], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = ''
    while '@going' not in seen: seen += p.stdout.read(1) or pytest.fail(p.stderr.read())
    p.send_signal(signal.SIGINT); out,err = p.communicate(timeout=240)
    assert p.returncode == 0, err
    assert 'interrupted' in out and 'verbs []' in out and out.rstrip().endswith('again') and '█' not in seen+out
