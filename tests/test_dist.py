"Two processes train as one does, and go on after one of them is killed"
import os, runpy, shutil, subprocess, sys
import pytest
import torch
from common import ROOT
from miniai.core import load
from miniai.dist import all_sum, gathered, join, on_first, rank, share, world

SCRIPT = '''
import json, os, signal, sys
from pathlib import Path
import torch
import torch.nn.functional as F
from miniai.accel import AccelerateCB, EMACB, MixedPrecision
from miniai.checkpoint import CheckpointCB
from miniai.core import save, set_seed
from miniai.datasets import DataLoaders, TensorLoader
from miniai.dist import *
from miniai.diffusion import NoiseCB
from miniai.fid import Extractor, ImageEval
from miniai.karras import edm
from miniai.learner import Callback, DeviceCB, Learner, MetricsCB, TrainCB
from miniai.recipes import diffusion_learner
from miniai.unet import UNet
class Die(Callback):
    order = 99
    def after_batch(self, learn):
        if os.environ.get('DIE') and rank() == 1 and learn.epoch == 1 and learn.iter == 1: os.kill(os.getpid(), signal.SIGKILL)
out = Path(sys.argv[1])
join(30)
torch.set_num_threads(1)
set_seed(0)
x = torch.rand(29, 1, 8, 8)*2-1
net = UNet(widths=(16,32), n_blocks=1, attn=0)
dls = DataLoaders(TensorLoader(x, torch.arange(29), 8, shuffle=True), TensorLoader(x, torch.arange(29), 8))
avg = EMACB(0.9)
learn = diffusion_learner(dls, edm(0.6), net, bf16=False, cbs=[avg, Die(), *([DistCB()] if world() > 1 else [])])
print('rank', rank(), 'speaks')
learn.fit(3, cbs=CheckpointCB(out/'check', every=1))
def losses(verbs, form):
    "Of two epochs whose last batch has another share for each process"
    set_seed(0)
    net = UNet(widths=(16,32), n_blocks=1, attn=0)
    for p in net.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.05)
    own = Learner(net, dls, F.mse_loss, lr=.02, cbs=[DeviceCB('cpu'), NoiseCB(form), verbs, m := MetricsCB(), *([DistCB()] if world() > 1 else [])])
    own.fit(2)
    return [h['loss'] for h in m.history]
each = {}
if os.environ.get('EACH'):
    dls = DataLoaders(TensorLoader(x, None, 8, shuffle=True), TensorLoader(x, None, 8))
    each = {f'{type(v).__name__} {f}': losses(v, f) for f in ('ddpm', 'cosine', 'edm', 'flow') for v in (MixedPrecision(2, device='cpu'), AccelerateCB(2, cpu=True))}
    class Keep(Callback):
        order = DistCB.order-1          # before the predictions of all are gathered
        def after_batch(self, learn): self.mask = (learn.preds[:2] == 0)
    class Once(Callback):
        order = 99
        def after_fit(self, learn): self.dice = torch.rand(1)
    set_seed(rank())                    # a user who forgot to give each the same seed
    drop = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.Dropout(.5))
    keep,once = Keep(),Once()
    own = Learner(drop, DataLoaders(TensorLoader(x, torch.zeros(29, 32), 8, shuffle=True), TensorLoader(x, torch.zeros(29, 32), 8)), F.mse_loss,
                  cbs=[DeviceCB('cpu'), TrainCB(), keep, once, *([DistCB()] if world() > 1 else [])])
    own.fit(2, valid=False)
    each['mask'] = [keep.mask.tolist()]*2 if world() == 1 else gathered(keep.mask.float()[None], 2).bool().tolist()
    for nm,t in dict(dice=once.dice, weights=drop[1].weight.detach().flatten()).items():
        each[nm] = gathered(t[None], 2).tolist() if world() > 1 else [t.tolist()]*2
    set_seed(0)
    ie = ImageEval(Extractor(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.ReLU()), 1, 8), dls, cbs=[DeviceCB('cpu')])
    feats = shared_feats(ie, x.flip(-1)*.9)
    each['fid'] = [float(ie.fid(feats)), float(ie.fid(x.flip(-1)*.9)), len(feats)]
if rank() == 0:
    save(net, out/'net', losses=[r['loss'] for r in learn.metrics.history], each=each)
    save(avg.ema, out/'ema')
'''

def run(folder, n, **env):
    folder.mkdir(exist_ok=True)
    (folder/'train.py').write_text(SCRIPT)
    start = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={n}', '--monitor-interval=3', '--master_port=0', '--rdzv-backend=c10d', '--rdzv-endpoint=localhost:0']
    return subprocess.run([*start, str(folder/'train.py'), str(folder)], env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1') | env,
                          capture_output=True, text=True, timeout=240)

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    d = tmp_path_factory.mktemp('two')
    res = run(d, 2, EACH='1')
    assert res.returncode == 0, res.stderr
    return d,res

@pytest.fixture(scope='module')
def one(tmp_path_factory):
    "The same script in this process"
    d = tmp_path_factory.mktemp('one'); (d/'train.py').write_text(SCRIPT); threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'argv', ['train.py', str(d)]); m.setenv('EACH', '1'); runpy.run_path(str(d/'train.py'))
    torch.set_num_threads(threads)
    return d

@pytest.fixture(scope='module')
def died(tmp_path_factory):
    "Two processes, one of which was killed"
    d = tmp_path_factory.mktemp('died'); res = run(d, 2, DIE='1')
    assert res.returncode and (d/'check.safetensors').exists() and not (d/'net.safetensors').exists()
    assert 'process 0 of 2 waited in vain for another, and stops: the same command goes on from the last checkpoint' in res.stderr
    return d

def test_two_processes_train_as_one(two, one):
    "Batches of 8 and a last one of 5; weights, averages and the losses of both phases, to rounding"
    for nm in ('net', 'ema'):
        a,b = load(one/nm)[0], load(two[0]/nm)[0]
        for k in a: torch.testing.assert_close(a[k], b[k], rtol=0, atol=2e-4)      # Adam divides rounding by itself
    a,b = (load(d/'net')[1]['losses'] for d in (one, two[0]))
    assert a == pytest.approx(b, rel=1e-5) and len(a) == 6

@pytest.mark.parametrize('form', ['ddpm', 'cosine', 'edm', 'flow'])
@pytest.mark.parametrize('verbs,rel', [('AccelerateCB', 1e-5), ('MixedPrecision', 1e-2)])     # gradients in bfloat16 are rounded where they are summed
def test_every_form_in_two_processes(two, one, verbs, rel, form):
    a,b = (load(d/'net')[1]['each'][f'{verbs} {form}'] for d in (one, two[0]))
    assert a == pytest.approx(b, rel=rel) and len(a) == 4 and len(set(a)) == 4

def test_dropout_differs_and_the_rest_does_not(two):
    "Shares of 2 and 3 rows draw differently often: weights and the next random number are the same in both, masks are not"
    each = load(two[0]/'net')[1]['each']
    assert each['dice'][0] == each['dice'][1] and each['weights'][0] == each['weights'][1] and each['mask'][0] != each['mask'][1]

def test_features_are_shared(two, one):
    "Each process computes its share, and the FID is that of one process to the last bit"
    a,b = (load(d/'net')[1]['each']['fid'] for d in (one, two[0]))
    assert a == b and a[0] == a[1] > 0 and a[2] == 29

def test_only_the_first_process_speaks(two): assert two[1].stdout.count('speaks') == 1 and 'rank 0 speaks' in two[1].stdout

def test_one_is_killed_the_rest_stop_and_the_run_goes_on(two, died, tmp_path):
    shutil.copytree(died, tmp_path, dirs_exist_ok=True); res = run(tmp_path, 2)
    assert res.returncode == 0 and 'going on after' in res.stdout, res.stderr
    for nm in ('net', 'ema'):
        a,b = load(tmp_path/nm)[0], load(two[0]/nm)[0]
        assert all(torch.equal(a[k], b[k]) for k in a)

def test_alone_nothing_happens():
    x = torch.randn(5, 2)
    assert (join(), rank(), world()) == (0, 0, 1) and share(5) == slice(0, 5)
    assert torch.equal(gathered(x, 5), x) and torch.equal(all_sum(x), x) and on_first('bar') == ['bar']

@pytest.mark.parametrize('n', [2, 3, 64])
@pytest.mark.parametrize('rows', [64, 65, 100])
def test_shares_cover_the_batch_once(monkeypatch, n, rows):
    import miniai.dist as d
    monkeypatch.setattr(d, 'world', lambda: n)
    all_rows = []
    for r in range(n):
        monkeypatch.setattr(d, 'rank', lambda: r)
        all_rows += range(rows)[d.share(rows)]
    assert all_rows == list(range(rows))

def test_more_processes_than_rows(monkeypatch):
    import miniai.dist as d
    monkeypatch.setattr(d, 'world', lambda: 4)
    with pytest.raises(ValueError, match='a batch of 3 cannot be shared by 4 processes'): d.share(3)

def test_one_process_goes_on_where_two_were(two, died, tmp_path, capsys, monkeypatch):
    "The checkpoint says nothing of how many processes there were"
    shutil.copytree(died, tmp_path, dirs_exist_ok=True); threads = torch.get_num_threads()
    monkeypatch.setattr(sys, 'argv', ['train.py', str(tmp_path)]); runpy.run_path(str(tmp_path/'train.py')); torch.set_num_threads(threads)
    assert 'going on after' in capsys.readouterr().out
    a,b = load(tmp_path/'net')[0], load(two[0]/'net')[0]
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=0, atol=2e-4)
