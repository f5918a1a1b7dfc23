"`miniai_train` that was interrupted: the same goes on, another is refused, `force` begins anew, and a finished run leaves no checkpoint"
import pytest
import torch
from miniai import cli, recipes
from miniai.cli import train
from miniai.core import load
from miniai.learner import Callback
from miniai.unet import UNet

SAME = dict(out='m', form='edm', epochs=2, bs=16, n_train=64, n_valid=16, every=1)

class StopCB(Callback):
    order = 200
    def after_batch(self, learn):
        if learn.training and (learn.epoch, learn.iter) == (1, 1): raise RuntimeError('killed')

@pytest.fixture(autouse=True)
def _tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = lambda channels=1, t_scale=1., **kw: UNet(channels, **dict(widths=(16,32), n_blocks=1, attn=0, patch=2, t_scale=t_scale) | kw)
    monkeypatch.setattr(recipes, 'small_unet', tiny)

@pytest.fixture
def killed(monkeypatch):
    make = cli.diffusion_learner
    with monkeypatch.context() as m:
        m.setattr(cli, 'diffusion_learner', lambda *args, cbs, **kw: make(*args, cbs=[*cbs, StopCB()], **kw))
        with pytest.raises(RuntimeError): train(**SAME)

def bits(path): return torch.cat([v.flatten().float() for v in load(path)[0].values()])

def test_the_same_goes_on(tmp_path, killed):
    went_on = bits(train(**SAME)); assert not list(tmp_path.glob('*checkpoint*'))
    assert torch.equal(went_on, bits(train(**SAME | dict(out='whole'))))

@pytest.mark.parametrize('kw,words', [(dict(seed=1), 'seed was 42, now 1'), (dict(lr=1e-3), 'lr was 0.002, now 0.001'), (dict(ema=0.9), 'EMACB.decay was 0.9995, now 0.9'), (dict(ema=0.), 'other'),
                                      (dict(form='ddpm'), 'form was'), (dict(n_train=48), 'n_train was 64, now 48'), (dict(bs=8), 'bs was 16, now 8'), (dict(epochs=3), 'total_steps was')], ids=str)
def test_another_is_refused(killed, kw, words):
    with pytest.raises(ValueError, match='m-checkpoint.safetensors was made with other (settings|callbacks)') as e: train(**SAME | kw)
    assert words in str(e.value) and '\n' not in str(e.value)

def test_force_begins_anew(killed, tmp_path):
    (tmp_path/'m2-checkpoint.safetensors').write_text('of another run')
    anew = bits(train(**SAME | dict(seed=1, force=True))); assert (tmp_path/'m2-checkpoint.safetensors').exists()
    assert torch.equal(anew, bits(train(**SAME | dict(out='whole', seed=1))))
