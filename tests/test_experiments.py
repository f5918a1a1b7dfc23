"The pieces of the experiments that can be wrong without a training showing it"
import sys
from pathlib import Path
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent/'experiments'))
import fashion, speedrun
from miniai import recipes
from miniai.phema import gamma

def test_power_average_has_its_width(tmp_path):
    "Averaging the number of the step itself: mean and spread of the profile are those of the power function"
    net = nn.Linear(1, 1, bias=False)
    cb = fashion.PowerEMACB(tmp_path, [0.1], every=10**9)
    learn = type('L', (), dict(model=net))()
    cb.before_fit(learn)
    n,g = 4000, gamma(0.1)
    for i in range(1, n+1):
        nn.init.constant_(net.weight, i/n)
        cb.after_step(learn)
    assert cb.avgs[0]['weight'].item() == pytest.approx((g+1)/(g+2), abs=2e-3)

def test_rate_begins_low_and_ends_at_zero():
    r = lambda i: fashion.rate(i, 3600, 700, warmup=100, flat=500)
    assert r(0) < 0.02 and r(300) == 1 and r(2000) == pytest.approx(0.5) and r(2900) < r(2000) and r(3600) == 0

@pytest.mark.parametrize('shape', [(32,288), (288,32), (64,64)])
def test_muon_makes_singular_values_alike(shape):
    torch.manual_seed(0)
    s = torch.linalg.svdvals(recipes.orthogonal(torch.randn(shape)))
    assert s.max() < 1.3 and s.median() > 0.6

def test_muon_moves_the_matrices_and_adam_the_rest():
    torch.manual_seed(0)
    net = speedrun.UNet(widths=(16,32), n_blocks=1, patch=2, attn=0, n_classes=2)
    opt = recipes.MuonAdam(net, 1e-3, 0.01)
    n_all = sum(len(g['params']) for g in opt.param_groups)
    assert n_all == len(list(net.parameters())) and all(p.ndim > 1 for p in opt.param_groups[0]['params'])
    was = {k: v.clone() for k,v in net.state_dict().items()}
    for _ in range(3):
        nn.functional.mse_loss(net(torch.randn(4,1,8,8), 3, torch.tensor([0,1,0,1])), torch.randn(4,1,8,8)).backward()
        opt.step()
        opt.zero_grad()
    assert all(not torch.equal(v, was[k]) for k,v in net.state_dict().items())

def test_a_recipe_that_is_not_there():
    with pytest.raises(SystemExit, match="no recipe 'fast': there are former, small_batch"): speedrun.main('fast')

def test_a_network_that_is_not_there():
    with pytest.raises(SystemExit, match="no network 'shoes': there are fashion, fashion_ddpm"): fashion.recipe('shoes')

def test_a_killed_training_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, 'network', lambda r: fashion.small_unet(widths=(16,32), attn=0, n_classes=10))
    whole,killed = tmp_path/'whole', tmp_path/'killed'
    fashion.train('fashion', whole, 6, anneal=3, every=3, save_every=2)
    class Kill(fashion.StopCB):
        def after_batch(self, learn):
            if learn.ema.n == 5: raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(fashion, 'StopCB', Kill)
        fashion.train('fashion', killed, 6, anneal=3, every=3, save_every=2)           # the last checkpoint is of step 4
    fashion.train('fashion', killed, 6, anneal=3, every=3, save_every=2)
    for nm in ('ema0.05-3', 'ema0.05-6', 'ema0.1-6'):
        a,b = (fashion.load(o/nm)[0] for o in (whole, killed))
        assert all(torch.equal(a[k], b[k]) for k in a)
