"Trackers keep what a fit says, whatever happens to them or to it; no network, no account"
import base64, http.server, json, os, re, shutil, signal, sqlite3, struct, subprocess, sys, threading, time
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from oracles import plain
from miniai import tracking as T, watching as W
from miniai.core import load, read_records, set_seed
from miniai.datasets import DataLoaders
from miniai.checkpoint import CheckpointCB
from miniai.images import image_grid
from miniai.learner import Callback, CancelFitException, MetricsCB, TrainLearner
from common import run_python

OFFLINE = dict(WANDB_MODE='offline', WANDB_ERROR_REPORTING='false', HF_HUB_OFFLINE='1', HF_HUB_DISABLE_TELEMETRY='1')

@pytest.fixture(autouse=True, scope='module')
def offline(tmp_path_factory):
    "Trackers write into a folder of the tests, and ask no server"
    d = tmp_path_factory.mktemp('home'); mp = pytest.MonkeyPatch()
    for k,v in OFFLINE.items(): mp.setenv(k, v)
    mp.setattr(sys.modules['__main__'], '__file__', __file__, raising=False)      # the source that is kept; a process of several has none
    for k in ('TRACKIO_DIR', 'WANDB_DATA_DIR', 'WANDB_CACHE_DIR', 'WANDB_CONFIG_DIR', 'WANDB_ARTIFACT_DIR'): mp.setenv(k, str(d/k.lower()))
    yield d
    mp.undo()

def learner(*cbs, n=25, seed=42):
    "Fits y = 2x: 25 batches to train on, 2 to validate"
    set_seed(seed); b = [(x := torch.randn(8,1), 2*x) for _ in range(n)]
    return TrainLearner(nn.Sequential(nn.Linear(1,4), nn.Dropout(0.1), nn.Linear(4,1)), DataLoaders(b, b[:2]), F.mse_loss, lr=0.05, cbs=list(cbs))

def sampler(model): return torch.rand(4,3,8,8)*2-1 + 0*model(torch.ones(1,1)).mean()

class Mae:
    "A metric"
    def reset(self): self.vals = []
    def update(self, p, t): self.vals.append((p-t).abs().mean().item())
    def compute(self): return sum(self.vals)/len(self.vals)

# --- one fit, four trackers: each holds the same

class Keep(Callback):
    "What a tracker ought to hold"
    def before_fit(self, learn): self.losses = []
    def after_batch(self, learn):
        if learn.training: self.losses.append(learn.loss.item())

@pytest.fixture(scope='module')
def fitted(offline):
    kw = dict(project='tests', name='run 1: σ', config={'flavour': 'sour'}, sampler=sampler, folder=offline/'runs', mae=Mae(), wait=60)
    tr = dict(wandb=T.WandBCB(**kw), trackio=T.TrackioCB(**kw), tensorboard=T.TensorBoardCB(**kw), jsonl=T.JSONLCB(**kw))
    for t in tr.values(): t.show = lambda d: None
    keep = Keep(); learn = learner(keep, *tr.values()); learn.fit(2)
    return learn, keep.losses, tr, offline/'runs'

def wandb_records(path, patience=60):
    "The records of an offline run, once W&B's own process has written the last of them"
    for _ in range(10*patience):
        recs = list(parse_wandb(path.read_bytes()))
        if recs and recs[-1].HasField('exit'): return recs
        time.sleep(.1)
    raise TimeoutError(f'{path}: {len(recs)} records, and no last one, after {patience} s')

def parse_wandb(data):
    "LevelDB's log format: blocks of 32 KiB, each record in one or more pieces"
    from wandb.proto.wandb_internal_pb2 import Record
    i,buf = 7, b''
    assert data[:4] in (b':W&B', b'')
    while i+7 <= len(data):
        if (left := 32768 - i%32768) < 7: i += left; continue
        n,kind = struct.unpack_from('<HB', data, i+4); buf += data[i+7:i+7+n]; i += 7+n
        if kind in (1, 4): yield Record.FromString(buf); buf = b''

def check(losses, got, hist, learn):
    "`got`: losses by step; `hist`: `{key: values}` of the epochs"
    assert sorted(got) == list(range(1, 51)) and np.allclose([got[i] for i in sorted(got)], losses, rtol=1e-6)
    for k in ('train/loss', 'train/mae', 'valid/loss', 'valid/mae'):
        want = [d[k.split('/')[1]] for d in learn.metrics.history if d['train'] == ('train' if k[0] == 't' else 'eval')]
        assert np.allclose(hist[k], want, rtol=1e-6), k
    assert np.allclose(hist['lr'], [0.05]*2, rtol=1e-6)

def test_wandb_offline_run_holds_all(fitted):
    learn,losses,tr,folder = fitted; run, = (folder/'wandb').glob('offline-run-*')
    recs = wandb_records(next(run.glob('*.wandb'))); got,hist,config,pics,arts = {}, {}, {}, [], []
    for r in recs:
        d = {(o.key or '/'.join(o.nested_key)): json.loads(o.value_json) for o in r.history.item}
        if 'batch/loss' in d: got[d['_step']] = d['batch/loss']
        for k,v in d.items(): hist.setdefault(k, []).append(v)
        for o in [*r.config.update, *r.run.config.update]: config[o.key or o.nested_key[0]] = json.loads(o.value_json)
        if r.artifact.name: arts.append(r.artifact.name)
        if r.request.log_artifact.artifact.name: arts.append(r.request.log_artifact.artifact.name)
    check(losses, got, hist, learn)
    assert config['flavour'] == 'sour' and config['model'] == 'Sequential' and config['parameters'] == 13 and re.fullmatch(r'\w{40}', config['commit'] or 40*'0')
    assert len(list((run/'files/media/images').glob('samples*.png'))) == 2
    assert {'run-1----weights', 'run-1----code'} <= set(arts)

def test_trackio_database_holds_all(fitted, offline):
    learn,losses,tr,folder = fitted; db = sqlite3.connect(next((offline/'trackio_dir').glob('tests*.db')))
    got,hist = {}, {}
    for step,m in db.execute('select step, metrics from metrics order by id'):
        m = json.loads(m)
        if 'batch/loss' in m: got[step] = m['batch/loss']
        for k,v in m.items(): hist.setdefault(k, []).append(v)
    check(losses, got, hist, learn)
    assert len(hist['samples']) == 2 and all((offline/'trackio_dir'/'media'/o['file_path']).exists() for o in hist['samples'])
    assert 'sour' in str(db.execute('select * from configs').fetchall())

def test_tensorboard_event_file_holds_all(fitted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn,losses,tr,folder = fitted; ea = EventAccumulator(str(folder/'tensorboard/run 1: σ'), size_guidance={'scalars': 0, 'images': 0, 'tensors': 0}).Reload()
    check(losses, {e.step: e.value for e in ea.Scalars('batch/loss')}, {k: [e.value for e in ea.Scalars(k)] for k in ea.Tags()['scalars']}, learn)
    assert len(ea.Images('samples')) == 2 and 'sour' in str(ea.Tensors('config/text_summary')[0].tensor_proto)

def test_jsonl_run_record_holds_all(fitted):
    learn,losses,tr,folder = fitted; recs = read_records(folder/'run 1: σ/run.jsonl'); hist = {}
    for r in recs:
        for k,v in r.items(): hist.setdefault(k, []).append(v)
    check(losses, {r['step']: r['batch/loss'] for r in recs if 'batch/loss' in r}, hist, learn)
    assert recs[0]['config']['flavour'] == 'sour' and recs[-1]['finished'] and all((folder/'run 1: σ'/p).exists() for p in hist['samples'])

def test_weights_come_back(fitted):
    learn,_,tr,folder = fitted
    for nm,t in tr.items():
        sd,_ = load(t.fetch_weights()); assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in sd.items()), nm
    assert 'fetched' in str(tr['trackio'].fetch_weights())

def test_samples_are_from_the_same_noise(fitted):
    a,b = sorted((fitted[3]/'run 1: σ').glob('samples*.png')); assert a.read_bytes() == b.read_bytes()

# --- failures

class Api:
    "In the shape of a tracker"
    def __init__(self, log=None): self.rows, self._log, self.done = [], log, False
    def init(self, project, name, config): return self
    def log(self, d, step):
        if self._log: self._log(d, step)
        self.rows.append((d, step))
    def finish(self): self.done = True

def weights(*cbs):
    learn = learner(*cbs); t = time.perf_counter(); learn.fit(2)
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()]), time.perf_counter()-t

def raises(d, step): raise RuntimeError('the server says no')
def full(d, step): raise OSError(28, 'No space left on device')
def blocks(d, step): time.sleep(100)

@pytest.mark.parametrize('log,words', [(None, None), (raises, 'RuntimeError: the server says no'), (full, 'OSError: .*No space left'), (blocks, r'calls were still waiting 0\.3 s after the fit')], ids=plain)
def test_training_does_not_notice(log, words, capsys, tmp_path):
    plain,_ = weights(MetricsCB()); capsys.readouterr()
    cb = T.TrackerCB(Api(log), sampler=sampler, folder=tmp_path, wait=0.3); tracked,secs = weights(cb)
    said = capsys.readouterr().out
    assert torch.equal(plain, tracked) and secs < 50
    assert said.count('TrackerCB: ') == bool(words) and (not words or re.search(words, said))

def test_a_full_disk(capsys):
    "For real: /dev/full takes nothing"
    class Full(T.JSONLCB):
        def _open(self, config): run = T._JSONLRun.__new__(T._JSONLRun); run.path = T.Path('/dev/full'); return run
    plain,_ = weights(MetricsCB()); capsys.readouterr(); tracked,_ = weights(Full(weights=False, folder='/dev/null/x'))
    said = capsys.readouterr().out
    assert torch.equal(plain, tracked) and said.count('Full: ') == 1

def test_a_tracker_that_cannot_begin(capsys, tmp_path):
    class No(Api):
        def init(self, **kw): raise ConnectionError('no route\nto host')
    plain,_ = weights(MetricsCB()); tracked,_ = weights(T.TrackerCB(No(), folder=tmp_path))
    assert torch.equal(plain, tracked) and capsys.readouterr().out.count('TrackerCB: ConnectionError: no route;') == 1

def test_a_sampler_that_fails(capsys, tmp_path):
    api = Api(); learner(T.TrackerCB(api, sampler=lambda m: 1/0, folder=tmp_path)).fit(2)
    assert api.done and capsys.readouterr().out.count('the sampler raised ZeroDivisionError') == 1

class Crash(Callback):
    def after_batch(self, learn):
        if learn.training and learn.iter == 12: raise RuntimeError('crash')

def test_a_crash_loses_nothing(tmp_path, offline):
    kw = dict(name='crash', project='crash', folder=tmp_path, wait=60); cbs = [T.TrackioCB(**kw), T.JSONLCB(**kw), T.TensorBoardCB(**kw)]; learn = learner(Keep(), *cbs, Crash())
    with pytest.raises(RuntimeError, match='crash'): learn.fit(2)
    want = learn.cbs[0].losses; assert len(want) == 13
    assert np.allclose([r['batch/loss'] for r in read_records(tmp_path/'crash/run.jsonl') if 'batch/loss' in r], want)
    db = sqlite3.connect(next((offline/'trackio_dir').glob('crash*.db')))
    assert np.allclose([json.loads(m)['batch/loss'] for m, in db.execute('select metrics from metrics order by step') if 'batch/loss' in json.loads(m)], want)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert np.allclose([e.value for e in EventAccumulator(str(tmp_path/'tensorboard/crash')).Reload().Scalars('batch/loss')], want)

def test_a_killed_process_leaves_what_was_delivered(tmp_path):
    "Not even `finally` runs: what had been handed over is there, at most the last `every` batches are not"
    p = run_python(f'''
import os, signal, sys, time
sys.path.insert(0, 'tests')
from test_tracking import *
class Kill(Callback):
    def after_batch(self, learn):
        if learn.training and learn.iter == 22: time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)
learner(T.JSONLCB(name='k', folder={str(tmp_path)!r}, every=10), Kill()).fit(1)''')
    assert p.returncode == -signal.SIGKILL, p.stderr
    assert [r['step'] for r in read_records(tmp_path/'k/run.jsonl') if 'batch/loss' in r] == list(range(1, 21))

def test_it_goes_on_with_a_checkpoint(tmp_path):
    api = Api(); go = lambda *cbs: learner(T.TrackerCB(api, folder=tmp_path), n=25).fit(2, cbs=[CheckpointCB(tmp_path/'c'), *cbs])
    class Stop(Callback):
        def before_epoch(self, learn):
            if learn.epoch == 1 and learn.training: raise KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt): learner(T.TrackerCB(api, folder=tmp_path)).fit(2, cbs=[Stop(), CheckpointCB(tmp_path/'c', every=25)])
    go()
    assert [s for d,s in api.rows if 'batch/loss' in d] == list(range(1, 51))

# --- call shapes

def test_a_tracker_of_ones_own():
    class MyTracker(MetricsCB):
        def _log(self, d): self.got = getattr(self, 'got', []) + [d]
    t = MyTracker(mae=Mae()); learn = learner(t); learn.fit(1)
    assert learn.metrics is t and [d['train'] for d in t.got] == ['train', 'eval'] and 'mae' in t.got[0]

def test_log_can_be_overridden(tmp_path, capsys):
    class Quiet(T.TrackerCB):
        def _log(self, d): self.post.do(self._send, [({'mine': d['loss']}, self.n_seen)])
    api = Api(); learner(Quiet(api, folder=tmp_path)).fit(1)
    assert [list(d) for d,_ in api.rows if 'mine' in d] == [['mine']]*2 and capsys.readouterr().out == ''

def test_save_grid(tmp_path):
    learner(T.SaveGridCB(sampler, tmp_path, every=2)).fit(4)
    assert [p.name for p in sorted(tmp_path.glob('*.png'))] == ['0001.png', '0003.png']

def test_aside_leaves_no_trace():
    m = nn.Dropout(); torch.manual_seed(1); a = torch.rand(1); torch.manual_seed(1)
    with T.aside(m): assert not m.training and not torch.is_grad_enabled(); torch.rand(5); np.random.rand(); __import__('random').random()
    assert m.training and torch.equal(a, torch.rand(1))

# --- messages

@pytest.fixture
def inbox():
    "A server that keeps what is posted to it: `(address, messages)`"
    got = []
    class H(http.server.BaseHTTPRequestHandler):
        def do_POST(self): got.append(json.loads(self.rfile.read(int(self.headers['Content-Length'])))); self.send_response(200); self.end_headers()
        def log_message(self, *a): pass
    s = http.server.HTTPServer(('127.0.0.1', 0), H); threading.Thread(target=s.serve_forever, daemon=True).start()
    yield f'json://127.0.0.1:{s.server_port}/', got
    s.shutdown()

def test_one_message_for_each_goal(inbox):
    url,got = inbox; cb = T.NotifyCB(['loss<3', 'train/loss<2', 'mae>1000'], url, wait=60)
    learn = learner(MetricsCB(mae=Mae()), cb); learn.fit(4); learn.fit(2)
    assert sorted(m['title'] for m in got) == ['miniai: loss<3', 'miniai: train/loss<2'] and 'the goal was loss<3' in str(got)

def test_a_message_when_a_fit_fails(inbox):
    url,got = inbox
    with pytest.raises(RuntimeError): learner(MetricsCB(), T.NotifyCB('loss<0', url, wait=60), Crash()).fit(2)
    assert len(got) == 1 and got[0]['title'] == 'miniai: a fit failed' and 'in epoch 0: RuntimeError: crash' in got[0]['message']

def test_a_dead_endpoint(capsys):
    plain,_ = weights(MetricsCB()); tracked,_ = weights(MetricsCB(), T.NotifyCB('loss<1000', 'json://127.0.0.1:9/', wait=60))
    assert torch.equal(plain, tracked) and capsys.readouterr().out.count('NotifyCB: OSError: the message could not be delivered') == 1

# --- bad input

@pytest.mark.parametrize('cb,package', [(T.WandBCB, 'wandb'), (T.TrackioCB, 'trackio'), (T.TensorBoardCB, 'tensorboard'), (lambda: T.NotifyCB('loss<1', 'json://x'), 'apprise')])
def test_not_installed(monkeypatch, cb, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f'{package} is not installed: `pip install {package}`'): cb()

def test_bad_goals_and_addresses():
    for bad in ('accuracy', 'loss=3', 'loss<'):
        with pytest.raises(ValueError, match="a goal is a metric, a comparison and a number"): T.NotifyCB(bad, 'json://x')
    for bad,shown in (('nowhere', "'nowhere'"), ('tele://secret', 'tele://…')):
        with pytest.raises(ValueError, match=f'{shown} is no notification address') as e: T.NotifyCB('loss<1', bad)
        assert 'secret' not in str(e.value)
    with pytest.raises(ValueError, match=r"the goal 'accuracy>0.9' names no metric of this fit: mae, loss; add"): learner(MetricsCB(mae=Mae()), T.NotifyCB('accuracy>0.9', 'json://x')).fit(1)
    with pytest.raises(ValueError, match='there is no MetricsCB'): learner(T.NotifyCB('loss<1', 'json://x')).fit(1)

# --- disks, folders and secrets

def disk_full(*a, **k): raise OSError(28, 'No space left on device')

def fit_with(*cbs, n=2):
    "The weights after a fit with these callbacks"
    learn = learner(*cbs); learn.fit(n)
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

def test_weights_that_cannot_be_written_are_a_sentence_and_later_callbacks_still_save(monkeypatch, tmp_path, capsys):
    "safetensors raises an error of its own, which is no OSError"
    from safetensors import SafetensorError
    saved = []
    class Later(Callback):
        order = 95
        def after_fit(self, learn): saved.append(learn.n_epochs)
    plain = fit_with(MetricsCB()); capsys.readouterr()
    def full(*a, **k): raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
    monkeypatch.setattr(T, 'save', full)
    tracked = fit_with(T.JSONLCB(name='x', folder=tmp_path, wait=60), Later())
    out = capsys.readouterr().out
    assert torch.equal(plain, tracked) and saved == [2]
    assert out.count('JSONLCB: ') == 1 and 'the weights could not be written (SafetensorError: Error while serializing' in out
    assert read_records(tmp_path/'x/run.jsonl')[-1]['finished']

@pytest.fixture
def small_disk(tmp_path):
    "A file system of 16 KiB"
    d = tmp_path/'disk'; d.mkdir()
    if not shutil.which('mount') or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16k', 'tmpfs', d], capture_output=True).returncode:
        pytest.skip('no file system can be mounted here')
    yield d
    subprocess.run(['umount', d], check=True)

def test_a_fit_on_a_disk_that_is_full(small_disk, tmp_path, capsys):
    "Weights, pictures and records find no room; the fit and its checkpoint do not notice"
    plain = fit_with(MetricsCB()); capsys.readouterr(); (small_disk/'other').write_bytes(bytes(14*1024))
    big = lambda model: torch.rand(64,3,32,32)*2-1
    learn = learner(T.JSONLCB(name='x', folder=small_disk, sampler=big, wait=60), W.SaveGridCB(big, small_disk/'grids'))
    learn.fit(2, cbs=CheckpointCB(tmp_path/'c'))
    assert torch.equal(plain, torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    out = capsys.readouterr().out
    assert out.count('JSONLCB: OSError: [Errno 28] No space left') == 1 == out.count('SaveGridCB: OSError: [Errno 28] No space left')
    assert not [p for p in small_disk.rglob('*') if p.suffix in ('.png', '.safetensors')]

@pytest.mark.parametrize('what', ['grid', 'jsonl pictures', 'jsonl lines', 'code'])
def test_a_disk_that_fills_up_changes_no_weights(what, monkeypatch, tmp_path, capsys):
    plain = fit_with(MetricsCB()); capsys.readouterr()
    if what == 'grid': monkeypatch.setattr(W, 'write_png', disk_full); cbs = [MetricsCB(), W.SaveGridCB(sampler, tmp_path)]
    else: cbs = [T.JSONLCB(name='x', folder=tmp_path, sampler=sampler, wait=60)]
    if what == 'jsonl pictures': monkeypatch.setattr(T, 'write_png', disk_full)
    if what == 'jsonl lines': monkeypatch.setattr(T._JSONLRun, 'write', disk_full)
    if what == 'code': monkeypatch.setattr(T.Path, 'write_text', disk_full)
    assert torch.equal(fit_with(*cbs), plain)
    assert capsys.readouterr().out.count('No space left on device; training goes on') == 1

def test_the_disk_that_filled_up_left_half_a_line(tmp_path):
    "The next line begins anew, and all but the half is read"
    run = T._JSONLRun(tmp_path/'run.jsonl', {}); run.log({'a': 1.}, 1)
    with run.path.open('ab') as f: f.write(b'{"time": "2026-01-01", "st')
    run.log({'a': 2.}, 2)
    with pytest.warns(UserWarning, match='no record in line 3'): recs = read_records(run.path)
    assert [r['a'] for r in recs if 'a' in r] == [1., 2.]

@pytest.mark.parametrize('text', ['a\x85b', 'a\u2028b', 'a\u2029b', 'a\nb\r\x0b\x0c\x1c\x1d\x1e', 'σ ∞'])
def test_a_record_is_one_line_for_every_reader(text, tmp_path):
    run = T._JSONLRun(tmp_path/'run.jsonl', {'text': text, 'nan': float('nan')}); lines = run.path.read_text(encoding='utf-8').splitlines()
    assert len(lines) == 1 and json.loads(lines[0])['config']['text'] == text

@pytest.mark.parametrize('make', [lambda d: T.JSONLCB(name='x', folder=d, wait=60), lambda d: T.TensorBoardCB(name='x', folder=d, wait=60),
                                  lambda d: T.TrackerCB(Api(), folder=d, wait=60)], ids=['jsonl', 'tensorboard', 'own'])
def test_a_folder_that_cannot_be_made(make, tmp_path, capsys):
    "A file where the folder should be: to root no folder is read-only, this is"
    (tmp_path/'f').write_text('mine'); plain = fit_with(MetricsCB()); capsys.readouterr()
    assert torch.equal(fit_with(make(tmp_path/'f/runs')), plain)
    assert capsys.readouterr().out.count('training goes on') == 1 and (tmp_path/'f').read_text() == 'mine'

def test_grids_into_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path/'f').write_text('mine'); learner(W.SaveGridCB(sampler, tmp_path/'f/grids')).fit(3)
    assert capsys.readouterr().out.count('SaveGridCB: ') == 1

SECRETS = {
    "NotifyCB('loss<1', 'mailto://me:hunter2@example.org')": 'hunter2',
    "url = 'https://me:hunter2@example.org/x?n=3'": 'hunter2',
    "get('https://example.org/x?n=3&api_key=hunter2&m=4')": 'hunter2',
    "'https://hooks.slack.com/services/T000/B000/hunter2'": 'hunter2',
    "'https://discord.com/api/webhooks/1/hunter2'": 'hunter2',
    "postgres://me:hunter2@db/x": 'hunter2',
    "os.environ['HF_TOKEN'] = 'hunter2'": 'hunter2',
    "os.environ.setdefault('WANDB_API_KEY', 'hunter2')": 'hunter2',
    "login(password=\"hunter 2's\")": 'hunter 2',
    '{"client_secret": "hunter2"}': 'hunter2',
    "+export OPENAI_API_KEY=hunter2": 'hunter2',
    "x = 'hf_abcdefghijklmnopqrstuvwxyz'": 'hf_abc',
    "x = 'ghp_abcdefghijklmnopqrstuvwxyz'": 'ghp_abc',
    "x = 'sk-proj-abcdefghijklmnopqrstuvwxyz'": 'abcdefg',
    "wandb.login('0123456789abcdef0123456789abcdef01234567')": '01234567',
    "password: hunter2": 'hunter2',
    "connect(api_key=hunter2)": 'hunter2',
    "Authorization: Bearer hunter2abc": 'hunter2',
    "x = 'sk_live_0123456789abcdef'": '0123456789',
    "git clone with glpat-abcdefghij0123456789": 'abcdefghij',
    "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----": 'hunter2'}

@pytest.mark.parametrize('text', SECRETS)
def test_secrets_are_masked(text):
    out = W.mask_secrets(text)
    assert SECRETS[text] not in out and '…' in out and W.mask_secrets(out) == out

@pytest.mark.parametrize('text', ["tokens = tokenizer(x)", "key = jax.random.key(0)", "see https://example.org/a?b=c#d", "α = path(t)[0]",
                                  "for k,v in d.items(): print(f'{k}: {v}')", "git clone https://github.com/fastai/nbdev", "max_tokens=4096", "def f(password: str): return getpass()", "api_key=args.key(1)"])
def test_what_is_no_secret_is_left(text): assert W.mask_secrets(text) == text

@pytest.mark.parametrize('text', ['a', 'token', 'KEY', '?a&', '=token&', 'eyJ', 'a://', '-----BEGIN PRIVATE KEY-----'])
def test_masking_takes_no_time(text):
    "A notebook's diff is a megabyte, much of it one line"
    t = time.process_time()
    for start in ('', 'https://x/?'): W.mask_secrets(start + text*(200_000//len(text)))
    W.mask_secrets(base64.b64encode(os.urandom(500_000)).decode())
    assert time.process_time()-t < 3

def test_run_records_hold_no_secret(tmp_path, monkeypatch):
    "Neither in the source, nor in git's changes, nor in the config"
    src = tmp_path/'train.py'; src.write_text("NotifyCB('loss<1', 'mailto://me:hunter2@example.org')\nlr = 0.1\n")
    main = sys.modules['__main__']; monkeypatch.setattr(main, '__file__', str(src), raising=False); monkeypatch.delattr(main, 'In', raising=False)
    git = T._git; monkeypatch.setattr(T, '_git', lambda *a: "+HF_TOKEN='hunter2'\n+lr = 1\n" if a[0] == 'diff' else git(*a))
    config = dict(url='tgram://hunter2/1', api_key='hunter2', n=3, deep=[{'password': 'hunter2'}])
    learner(T.JSONLCB(name='x', folder=tmp_path, config=config, wait=60)).fit(1)
    files = {p.name: p.read_text(encoding='utf-8') for p in (tmp_path/'x').iterdir() if p.suffix != '.safetensors'}
    assert {'code.py', 'changes.diff', 'run.jsonl'} <= set(files) and not [k for k,v in files.items() if 'hunter2' in v]
    assert 'lr = 0.1' in files['code.py'] and 'lr = 1' in files['changes.diff'] and read_records(tmp_path/'x/run.jsonl')[0]['config']['n'] == 3

def test_no_source_is_kept_where_none_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(T, 'run_source', lambda: 1/0)
    learner(T.JSONLCB(name='x', folder=tmp_path, code=False, wait=60)).fit(1)
    assert sorted(p.name for p in (tmp_path/'x').iterdir()) == ['run.jsonl', 'weights.json', 'weights.safetensors']

def test_an_error_is_told_without_its_password(capsys, tmp_path, inbox):
    url,got = inbox
    def fail(*a): raise ConnectionError('https://me:hunter2@example.org/x refused')
    learner(T.TrackerCB(Api(fail), sampler=sampler, folder=tmp_path, wait=60)).fit(1)
    learner(T.TrackerCB(Api(), sampler=fail, folder=tmp_path, wait=60)).fit(1)
    class Fails(Callback):
        def after_loss(self, learn): fail()
    with pytest.raises(ConnectionError): learner(MetricsCB(), T.NotifyCB('loss<0', url, wait=60), Fails()).fit(1)
    out = capsys.readouterr().out
    assert out.count('ConnectionError: https://…@example.org/x refused') == 2 and 'hunter2' not in out
    assert 'https://…@example.org/x refused' in got[0]['message'] and 'hunter2' not in str(got)

class BadLoss(Callback):
    "Leaves a loss that no tracker can copy, and raises"
    order = 99
    def after_batch(self, learn):
        if learn.iter == 3: learn.metrics.losses.append('nothing'); raise RuntimeError('the first error')

def test_trouble_in_a_cleanup_does_not_hide_the_first_error(tmp_path, capsys):
    api = Api()
    with pytest.raises(RuntimeError, match='the first error'): learner(T.TrackerCB(api, folder=tmp_path, wait=60), BadLoss()).fit(1)
    assert api.done and 'TrackerCB: the last losses are lost: AttributeError' in capsys.readouterr().out

@pytest.mark.parametrize('error,kept', [(CancelFitException(), True), (RuntimeError(), False)], ids=['cancelled', 'failed'])
def test_a_cancelled_fit_leaves_its_weights(tmp_path, error, kept):
    class Stop(Callback):
        def after_batch(self, learn):
            if learn.iter == 3: raise error
    t = T.TrackerCB(Api(), folder=tmp_path, wait=60); learn = learner(t, Stop()); before = learn.model[0].weight.clone()
    try: learn.fit(1)
    except RuntimeError: assert not kept
    assert (t.dir/'weights.safetensors').exists() == kept and not torch.equal(learn.model[0].weight, before)
    if kept: assert torch.equal(load(t.dir/'weights')[0]['0.weight'], learn.model[0].weight)

# --- grids by steps, and scores

def test_grids_by_steps(tmp_path):
    learner(W.SaveGridCB(sampler, tmp_path, every=20, by='step', ncols=3)).fit(2)
    assert [p.name for p in sorted(tmp_path.glob('*'))] == ['step_000020.png', 'step_000040.png']

def test_steps_are_counted_on_after_a_kill(tmp_path):
    class Stop(Callback):
        def before_epoch(self, learn):
            if learn.epoch == 1 and learn.training: raise KeyboardInterrupt()
    cbs = lambda: [W.SaveGridCB(sampler, tmp_path/'g', every=20, by='step')]
    with pytest.raises(KeyboardInterrupt): learner(*cbs()).fit(2, cbs=[Stop(), CheckpointCB(tmp_path/'c', every=25)])
    learner(*cbs()).fit(2, cbs=[CheckpointCB(tmp_path/'c', every=25)])
    assert [p.name for p in sorted((tmp_path/'g').glob('*'))] == ['step_000020.png', 'step_000040.png']

@pytest.mark.parametrize('kw,words', [(dict(by='batch'), "`by` is 'epoch' or 'step', got 'batch'"), (dict(every=0), '`every` counts epochs, from 1, got 0')])
def test_bad_grids(kw, words):
    with pytest.raises(ValueError, match=words): W.SaveGridCB(sampler, **kw)

def test_a_grid_of_images():
    g = image_grid(-torch.ones(3,1,4,4)); assert g.shape == (9,9,3) and g[0,0].tolist() == [0]*3 and g[4,4].tolist() == [255]*3 == g[-1,-1].tolist()

def spread(x): return x.std()

def test_scores_join_the_metrics(tmp_path, inbox):
    "They are NaN where they were not computed; a tracker is told those that were, and a goal can be set"
    url,got = inbox; api = Api(); cb = T.TrackerCB(api, folder=tmp_path, wait=60)
    score = W.ScoreCB(sampler, every=2, spread=spread, n=len)
    learn = learner(cb, score, W.NotifyCB('n>=4', url, wait=60)); learn.fit(4)
    want = spread(sampler_at(42, learn.model)).item()
    vals = [d['spread'] for d in learn.metrics.history if d['train'] == 'eval']
    assert np.isnan(vals[::2]).all() and vals[1] == vals[3] == pytest.approx(want)
    assert all(np.isnan(d['spread']) for d in learn.metrics.history if d['train'] == 'train')
    assert [d['valid/n'] for d,_ in api.rows if 'valid/n' in d] == [4., 4.] and not [d for d,_ in api.rows if 'train/n' in d]
    assert [m['title'] for m in got] == ['miniai: n>=4'] and len(score.seconds) == 2
    assert list(learn.metrics.all_metrics) == ['loss']

def sampler_at(seed, model):
    with W.aside(model, seed): return sampler(model)

def test_scoring_does_not_touch_the_training():
    assert torch.equal(fit_with(MetricsCB()), fit_with(MetricsCB(), W.ScoreCB(sampler, spread=spread)))

def test_scores_without_validation():
    learn = learner(MetricsCB(), W.ScoreCB(sampler, n=len)); learn.dls.valid = []; learn.fit(2, valid=False)
    assert [d['n'] for d in learn.metrics.history] == [4., 4.]

def test_a_score_that_fails_is_a_sentence(capsys):
    def bad(x): raise ValueError('NaN in the samples')
    assert torch.equal(fit_with(MetricsCB()), fit_with(MetricsCB(), W.ScoreCB(sampler, fid=bad)))
    assert capsys.readouterr().out.count('ScoreCB: the samples could not be scored: ValueError: NaN in the samples') == 1

def test_scores_and_checkpoints(tmp_path):
    class Stop(Callback):
        def before_epoch(self, learn):
            if learn.epoch == 1 and learn.training: raise KeyboardInterrupt()
    cbs = lambda: [MetricsCB(), W.ScoreCB(sampler, n=len)]
    with pytest.raises(KeyboardInterrupt): learner(*cbs()).fit(2, cbs=[Stop(), CheckpointCB(tmp_path/'c', every=25)])
    learn = learner(*cbs()); learn.fit(2, cbs=[CheckpointCB(tmp_path/'c', every=25)])
    assert [d['n'] for d in learn.metrics.history if d['train'] == 'eval'] == [4., 4.]

def test_bad_scores():
    with pytest.raises(ValueError, match='ScoreCB needs a function of images'): W.ScoreCB(sampler)
    with pytest.raises(ValueError, match='`every` counts epochs, from 1, got 0'): W.ScoreCB(sampler, every=0, n=len)
    with pytest.raises(ValueError, match='ScoreCB gives its scores to a MetricsCB'): learner(W.ScoreCB(sampler, n=len)).fit(1)

# --- several runs

def test_runs_side_by_side(tmp_path):
    import matplotlib.pyplot as plt
    for lr in (0.01, 0.1):
        learn = learner(T.JSONLCB(name=f'lr {lr}', folder=tmp_path, weights=False, code=False, wait=60)); learn.lr = lr; learn.fit(2)
    got = T.compare_runs(tmp_path); ax = plt.gca(); plt.close()
    assert list(got) == ['lr 0.01', 'lr 0.1'] and list(got['lr 0.1']) == [25, 50] and ax.get_ylabel() == 'valid/loss'
    assert got['lr 0.1'][50] == pytest.approx([d['loss'] for d in learn.metrics.history][-1])
    with pytest.raises(ValueError, match="holds 'fid'; they hold batch/loss, lr, train/loss, valid/loss"): T.compare_runs(tmp_path, 'fid')
    with pytest.raises(FileNotFoundError, match='no run.jsonl below'): T.compare_runs(tmp_path/'none')
