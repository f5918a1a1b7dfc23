"Easy consistency tuning: its targets against those of diffusion training and of a network that is consistent already"
import sys
from pathlib import Path
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent/'experiments'))
import ect
from miniai.core import load
from miniai.denoiser import Denoiser
from miniai.diffusion import Level
from miniai.karras import edm
from miniai.unet import UNet
from oracles import Knows, Network

FORM = edm(sigma_data=.5)

class Learn:
    def __init__(self, model, x0): self.model,self.batch = model, (x0,)

def batch(model, x0, stage, seed=0):
    torch.manual_seed(seed); model.n_classes = 0; cb = ect.ConsistencyCB(FORM, 8); cb.n = stage; learn = Learn(model, x0)
    cb.before_fit(learn); cb.before_batch(learn)
    return learn.batch

def test_the_lower_level_rises_to_the_upper():
    t = torch.tensor([.01, .1, 1., 10., 80.]); rs = torch.stack([ect.lower_level(t, s) for s in range(12)])
    assert (rs >= 0).all() and (rs < t).all() and (rs.diff(dim=0) >= 0).all() and (rs[0,:3] == 0).all() and (rs[-1] > .99*t).all()

def test_before_it_starts_it_is_training_a_diffusion_model():
    "Where r = 0 the target is the image: F = a·x0 + b·ε, as `noisify` has it"
    x0 = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(1)); x,time,F,w = batch(Zero(), x0, -100)
    t = (4*time.double()).exp(); one = torch.ones_like(t); k = FORM.scale(one, t)
    for i in range(64):
        ε = (x[i].double()/k[i]-x0[i])/t[i]; a,b = FORM.pred(k[i], k[i]*t[i])
        torch.testing.assert_close(F[i].double(), a*x0[i]+b*ε, rtol=1e-3, atol=1e-3)

class Zero(nn.Module):
    def forward(self, x, t): return 0*x

def test_a_network_that_knows_the_image_is_at_its_target():
    "Then every level says the same, and the loss is zero at every stage"
    x0 = torch.randn(1, 1, 4, 4).expand(16, 1, 4, 4); net = Network(Knows(x0.double()), FORM)
    for stage in (0, 4, 8):
        x,time,F,w = batch(net, x0, stage)
        assert ect.loss(net(x, time), F, torch.ones_like(w)).item() < 2e-3

def test_weight_makes_an_error_in_f_one_in_the_image():
    x0 = torch.randn(8, 1, 4, 4); x,time,F,w = batch(Zero(), x0, 4); t = (4*time).exp(); one = torch.ones_like(t)
    k = FORM.scale(one, t); d = torch.randn(8, 1, 4, 4)
    class Says(nn.Module):
        def forward(self, *_): return self.F
    net = Says(); image = []
    for net.F in (F, F+d): image.append(Denoiser(net, FORM)(x/k.view(-1,1,1,1), Level(None, one, t))[0])
    far = (image[1]-image[0]).flatten(1).square().mean(1).sqrt(); gap = t-ect.lower_level(t, 4)
    torch.testing.assert_close(w*d.flatten(1).square().mean(1).sqrt(), far/gap, rtol=2e-3, atol=1e-4)

def test_a_killed_tuning_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    def small(*_, **kw):
        torch.manual_seed(3)
        return Denoiser(UNet(widths=(16,32), n_blocks=1, patch=2, attn=0), FORM, card=dict(size=(1,8,8)))
    monkeypatch.setattr(ect, 'load_denoiser', small)
    class Dls:
        train = [(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(i)),) for i in range(10)]; valid = []
    ect.tune('w', tmp_path/'whole', 6, save_every=2, dls=Dls)
    class StopCB(ect.StopCB):       # of the same name: a checkpoint lists the callbacks that have a state
        def after_batch(self, learn):
            if learn.tuning.n == 5: raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(ect, 'StopCB', StopCB); ect.tune('w', tmp_path/'killed', 6, save_every=2, dls=Dls)
    ect.tune('w', tmp_path/'killed', 6, save_every=2, dls=Dls)
    a,b = (load(tmp_path/k/'ect')[0] for k in ('whole', 'killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)
