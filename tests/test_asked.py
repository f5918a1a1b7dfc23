"What commands and callbacks owe a user who does odd things: files left alone, a sentence, the same bits"
import json, math, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from functools import partial
from torch import nn, optim
from common import killed_training
from miniai import cli
from miniai.accel import AccumulateCB
from miniai.checkpoint import CheckpointCB, _pack, _unpack
from miniai.cli import evaluate, read_images, sample_images, train, write_images
from miniai.core import load, save, set_seed
from miniai.datasets import DataLoaders, TensorLoader, image_dls
from miniai.export import export
from miniai.extractors import Extractor, extractor_from
from miniai.files import decode_image
from miniai.learner import Callback, DeviceCB, TrainLearner
from miniai.recipes import diffusion_learner
from miniai.watching import mask_secrets

SMALL = dict(epochs=1, bs=8, widths='16,32', size=8, ema=.9)

@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.randint(0, 100, (40,1,8,8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)); x[20:] += 150
    write_images(x, 'g8'); np.savez('lab.npz', images=x.permute(0,2,3,1).numpy(), labels=np.arange(40)//20)

# --- files of the user's

def test_force_leaves_a_network_whose_name_is_a_checkpoints():
    train('g8', out='m', **SMALL); train('g8', out='m-checkpoint', **SMALL); before = Path('m-checkpoint.safetensors').read_bytes()
    with pytest.raises(ValueError, match='holds weights and is no checkpoint'): train('g8', out='m', force=True, **SMALL)
    assert Path('m-checkpoint.safetensors').read_bytes() == before

@pytest.mark.parametrize('name', ['own.json', 'own-preview.png'])
def test_files_of_the_same_name(name):
    Path(name).write_text('notes')
    with pytest.raises(ValueError, match='nothing is overwritten'): train('g8', out='own', preview=2, **SMALL)
    assert Path(name).read_text() == 'notes'
    train('g8', out='own', preview=2, force=True, **SMALL); assert Path('own.json').read_text() != 'notes'

def test_killed_after_the_weights(monkeypatch):
    "The same command goes on where weights are written and the checkpoint is still there"
    with monkeypatch.context() as m:
        m.setattr(CheckpointCB, 'remove', lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): train('g8', out='w', **SMALL)
    was = load('w')[0]; Path('w.json').unlink(missing_ok=True); train('g8', out='w.safetensors', **SMALL)
    assert all(torch.equal(v, load('w')[0][k]) for k,v in was.items()) and not Path('w-checkpoint.safetensors').exists()

# --- what a resumed run must have in common

@pytest.fixture
def killed(monkeypatch): killed_training(monkeypatch, lambda: train('lab.npz', out='w', every=1, labels=True, n_valid=8, **SMALL))

@pytest.mark.parametrize('change,words', [(lambda x, y: (x, 1-y), 'labels was'), (lambda x, y: (x[:, ::-1], y), 'images was')], ids=['labels', 'images'])
def test_other_labels_or_images(killed, change, words):
    d = np.load('lab.npz'); x,y = change(d['images'], d['labels']); np.savez('lab.npz', images=x, labels=y)
    with pytest.raises(ValueError, match=words): train('lab.npz', out='w', every=1, labels=True, n_valid=8, **SMALL)

def test_other_epochs_are_named(killed):
    with pytest.raises(ValueError, match='epochs was 1, now 3'): train('lab.npz', out='w', every=1, labels=True, n_valid=8, **SMALL | dict(epochs=3))

RNG = np.random.default_rng(0)
class Loader(TensorLoader):
    "Draws from a generator of its module, one of its class, and one in a slot"
    gen = torch.Generator()
    def __iter__(self):
        for x,y in super().__iter__(): yield x + float(RNG.normal()) + torch.randn(x.shape, generator=Loader.gen), y
class Slotted(Callback):
    __slots__ = ('rng',)
    def before_batch(self, learn): learn.batch = (learn.batch[0]*float(self.rng.normal()), learn.batch[1])

def test_generators_of_modules_classes_and_slots(tmp_path):
    def made():
        global RNG
        set_seed(3); RNG = np.random.default_rng(1); Loader.gen = torch.Generator().manual_seed(2); s = Slotted(); s.rng = np.random.default_rng(3)
        g = torch.Generator().manual_seed(0); x,y = torch.randn(40, 1, 2, 2, generator=g).tanh(), torch.arange(40) % 3
        return TrainLearner(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), DataLoaders(Loader(x, y, 8, shuffle=True), []), F.cross_entropy, lr=.1, cbs=[DeviceCB('cpu'), s])
    class Kill(Callback):
        order = 200
        def after_batch(self, learn):
            if (learn.epoch, learn.iter) == (1, 2): raise RuntimeError('killed')
    whole = made(); whole.fit(3, valid=False)
    with pytest.raises(RuntimeError): made().fit(3, valid=False, cbs=[CheckpointCB(tmp_path/'c', every=1), Kill()])
    again = made(); again.fit(3, valid=False, cbs=CheckpointCB(tmp_path/'c', every=1))
    assert torch.equal(again.model[1].weight, whole.model[1].weight)

def test_keys_of_a_state():
    state = {'seen': {('a', 1): 0, 2: (3, 4)}, np.int64(5): np.arange(3)}; tensors = {}
    back = _unpack(json.loads(json.dumps(_pack(state, tensors))), tensors)
    assert back['seen'] == state['seen'] and list(back[5]) == [0, 1, 2]
    with pytest.raises(TypeError, match='a checkpoint holds'): _pack(np.array([1j]), {})

@pytest.mark.parametrize('n', [1, 3, 4])
def test_one_cycle_ends_with_the_training_when_gradients_add_up(n):
    class Rates(Callback):
        order,seen = 99,[]
        def after_step(self, learn): self.seen.append(learn.opt.param_groups[0]['lr'])
    rates = Rates(); rates.seen = []
    diffusion_learner(image_dls('g8', 8, n_valid=8), 'edm', lr=2e-3, cbs=[AccumulateCB(n), rates], widths=(16,32)).fit(3, valid=False)
    assert rates.seen[-1] < 1e-7 and max(rates.seen) > 1e-3 and len(rates.seen) == 3*math.ceil(5/n)

# --- sentences

@pytest.mark.parametrize('f,kw', [(train, dict(data='')), (sample_images, dict(weights='')), (evaluate, dict(images='g8', against='')), (sample_images, dict(From=' ')), (train, dict(out='')), (evaluate, dict(images='g8', real=''))], ids=['data', 'weights', 'against', 'from', 'out', 'real'])
def test_an_empty_option(f, kw):
    with pytest.raises(ValueError, match='is empty'): f(**kw)

@pytest.mark.parametrize('f,kw,words', [(train, dict(data='g8', epochs=0), '--epochs 0: 1 or more'), (train, dict(data='g8', seed=10**23), '--seed'), (sample_images, dict(seed=-1), '--seed -1'), (train, dict(data='g8', size=10**6), 'up to 4096'),
    (train, dict(data='g8', widths='100000,100000'), 'up to 8192'), (sample_images, dict(weights='fashion_edm', n=10**11), 'GiB'), (export, dict(weights='fashion_edm', out='/dev/full/x.onnx'), 'cannot be written')], ids=['epochs', 'seed', 'negative seed', 'size', 'widths', 'n', 'out'])
def test_what_cannot_be_is_refused_at_once(f, kw, words):
    start = time.time()
    with pytest.raises(ValueError, match=words): f(**kw)
    assert time.time()-start < 20

def test_labels_that_count_more_than_there_are():
    d = np.load('lab.npz'); np.savez('far.npz', images=d['images'], labels=d['labels']*10**7)
    with pytest.raises(ValueError, match='count from 0'): train('far.npz', out='w', labels=True, **SMALL)

def test_several_masks():
    write_images(torch.zeros(2,1,28,28, dtype=torch.uint8), 'masks'); write_images(torch.zeros(1,1,28,28, dtype=torch.uint8), 'one')
    with pytest.raises(ValueError, match='2 masks: one was expected'): sample_images('fashion_edm', n=1, steps=1, From='one', mask='masks', out='x.npz')

BAD = '''
import torch, math
def half(x): return x.flatten(1)[:len(x)//2+1]
def flat(x): return x.flatten()
def listed(x): return x.flatten(1).tolist()
def broken(x): raise KeyError('mine')
class Needs:
    def __init__(self, a): pass
tensor = torch.zeros(3)
def good(x): return x.flatten(1)
'''
@pytest.mark.parametrize('name,words', [('bad:half', '21×64 for 40 images'), ('bad:flat', 'one row of features'), ('bad:listed', 'gave list'), ('bad:broken', "KeyError: 'mine'"), ('bad:Needs', 'cannot be made'), ('bad:tensor', "no 'tensor' that maps"), ('math:pi', "no 'pi'"),
    ('worse:f', 'cannot be imported: SyntaxError'), ('bad.sub:f', 'cannot be imported')], ids=str)
def test_an_extractor_that_misbehaves(name, words, monkeypatch):
    Path('bad.py').write_text(BAD); Path('worse.py').write_text('def f(:\n')
    for m in ('bad', 'worse'): monkeypatch.delitem(sys.modules, m, raising=False)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with pytest.raises(ValueError, match=words): evaluate('g8', against='g8', extractor=name, record='r.jsonl')
    with pytest.raises(ValueError, match='leave out --weights'): evaluate('g8', against='g8', extractor='bad:good', weights='none.pth', record='r.jsonl')

K = 2.
def by_global(x): return x.flatten(1)*K
class Times:
    def __init__(self, k): self.k = k
    def __call__(self, x): return x.flatten(1)*self.k
def times(k, x): return x.flatten(1)*k
@pytest.mark.parametrize('make', [lambda k: (lambda x: x.flatten(1)*k), lambda k: partial(times, k), Times, lambda k: Times(k).__call__, lambda k: partial(times, torch.tensor(k))], ids=['closure', 'partial', 'object', 'method', 'tensor'])
def test_a_function_is_known_by_what_it_uses(make):
    h = lambda k: Extractor(make(k), 1, 8).hash
    assert h(1.) == h(1.) != h(5.)

def test_a_function_is_known_by_its_modules_values(monkeypatch):
    a = Extractor(by_global, 1, 8).hash; monkeypatch.setitem(globals(), 'K', 3.); assert Extractor(by_global, 1, 8).hash != a

@pytest.mark.parametrize('text', ['wandb.login(key="hunter2x")', 'pwd="hunter2x"', 'smtp.login("me", "hunter2x")', 'get(u, auth=("me","hunter2x"))', 'curl -u me:hunter2x http://x', '{"Authorization": "Basic hunter2x"}', "h = {'Authorization': 'Token hunter2x'}",
    'token = """hunter2x"""', 'password = (\n    "hunter2x")', 'tool --password hunter2x --x 3', 'AccountKey=hunter2x;Endpoint=x', 'https://ntfy.sh/hunter2x', 'https://me.webhook.office.com/hunter2x'])
def test_secrets(text): assert 'hunter2x' not in mask_secrets(text) and '…' in mask_secrets(text)

@pytest.mark.parametrize('text', ['learn = login_count(3)', 'def auth(x): return x', 'tokens = tokenizer("hello")', 'lr=2e-3, mom=.9', 'def login(self): pass'])
def test_no_secrets(text): assert mask_secrets(text) == text

def test_sixteen_bits_that_lie_on_their_side():
    from PIL import Image
    im = Image.fromarray((np.arange(6*4).reshape(6,4)*2000).astype(np.uint16)); exif = Image.Exif(); exif[274] = 6
    im.save('turned.png', exif=exif); a = decode_image('turned.png')
    assert a.shape == (4,6) and (a == np.rot90((np.arange(24).reshape(6,4)*2000 >> 8).astype(np.uint8), -1)).all()

@pytest.mark.parametrize('after', [.15, .6, 1.5])
def test_ctrl_c_while_a_command_loads(after):
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)           # a shell's background jobs ignore it
    p = subprocess.Popen([Path(sys.executable).parent/'miniai_sample', '--n', '100000'], stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    time.sleep(after); p.send_signal(signal.SIGINT)
    try: err = p.communicate(timeout=60)[1]
    finally: p.kill()
    assert p.returncode and len(err.strip().splitlines()) <= 1 or after < .5 and 'KeyboardInterrupt' in err       # Python itself had not begun
