"Weights, cards, statistics, checkpoints, records: some 250 broken or hostile files, each read rightly or refused in one sentence; none is executed, none hangs"
import json, os, pickle, signal, struct, sys, warnings
from pathlib import Path
import numpy as np
import pytest
import safetensors.torch as st
import torch
import torch.nn.functional as F
from torch import nn
from common import refusals
from miniai.checkpoint import CheckpointCB
from miniai.core import load, log_record, read_records
from miniai.datasets import DataLoaders
from miniai.export import OnnxDenoiser
from miniai.extractors import extractor_from, inception_extractor
from miniai.karras import edm
from miniai.learner import DeviceCB, MetricsCB, TrainLearner
from miniai.recipes import load_denoiser
from miniai.stats import Stats
from miniai.unet import UNet, load_unet

class Bomb:
    "Leaves a trace where it is unpickled"
    def __reduce__(self): return os.mkdir, ('executed',)

@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    "In an empty folder; two minutes for each; nothing executed"
    def late(*a): raise AssertionError('it hangs')
    monkeypatch.chdir(tmp_path); signal.signal(signal.SIGALRM, late); signal.alarm(120); yield; signal.alarm(0)
    assert not (tmp_path/'executed').exists(), 'code in a file was run'

def read_loudly(read):
    "As `read`, after a look at what it says"
    try: return read()
    except (ValueError, FileNotFoundError) as e: assert '\n' not in str(e) and len(str(e)) < 300, str(e); raise

def read_or_refused(read, right=lambda o: True):
    "What `read` gives, which is right; or None, where it says one printable sentence"
    try:
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); out = read()
    except (ValueError, FileNotFoundError) as e:
        m = str(e); m.encode(); assert m and '\n' not in m and len(m) < 900, m
        return None
    assert right(out)
    return out

# --- the generator: what can happen to a file, and what someone may write into one

def spoilt(raw, seed=0):
    "`{name: bytes}`: cut, flipped, doubled, replaced"
    rng = np.random.default_rng(seed)
    out = {'empty': b'', 'text': b'not what it says', 'nul': bytes(len(raw)), 'pickle': pickle.dumps(Bomb()), 'zip': b'PK\3\4'+bytes(60), 'twice': raw+raw, 'more': raw+b'x', 'less': raw[1:]}
    out |= {f'cut at {k:.2f}': raw[:int(k*len(raw))] for k in (.01, .1, .3, .5, .7, .9, .99)}
    for i in range(12):
        b = bytearray(raw); b[rng.integers(0, len(b) if i % 3 == 0 else min(200, len(b)))] ^= 1 << rng.integers(0, 8); out[f'one bit {i}'] = bytes(b)
    for i in range(6):
        b = bytearray(raw); at = rng.integers(0, len(b), 20)
        for j in at: b[j] = rng.integers(0, 256)
        out[f'twenty bytes {i}'] = bytes(b)
    return out

def forged(header, data=bytes(24)):
    "A safetensors file with any header"
    h = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(h)) + h + data

def one(**kw): return {'weight': dict(dtype='F32', shape=[2,3], data_offsets=[0,24]) | kw}
FORGED = {'length 2⁶³': struct.pack('<Q', 2**63) + b'{}', 'length 10⁸': struct.pack('<Q', 10**8) + b'{}', 'no JSON': forged(b'{'), 'a list': forged([]), 'a number': forged(3), 'not UTF-8': forged(b'\xff\xfe'),
    'deep': forged(b'['*100_000), 'huge shape': forged(one(shape=[2**40, 2**40])), 'overflow': forged(one(shape=[2**62, 4])), 'negative': forged(one(shape=[-2, -3])), 'other size': forged(one(shape=[3,3])), 'beyond': forged(one(data_offsets=[0,2400])),
    'backwards': forged(one(data_offsets=[24,0])), 'gap': forged(one(data_offsets=[8,32]), bytes(32)), 'overlap': forged(one() | {'b': one()['weight']}), 'dtype': forged(one(dtype='PICKLE')), 'no dtype': forged({'weight': {}}),
    'offsets of text': forged(one(data_offsets=['0','24'])), 'metadata a list': forged(one() | {'__metadata__': []}), 'metadata of numbers': forged(one() | {'__metadata__': {'card': 3}}), 'twice one name': forged(b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":3}')}
NOT_CARDS = {'list': b'[]', 'number': b'3', 'text': b'"card"', 'null': b'null', 'nothing': b'', 'half': b'{"config": ', 'not UTF-8': b'\xff\xfe\x00', 'deep': b'['*100_000, 'deep dict': b'{"a":'*50_000, 'long number': b'1'*6000, 'pickle': pickle.dumps(Bomb()), 'two': b'{}{}', 'NaN alone': b'NaN'}

NET = dict(channels=1, widths=[16], n_blocks=1, attn=0, patch=1, t_scale=1., n_classes=0)
CONFIGS = {'a list': [], 'a number': 3, 'text': 'UNet', 'null': None, 'unknown argument': NET | dict(code='__import__("os")'), 'no widths': NET | dict(widths=[]), 'widths a number': NET | dict(widths=3), 'text widths': NET | dict(widths=['a']),
    'negative': NET | dict(widths=[-16]), 'zero': NET | dict(widths=[0]), 'broken width': NET | dict(widths=[16.5]), 'wide': NET | dict(widths=[2**20]), 'wider': NET | dict(widths=[2**40]), 'widest': NET | dict(widths=[10**30]), 'odd': NET | dict(widths=[17]),
    'blocks 10⁹': NET | dict(n_blocks=10**9), 'text blocks': NET | dict(n_blocks='1'*9), 'half a block': NET | dict(n_blocks=.5), 'many widths': NET | dict(widths=[16]*5000), 'channels 0': NET | dict(channels=0), 'channels text': NET | dict(channels='1'), 'channels 10¹²': NET | dict(channels=10**12),
    'patch 0': NET | dict(patch=0), 'patch 10⁶': NET | dict(patch=10**6), 'classes 10¹²': NET | dict(n_classes=10**12), 'classes text': NET | dict(n_classes='ten'), 'attention 10⁹': NET | dict(attn=10**9, widths=[17]), 'other architecture': NET | dict(widths=[32]), 'nested': NET | dict(widths=[[16]])}
FORMS = {'a list': [], 'a number': 3, 'true': True, 'no name': {}, 'a name of none': {'name': 'gan'}, 'name a list': {'name': ['edm']}, 'name a dict': {'name': {}}, 'name null': {'name': None}, 'argument': {'name': 'edm', 'code': 'x'}, 'text': {'name': 'edm', 'sigma_data': 'x'}, 'zero': {'name': 'edm', 'sigma_data': 0},
    'negative': {'name': 'edm', 'sigma_data': -1}, 'list': {'name': 'edm', 'sigma_data': [1]}, 'predicts': {'name': 'edm', 'predicts': 'os.system'}, 'predicts list': {'name': 'edm', 'predicts': []}, 'one step': {'name': 'ddpm', 'n_steps': 1}, 'beta': {'name': 'ddpm', 'beta_max': 7}, 'steps text': {'name': 'ddpm', 'n_steps': 'many'}}

def with_card(card, name='w.safetensors', sd=None, text=None):
    "Weights with any card inside"
    sd = sd if sd is not None else {k: v.half() for k,v in UNet(**NET).state_dict().items()}
    st.save_file(sd, name, {'card': json.dumps(card) if text is None else text}); return Path(name)

# --- weights and cards

LINEAR = forged(one(), np.arange(6, dtype=np.float32).tobytes())
WEIGHTS = spoilt(LINEAR) | FORGED

@pytest.mark.parametrize('name', WEIGHTS)
def test_weights(name):
    "Tensors as they are, which a flipped bit in a number may be; or refused. Into a model, too"
    Path('w.safetensors').write_bytes(WEIGHTS[name])
    read_or_refused(lambda: load('w'), lambda o: isinstance(o[0], dict) and all(isinstance(v, torch.Tensor) for v in o[0].values()))
    read_or_refused(lambda: load('w', nn.Linear(3, 2, bias=False)))
    assert read_or_refused(lambda: load_denoiser('w', 'cpu')) is None

@pytest.mark.parametrize('name', NOT_CARDS)
@pytest.mark.parametrize('inside', [False, True])
def test_what_is_no_card(name, inside):
    raw = NOT_CARDS[name]; sd = {'weight': torch.ones(2, 3)}
    if inside: with_card(None, sd=sd, text=raw.decode('latin1'))
    else: st.save_file(sd, 'w.safetensors'); Path('w.json').write_bytes(raw)
    assert read_or_refused(lambda: load('w')) is None
    assert read_or_refused(lambda: load_denoiser('w', 'cpu')) is None

@pytest.mark.parametrize('name', CONFIGS)
def test_a_card_of_no_network(name):
    p = with_card(dict(config=CONFIGS[name], form=edm().card()))
    assert read_or_refused(lambda: load_unet(p, 'cpu')) is None

@pytest.mark.parametrize('name', FORMS)
def test_a_card_of_no_form(name):
    p = with_card(dict(config=NET, form=FORMS[name]))
    assert read_or_refused(lambda: load_denoiser(p, 'cpu')) is None

def test_right_weights_are_read():
    p = with_card(dict(config=NET, form=edm().card(), size=[1,8,8]))
    assert load_denoiser(p, 'cpu').form == edm() and load_unet(p, 'cpu')[0].config == NET

@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda p: os.symlink('/dev/zero', p), lambda p: os.symlink('nowhere', p)], ids=['pipe', 'folder', 'device', 'gone'])
@pytest.mark.parametrize('read', [lambda: load('w'), lambda: load_denoiser('w', 'cpu'), lambda: Stats.load('w'), lambda: learner().fit(1, cbs=CheckpointCB('w'))], ids=['weights', 'denoiser', 'statistics', 'checkpoint'])
def test_what_is_no_plain_file(make, read):
    make('w.safetensors')
    if os.path.exists('w.safetensors'): assert read_or_refused(read) is None

# --- statistics

def statistics():
    g = torch.Generator().manual_seed(0); return Stats(torch.randn(9, 4, generator=g), extractor='aaa').save('s').read_bytes()

STATS = [*spoilt(LINEAR), *FORGED]

@pytest.mark.parametrize('name', STATS)
def test_statistics(name):
    raw = (spoilt(statistics(), 1) | FORGED)[name]; Path('s.safetensors').write_bytes(raw)
    for p in (Path('s.json'),):
        if name[0] in 'tn': p.unlink()
    s = read_or_refused(lambda: Stats.load('s'))
    if s is not None: assert s.n >= 2 and s.cov.isfinite().all() and s.mean.isfinite().all()

# --- checkpoints

def learner():
    torch.manual_seed(0); b = [(torch.ones(2,3), torch.ones(2,2))]*2
    m = MetricsCB(); m._log = lambda d: None
    return TrainLearner(nn.Linear(3, 2), DataLoaders(b, b[:1]), F.mse_loss, lr=.01, cbs=[DeviceCB('cpu'), m])

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    "Bytes, state and tensors of a right one"
    p = tmp_path_factory.mktemp('c')/'c.safetensors'; learner().fit(1, cbs=CheckpointCB(p))
    from safetensors import safe_open
    with safe_open(p, 'pt') as f: return p.read_bytes(), f.metadata()['state'], {k: f.get_tensor(k) for k in f.keys()}

@pytest.mark.parametrize('name', STATS)
def test_checkpoint(name, checkpoint):
    Path('c.safetensors').write_bytes((spoilt(checkpoint[0], 2) | FORGED)[name])
    read_or_refused(lambda: learner().fit(1, cbs=CheckpointCB('c')))

def set_at(o, keys, v):
    "The packed state with one part of it replaced"
    o = json.loads(json.dumps(o)); d = o
    for k in keys: d = next(p for p in d['dict'] if p[0] == k); d = d if k == keys[-1] else d[1]
    d[1] = v; return o

STATES = {'nothing': None, 'a list': {'list': []}, 'a number': 3, 'no parts': {'dict': []}, 'a tensor that is not there': {'tensor': 'gone'}, 'a kind': {'os.system': ['true']}, 'two kinds': {'tensor': 'a', 'list': []}, 'objects': {'array': ['O', [1]]}, 'large': {'array': ['V9999999999', [1]]}, 'strides': {'laid': ['0', [2**40, 2**40]]}}
PLACES = [('at',), ('done',), ('settings',), ('grads',), ('parts',), ('parts', 'model'), ('parts', 'opt'), ('start',), ('now',)]

@pytest.mark.parametrize('name', [*STATES, 'no JSON', 'deep'])
def test_checkpoint_of_another_state(name, checkpoint):
    text = {'no JSON': '{', 'deep': '['*100_000}.get(name) or json.dumps(STATES[name])
    st.save_file(checkpoint[2], 'c.safetensors', {'format': '2', 'state': text})
    assert read_or_refused(lambda: learner().fit(1, cbs=CheckpointCB('c')) or 1) is None

@pytest.mark.parametrize('value', [3, None, 'x', {'list': [3]}, {'dict': [['model', 3]]}], ids=str)
@pytest.mark.parametrize('place', PLACES, ids='.'.join)
def test_checkpoint_with_one_part_replaced(place, value, checkpoint):
    st.save_file(checkpoint[2], 'c.safetensors', {'format': '2', 'state': json.dumps(set_at(json.loads(checkpoint[1]), place, value))})
    read_or_refused(lambda: learner().fit(1, cbs=CheckpointCB('c')))

# --- networks that score, and exported ones

def network(name):
    "What reads a file of weights of that name, or an exported network"
    if name.endswith('onnx'): return OnnxDenoiser(name)
    return extractor_from('torchvision:resnet18', name)

NO_PTH = {k: v for k,v in spoilt(LINEAR).items() if k in ('empty', 'text', 'nul', 'pickle', 'zip')} | {'a list': [torch.ones(1)], 'numbers': {'conv1.weight': 3}, 'nothing': None}

@pytest.mark.parametrize('name', NO_PTH)
@pytest.mark.parametrize('file', ['w.pth', 'w.onnx'])
def test_network_files(file, name):
    v = NO_PTH[name]
    if file == 'w.onnx': pytest.importorskip('onnxruntime', reason="onnxruntime is missing, so ONNX is not tested: pip install 'miniai[onnx]'")
    Path(file).write_bytes(v) if isinstance(v, bytes) else torch.save(v, file)
    with pytest.raises(ValueError, match='w.(pth|onnx) is damaged, or '): read_loudly(lambda: network(file))

@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda p: os.symlink('/dev/zero', p), lambda p: os.symlink('nowhere', p)], ids=['pipe', 'folder', 'device', 'gone'])
@pytest.mark.parametrize('file', ['w.pth', 'w.safetensors', 'w.onnx', 'inception'])
def test_network_files_that_are_none(make, file):
    make(file); read = (lambda: inception_extractor(file)) if file == 'inception' else lambda: network(file)
    with pytest.raises((ValueError, FileNotFoundError), match='not a plain file|is not there|does not exist|no plain file'): read_loudly(read)

def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None); torch.save({}, 'w.pth')
    with pytest.raises(ValueError, match='timm is not installed: pip install timm'): extractor_from('timm:convnext_tiny', 'w.pth')

# --- records

LINES = {'half': b'{"a": 1', 'list': b'[1]', 'number': b'3', 'not UTF-8': b'\xff\xfe', 'nul': bytes(20), 'deep': b'['*100_000, 'long number': b'1'*6000, 'pickle': pickle.dumps(Bomb()).replace(b'\n', b' '), 'no end': b'{"a": 2}{"a": 3}', 'text': b'hello'}

@pytest.mark.parametrize('name', LINES)
@pytest.mark.parametrize('last', [False, True])
def test_records(name, last):
    "The line is left out and named; the others are read, and a new one is not glued to it"
    log_record('r.jsonl', a=1); good = Path('r.jsonl').read_bytes()
    Path('r.jsonl').write_bytes(good + LINES[name] + (b'' if last else b'\n' + good)); log_record('r.jsonl', a=5)
    with pytest.warns(UserWarning, match='no record in line 2'): assert [r['a'] for r in read_records('r.jsonl')] == ([1, 5] if last else [1, 1, 5])

def test_records_of_a_pipe():
    os.mkfifo('r.jsonl'); assert read_or_refused(lambda: read_records('r.jsonl')) is None

# --- as commands

def test_no_traceback_from_a_command():
    signal.alarm(300)
    with_card(None, 'card.safetensors', {'weight': torch.ones(1)}, '[]'); with_card(dict(config=CONFIGS['wide'], form=edm().card()), 'config.safetensors')
    Path('x.npz').write_bytes(pickle.dumps(Bomb())); np.savez('few.npz', images=np.zeros((8,8,8,1), np.uint8)); Path('t-checkpoint.safetensors').write_bytes(FORGED['deep'])
    refusals(Path(), 'sample_images --weights card', 'sample_images --weights config', 'evaluate x.npz', 'train --data few.npz --out t --epochs 1')

def test_how_many():
    "With the hundred and more of tests/test_hostile_images.py: over 300"
    here = len(WEIGHTS) + 2*len(NOT_CARDS) + len(CONFIGS) + len(FORMS) + 2*len(STATS) + len(STATES) + 2 + 5*len(PLACES) + 2*len(LINES)
    assert here >= 250, here
