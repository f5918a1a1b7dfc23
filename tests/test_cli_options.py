"`miniai_train` with images and settings of one's own: each option reaches the network, the card, and the checkpoint that would go on"
import json
from pathlib import Path
import numpy as np
import pytest
import torch
from miniai.cli import read_images, sample_images, train, write_images
from miniai.core import load
from miniai.learner import Callback
from miniai.recipes import load_denoiser
from miniai import cli

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
    (dict(patch=1), dict(config=dict(patch=1))), (dict(flip=True), dict(flip=True)), (dict(labels=True), dict(drop=.1, classes=['dark','light'], config=dict(n_classes=2))),
    (dict(labels=True, drop=.5), dict(drop=.5)), (dict(data='mine.npz', labels=True), dict(data='mine', drop=.1, classes=None, config=dict(n_classes=2))),
    (dict(n_train=16), dict(n_train=16)), (dict(seed=1), dict(seed=1)), (dict(lr=1e-3), dict(lr=1e-3)), (dict(form='flow'), dict(form=dict(name='flow')))], ids=str)
def test_the_card_says_each_option(kw, told):
    plain = card(train(**dict(data='mine', out='plain') | SMALL)); c = card(train(**dict(data='mine', out='w') | SMALL | kw))
    def within(a, b): return all(within(v, b[k]) if isinstance(v, dict) else b[k] == v for k,v in a.items())
    assert within(told, c) and (kw.get('data') or not within(told, plain))

def test_images_are_drawn_at_that_size_and_by_label():
    w = train('mine', out='w', labels=True, **SMALL | dict(size='8x12')); x = read_images(sample_images(str(w), n=2, steps=2, label=1, guidance=2., out='x.npz'))
    assert x.shape == (2,3,8,12)

class Stop(Callback):
    order = 200
    def after_batch(self, learn):
        if learn.training and learn.iter == 2: raise RuntimeError('killed')

@pytest.fixture
def killed(monkeypatch):
    make = cli.diffusion_learner
    with monkeypatch.context() as m:
        m.setattr(cli, 'diffusion_learner', lambda *args, cbs, **kw: make(*args, cbs=[*cbs, Stop()], **kw))
        with pytest.raises(RuntimeError): train('mine', out='w', every=1, flip=True, labels=True, preview=2, **SMALL)

def test_a_preview_changes_nothing(killed):
    "It is drawn; and whether or not, and whether interrupted or not, the weights are the same to the bit"
    from PIL import Image
    assert Image.open('w-preview.png').size[0] > 300
    kw = dict(data='mine', flip=True, labels=True) | SMALL; went_on = bits(train(out='w', every=1, **kw))
    assert torch.equal(went_on, bits(train(out='whole', **kw))) and torch.equal(went_on, bits(train(out='seen', preview=1, **kw)))

@pytest.mark.parametrize('kw,words', [(dict(flip=False), 'flip was True, now False'), (dict(drop=.5), 'drop was 0.1, now 0.5'), (dict(labels=False), 'drop was 0.1, now None'), (dict(size='8x12'), r'size was \[3, 8, 8\], now \[3, 8, 12\]'),
                                      (dict(widths='32,32'), r'widths was \[16, 32\]'), (dict(patch=1), 'patch was not given, now 1'), (dict(n_valid=2), 'n_valid was 2000, now 2'), (dict(skip=True), 'skip was False')], ids=str)
def test_another_setting_does_not_go_on(killed, kw, words):
    with pytest.raises(ValueError, match=words) as e: train(**dict(data='mine', out='w', every=1, flip=True, labels=True) | SMALL | kw)
    assert 'was made with other settings' in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('kw,words', [(dict(size='12by20'), 'HEIGHTxWIDTH'), (dict(widths='16;32'), 'e.g. 64,128'), (dict(drop=.1), 'say --labels'), (dict(data='mine/dark', labels=True), 'has no labels'), (dict(size='8x10'), 'multiples of 4')], ids=str)
def test_what_cannot_be_is_one_sentence(kw, words):
    with pytest.raises(ValueError, match=words) as e: train(**dict(data='mine', out='never') | SMALL | kw)
    assert '\n' not in str(e.value) and not Path('never.safetensors').exists()
