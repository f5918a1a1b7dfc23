"Power function averages: their formulas, their callback, and averages rebuilt from snapshots"
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from miniai.core import load
from miniai.phema import PowerEMACB, gamma, mix, profile, rebuild, rel_std

# --- formulas

def test_exponents_of_the_paper():
    "Karras et al. 2024, Appendix C.2: a width of 0.05 is γ = 16.97, of 0.10 γ = 6.94"
    assert gamma(0.05) == pytest.approx(16.97, abs=0.01) and gamma(0.1) == pytest.approx(6.94, abs=0.01)

@pytest.mark.parametrize('width', [0.01, 0.05, 0.1, 0.2, 0.288])
def test_width_is_the_standard_deviation_of_the_density(width):
    "Of (γ+1)·t^γ on 0…1, by quadrature"
    g = gamma(width)
    m1,m2 = (quad(lambda t: (g+1)*t**g*t**k, 0, 1, points=[0.9])[0] for k in (1, 2))
    assert (m2-m1**2)**0.5 == pytest.approx(width, rel=1e-4) and rel_std(g) == pytest.approx(width, rel=1e-6)

@pytest.mark.parametrize('width', [0., -0.1, 0.3])
def test_widths_that_no_average_has(width):
    with pytest.raises(ValueError, match=f'above 0 and at most 0.289 .* got {width}'): gamma(width)

def test_shares_add_up_and_end():
    p = profile(0.1, 60, 100)
    assert p.sum() == pytest.approx(1) and (p[60:] == 0).all() and (np.diff(p[:60]) > 0).all()

# --- the callback

class Walk:
    "A learner whose weights walk at random, and all that it ever was"
    def __init__(self, cbs, seed=0):
        self.model,self.cbs,self.gen,self.all = nn.Linear(3, 2), cbs, torch.Generator().manual_seed(seed), []
        for cb in cbs: cb.before_fit(self)
    def go(self, n):
        for _ in range(n):
            for p in self.model.parameters(): p.data += 0.1*torch.randn(p.shape, generator=self.gen)
            self.all.append(self.model.weight.detach().clone().double())
            for cb in self.cbs: cb.after_step(self)
        return self

def cb(out, widths=(0.05, 0.1), every=10**9, **kw): return PowerEMACB(out, widths, every, dtype=torch.float32, **kw)

def test_the_average_has_its_profile(tmp_path):
    "Equal to the sum over all steps' weights with the shares of the profile"
    c = cb(tmp_path)
    w = Walk([c]).go(200)
    for avg,width in zip(c.avgs, c.widths):
        want = sum(s*o for s,o in zip(profile(width, 200), w.all))
        assert torch.allclose(avg['weight'].double(), want, atol=1e-4)

def test_goes_on_from_its_state(tmp_path):
    whole,first,second = (cb(tmp_path) for _ in range(3))
    w = Walk([whole, first]).go(30)
    second.load_state_dict(first.state_dict())
    w.cbs = [whole, second]
    w.go(20)
    assert second.n == 50 and all(torch.equal(a[k], b[k]) for a,b in zip(whole.avgs, second.avgs) for k in a)

def test_whole_numbers_are_taken_over(tmp_path):
    c = cb(tmp_path)
    learn = Walk([])
    learn.model = nn.BatchNorm1d(2)
    c.before_fit(learn)
    learn.model(torch.randn(4, 2))
    c.after_step(learn)
    assert c.avgs[0]['num_batches_tracked'] == 1

def test_snapshots_say_what_they_are(tmp_path):
    Walk([cb(tmp_path, every=5, card=lambda learn: dict(more=7))]).go(12)
    assert sorted(p.name for p in tmp_path.glob('*.json')) == [f'ema{w}-{s}.json' for w in ('0.05', '0.1') for s in (10, 5)]
    assert load(tmp_path/'ema0.1-10')[1] == dict(step=10, ema=0.1, more=7)

# --- rebuilt

def test_rebuilt_is_what_was_kept(tmp_path):
    "Relative to how far the weights went; a width beyond those kept is less exact"
    wanted = {0.06: 1e-3, 0.075: 1e-3, 0.09: 1e-3, 0.15: 1e-2}
    direct = cb(tmp_path/'direct', widths=list(wanted))
    Walk([cb(tmp_path, every=25), direct]).go(1000)
    for avg,(width,tol) in zip(direct.avgs, wanted.items()):
        got,far = rebuild(tmp_path, width), max(v.abs().max().item() for v in avg.values())
        for k,v in avg.items(): assert (got[k]-v).abs().max().item() <= tol*far

def test_a_snapshot_is_itself(tmp_path):
    c = cb(tmp_path, every=25)
    Walk([c]).go(100)
    assert torch.allclose(rebuild(tmp_path, 0.1)['weight'], c.avgs[1]['weight'], atol=1e-6)
    assert torch.allclose(rebuild(tmp_path, 0.05, 75)['weight'], load(tmp_path/'ema0.05-75')[0]['weight'], atol=1e-6)

def test_mix_is_the_papers_algorithm():
    "Algorithm 3, whose inner products are integrals, here by quadrature; ours are sums over steps"
    kept = [(s, w) for s in (2500, 5000, 7500, 10000) for w in (0.05, 0.1)]
    p = lambda s, w: lambda t: (gamma(w)+1)*t**gamma(w)/s**(gamma(w)+1)
    dot = lambda a, b: quad(lambda t: p(*a)(t)*p(*b)(t), 0, min(a[0], b[0]), epsabs=0, limit=200)[0]
    A = np.array([[dot(a, b) for b in kept] for a in kept])
    x = np.linalg.solve(A, [dot(a, (10000, 0.07)) for a in kept])
    assert mix(kept, 0.07, 10000) == pytest.approx(x/x.sum(), abs=0.01)

def test_nothing_to_rebuild_from(tmp_path):
    with pytest.raises(ValueError, match='holds no snapshots of `PowerEMACB`'): rebuild(tmp_path, 0.1)
    Walk([cb(tmp_path, every=5)]).go(10)
    with pytest.raises(ValueError, match='are of steps 5 to 10; got step 20'): rebuild(tmp_path, 0.1, 20)
