"`miniai_train` with images and settings of one's own: each option reaches the network, the card, and the checkpoint that would go on"
import json
from pathlib import Path
import numpy as np
import pytest
import torch
from common import killed_training
from miniai.cli import read_images, sample_images, train, write_images
from miniai.core import load
from miniai.recipes import load_denoiser
from miniai import checkpoint, cli

SMALL = dict(epochs=1, bs=8, widths='16,32', size=8, ema=.9)

@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    "Two class folders of images 12×20, one dark and one light, and the same in a .npz"
    monkeypatch.chdir(tmp_path)
    x = torch.randint(0, 100, (40,3,12,20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)); x[20:] += 150
    write_images(x[:20], 'mine/dark'); write_images(x[20:], 'mine/light')
    np.savez('mine.npz', images=x.permute(0,2,3,1).numpy(), labels=np.arange(40)//20)

def card(path): return json.loads(Path(path).with_suffix('.json').read_text(encoding='utf-8'))
def bits(path): return torch.cat([v.flatten().float() for v in load(path)[0].values()])

@pytest.mark.parametrize('kw,told', [(dict(size='8x12'), dict(size=[3,8,12])), (dict(size=16), dict(size=[3,16,16])), (dict(widths='16,16,32'), dict(config=dict(widths=[16,16,32]))),
    (dict(patch=1), dict(config=dict(patch=1))), (dict(flip=True), dict(flip=True)), (dict(muon=.01), dict(optimizer='Muon at 0.01 on matrices, Adam on the rest')), (dict(labels=True), dict(drop=.1, classes=['dark','light'], config=dict(n_classes=2))),
    (dict(labels=True, drop=.5), dict(drop=.5)), (dict(data='mine.npz', labels=True), dict(data='mine', drop=.1, classes=None, config=dict(n_classes=2))),
    (dict(n_train=16), dict(n_train=16)), (dict(seed=1), dict(seed=1)), (dict(lr=1e-3), dict(lr=1e-3)), (dict(form='flow'), dict(form=dict(name='flow')))], ids=str)
def test_the_card_says_each_option(kw, told):
    plain = card(train(**dict(data='mine', out='plain') | SMALL)); c = card(train(**dict(data='mine', out='w') | SMALL | kw))
    def within(a, b): return all(within(v, b[k]) if isinstance(v, dict) else b[k] == v for k,v in a.items())
    assert within(told, c) and (kw.get('data') or not within(told, plain))

def test_images_are_drawn_at_that_size_and_by_label():
    w = train('mine', out='w', labels=True, **SMALL | dict(size='8x12')); x = read_images(sample_images(str(w), n=2, steps=2, label=1, guidance=2., out='x.npz'))
    assert x.shape == (2,3,8,12)

@pytest.fixture
def killed(monkeypatch): killed_training(monkeypatch, lambda: train('mine', out='w', every=1, flip=True, labels=True, preview=2, **SMALL))

def test_a_preview_changes_nothing(killed):
    "It is drawn; and whether or not, and whether interrupted or not, the weights are the same to the bit"
    from PIL import Image
    assert Image.open('w-preview.png').size[0] > 300
    kw = dict(data='mine', flip=True, labels=True) | SMALL; went_on = bits(train(out='w', every=1, **kw))
    assert torch.equal(went_on, bits(train(out='whole', **kw))) and torch.equal(went_on, bits(train(out='seen', preview=1, **kw)))

def test_other_images_of_the_same_name_and_number_do_not_go_on(killed):
    write_images(255-read_images('mine/dark'), 'mine/dark', force=True)
    with pytest.raises(ValueError, match=r"images was '\w{12}', now '\w{12}'"): train('mine', out='w', every=1, flip=True, labels=True, **SMALL)

def test_the_card_counts_the_seconds_before_the_kill(killed, monkeypatch):
    seen = []; read = checkpoint._read
    monkeypatch.setattr(checkpoint, '_read', lambda path: (seen.append(s := read(path)), s | dict(seconds=s['seconds']+1000))[1])
    assert 1000 <= card(train('mine', out='w', every=1, flip=True, labels=True, **SMALL))['cpu_seconds'] < 1100 and seen[0]['seconds'] > 0

def test_a_preview_that_finds_the_disk_full(monkeypatch, capsys):
    def full(*args): raise OSError(28, 'No space left on device')
    kw = dict(data='mine') | SMALL; plain = bits(train(out='plain', **kw)); monkeypatch.setattr(cli, 'write_png', full)
    assert torch.equal(plain, bits(train(out='w', preview=1, **kw))) and capsys.readouterr().out.count('No space left on device') == 1

@pytest.mark.parametrize('kw,words', [(dict(flip=False), 'flip was True, now False'), (dict(drop=.5), 'drop was 0.1, now 0.5'), (dict(labels=False), 'drop was 0.1, now None'), (dict(size='8x12'), r'size was \[3, 8, 8\], now \[3, 8, 12\]'),
                                      (dict(widths='32,32'), r'widths was \[16, 32\]'), (dict(patch=1), 'patch was not given, now 1'), (dict(muon=.01), "optimizer was 'Adam', now 'Muon at 0.01 on matrices, Adam on the rest'"), (dict(n_valid=2), 'n_valid was 2000, now 2'), (dict(skip=True), 'skip was False')], ids=str)
def test_another_setting_does_not_go_on(killed, kw, words):
    with pytest.raises(ValueError, match=words) as e: train(**dict(data='mine', out='w', every=1, flip=True, labels=True) | SMALL | kw)
    assert 'was made with other settings' in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('kw,words', [(dict(size='12by20'), 'HEIGHTxWIDTH'), (dict(widths='16;32'), 'e.g. 64,128'), (dict(drop=.1), 'say --labels'), (dict(data='mine/dark', labels=True), 'has no labels'), (dict(size='8x10'), 'multiples of 4'),
                                      (dict(bs=0), 'bs=0 images: 1 or more'), (dict(patch=0), '--patch 0: 1 or more'), (dict(patch=-2), '--patch -2'), (dict(widths='0'), 'above 0 were expected'), (dict(widths='16,0'), 'above 0 were expected'),
                                      (dict(every=-1), '--every -1: 0 or more'), (dict(preview=-1), '--preview -1'), (dict(lr=float('inf')), 'rate of inf: a finite number above 0'), (dict(lr=0.), 'rate of 0'), (dict(muon=float('inf')), 'rate of inf'), (dict(muon=-1.), 'rate of -1'),
                                      (dict(lr=1e9), 'lower the learning rate')], ids=str)
def test_what_cannot_be_is_one_sentence(kw, words):
    with pytest.raises(ValueError, match=words) as e: train(**dict(data='mine', out='never') | SMALL | kw)
    assert '\n' not in str(e.value) and not Path('never.safetensors').exists()

# --- scoring by features of one's own, and likelihood

FEATURES = '''
import torch
def fields(x):
    "The average of each of 2×2 fields, and the spread of the whole"
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), x.flatten(1).std(1)[:,None]], 1)
'''

def test_scores_by_a_function_from_here():
    "Against images of another size; the same images score nothing; training images are the floor"
    from miniai.cli import evaluate
    Path('mine_features.py').write_text(FEATURES); kw = dict(extractor='mine_features:fields', record='e.jsonl')
    same = evaluate('mine', against='mine', **kw); assert same['fid'] < 1e-6 and same['extractor'] == 'mine_features:fields' and same['floor'] is None
    half = evaluate('mine/dark', against='mine', real='mine', n=12, **kw); assert half['fid'] > 3*half['floor'] > 0 and half['fid_low'] <= half['fid_high'] and half['n'] == 12
    small = write_images(torch.zeros(6,3,8,8, dtype=torch.uint8), 'small'); assert evaluate(str(small), against='mine', **kw)['n_ref'] == 40

def test_scores_by_a_network_by_name():
    from torchvision.models import get_model
    from miniai.cli import evaluate
    from miniai.core import save
    torch.manual_seed(0); f = save(get_model('squeezenet1_1', weights=None), 'net')
    with pytest.raises(ValueError, match='no linear layer'): evaluate('mine', against='mine', n=4, extractor='torchvision:squeezenet1_1', weights=str(f))
    f = save(get_model('mobilenet_v3_small', weights=None), 'net', dtype=torch.float32)
    rec = evaluate('mine', against='mine', n=12, extractor='torchvision:mobilenet_v3_small', weights=str(f), record='e.jsonl'); assert rec['extractor'] == 'torchvision:mobilenet_v3_small' and rec['n'] == 12

def test_likelihood_is_that_of_the_function(capsys):
    from miniai.cli import evaluate
    from miniai.likelihood import bits_per_dim
    write_images(sample_images_of(12), 'x.npz'); rec = evaluate('x.npz', likelihood='fashion_edm', n_bits=2, record='e.jsonl'); assert 'bits/dim' in capsys.readouterr().out
    assert rec['n_bits'] == 2 and abs(rec['bits'] - bits_per_dim(load_denoiser('fashion_edm', dtype=None), sample_images_of(2)).mean().item()) < 1e-4 and rec['likelihood'] == 'fashion_edm'

def sample_images_of(n):
    from miniai.datasets import fashion_arrays
    return torch.as_tensor(fashion_arrays('embedded', say=lambda s: None)['test'][0][:n])

@pytest.mark.parametrize('kw,words', [(dict(weights='w'), 'say which with --extractor'), (dict(real='mine'), 'say which with --against'), (dict(extractor='nowhere:f'), 'no module'), (dict(extractor='torchvision:resnet18'), 'path of its weights'),
                                      (dict(likelihood='fashion_edm', against='mine'), 'trained on images 1×28×28'), (dict(likelihood='fashion_edm', n_bits=-3), '--n-bits -3: 1 or more'), (dict(n_bits=0), '--n-bits 0')], ids=str)
def test_scores_that_are_refused(kw, words):
    from miniai.cli import evaluate
    with pytest.raises(ValueError, match=words): evaluate('mine', record='never.jsonl', **kw)
    assert not Path('never.jsonl').exists()
