"A solver that is learned: it begins as 2M, gains on noise it has not seen, and is refused where it does not belong"
import json
from dataclasses import asdict
import pytest
import torch
from torch import nn
from miniai.core import load, save
from miniai.denoiser import Denoiser
from miniai.diffusion import levels
from miniai.karras import edm, sigmas_karras, step_dpmpp_2m, ve
from miniai.learned import LearnedSolver, _plain, _Shifts, _walk, check_learned, fingerprint, fit_solver, gap, keep_solver, weights_2m
from miniai.solvers import get_solver, sample
from oracles import Network, noise, TwoValues, walk, Wavy

SHAPE = 1,2,2
def draw(n, seed): return noise(n, *SHAPE, seed=seed).float()
def start(n): return _plain(_Shifts(sigmas_karras(n)[:-1]).solver(), '', {})

@pytest.mark.parametrize('n', [1, 2, 3, 5, 9])
def test_it_begins_as_2m(n):
    x = draw(4, 1)
    ours = sample(Wavy(), 4, start(n), steps=n, x=x, device='cpu'); want = sample(Wavy(), 4, 'dpmpp_2m', steps=n, x=x, device='cpu')
    torch.testing.assert_close(ours, want, rtol=0, atol=2e-5)

def test_weights_of_each_step_add_up_to_what_is_left_of_the_image():
    "If x̂0 does not change, the step is exact: b's sum is 1 - σ'/σ"
    σ = sigmas_karras(6); rows = weights_2m(σ[:-1])
    for row,l,m in zip(rows, σ, σ[1:]): assert sum(row).item() == pytest.approx(1-m.item()/l.item(), abs=1e-12)

@pytest.mark.filterwarnings('ignore:Converting a tensor')
def test_gradients_through_the_loop_are_those_of_finite_differences():
    net = _Shifts(sigmas_karras(3)[:-1]); z,want,den = draw(8, 1), draw(8, 2), TwoValues()
    gap(_walk(den, net.solver(), z, None), want).backward()
    for p,i in ((net.grid, 1), (net.told, 1), (net.rows[1], 0)):
        g,h,f = p.grad.view(-1)[i].item(), 1e-2, []
        for sign in (1, -1):
            with torch.no_grad():
                p.view(-1)[i] += sign*h
                f.append(gap(_walk(den, net.solver(), z, None), want).item())
                p.view(-1)[i] -= sign*h
        assert g == pytest.approx((f[0]-f[1])/(2*h), rel=.05, abs=2e-4) and abs(g) > 1e-4

def teacher(den, z, y=None): return walk(den, 80*z.double(), levels(ve, sigmas_karras(100)), step_dpmpp_2m).x.float()

@pytest.fixture(scope='module')
def fitted():
    z = draw(400, 5)
    return fit_solver(TwoValues(), z, teacher(TwoValues(), z), 4, n_iter=60, bs=100, lr=.05)

def test_it_gains_on_noise_it_has_not_seen(fitted):
    z = draw(400, 6); want = teacher(TwoValues(), z)
    far = {k: gap(sample(TwoValues(), 400, k if k != 'ours' else fitted, steps=4, x=z, device='cpu'), want).item() for k in ('ours', 'dpmpp_2m', 'unipc', 'ipndm')}
    assert far['ours'] < .6*min(v for k,v in far.items() if k != 'ours'), far

def test_it_is_never_worse_than_its_start_on_held_out_noise():
    "Not even with a learning rate that ruins it: then it is the start"
    z = draw(80, 5); s = fit_solver(TwoValues(), z, teacher(TwoValues(), z), 4, n_iter=20, bs=20, lr=5., every=5)
    assert s.fit['gap'] <= s.fit['gap_start'] and s.sigmas == sorted(s.sigmas, reverse=True)

def test_a_card_gives_it_back(fitted):
    again = LearnedSolver(**json.loads(json.dumps(asdict(fitted)))); x = draw(4, 1)
    assert torch.equal(*(sample(TwoValues(), 4, s, steps=4, x=x, device='cpu') for s in (again, fitted)))

class Net(nn.Module):
    def __init__(self, w): super().__init__(); self.w = nn.Parameter(torch.tensor(w))
    def forward(self, x, t): return self.w*x

def den_of(w, card=None): return Denoiser(Net(w), edm(), card=card)

def test_by_name_from_the_card():
    den = den_of(.1); s = asdict(start(3)) | dict(network=fingerprint(den)); den.card = dict(size=SHAPE, solvers={'3': s})
    x = draw(4, 1)
    torch.testing.assert_close(sample(den, 4, 'learned', steps=3, x=x, device='cpu'), sample(den, 4, 'dpmpp_2m', steps=3, x=x, device='cpu'), rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match='the card of this network holds solvers for 3 calls, none for 5: make one with `fit_solver`'): sample(den, 4, 'learned', steps=5, size=SHAPE)

def test_labels_go_through():
    class Labelled(TwoValues):
        def __call__(self, x, level, y=None):
            self.seen = y
            return super().__call__(x, level)
    den,z,y = Labelled(), draw(8, 1), torch.arange(8)
    fit_solver(den, z, teacher(TwoValues(), z), 2, y=y, n_iter=1, bs=4)
    assert den.seen.tolist() == [6, 7]

@pytest.mark.parametrize('call,says', [
    (lambda: sample(den_of(.1), 2, start(5), steps=4, size=SHAPE), 'this solver was fitted to 5 calls, not 4: say `steps=5`'),
    (lambda: check_learned(LearnedSolver([2., 1.], [2., 1.], [[.5], [1.]], fingerprint(den_of(.1))), den_of(.2), 2), r'fitted to the network \w{12}, and this one is \w{12}: use `fit_solver`'),
    (lambda: sample(den_of(.1), 2, 'learned', steps=5, size=SHAPE), 'the card of this network holds no learned solver, none for 5'),
    (lambda: sample(TwoValues(), 2, start(5), steps=5, x=draw(2, 1), start=1.), 'a learned solver has its own levels: leave out `levels` and `start`'),
    (lambda: sample(TwoValues(), 2, start(5), steps=5, x=draw(2, 1), levels=levels(ve, sigmas_karras(5))), 'a learned solver has its own levels'),
    (lambda: fit_solver(TwoValues(), draw(8, 1), draw(8, 1), 1), 'steps ≥ 2 and at least 4 images with their noise expected: got steps=1'),
    (lambda: fit_solver(TwoValues(), draw(8, 1), draw(7, 1), 5), '8 of noise, 7 images')], ids=range(7))
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()

def test_fingerprints_tell_weights_apart():
    assert fingerprint(den_of(.1)) == fingerprint(den_of(.1)) != fingerprint(den_of(.2)) and fingerprint(TwoValues()) == ''
    assert callable(get_solver(start(2), TwoValues(), 2))

def test_the_network_is_left_as_it_was():
    den = den_of(.1); z = draw(8, 1)
    fit_solver(den, z, z.clone(), 2, n_iter=2, bs=4)
    assert den.net.w.requires_grad and den.net.w.grad is None and den.net.w.item() == pytest.approx(.1)

def test_saved_with_the_weights(tmp_path):
    "Two numbers of calls side by side; the weights stay as they were"
    p = save(Net(.1), tmp_path/'w', dtype=torch.float16, size=SHAPE); was = load(p)[0]['w']
    for n in (2, 3): keep_solver(start(n), p)
    sd,card = load(p)
    assert torch.equal(sd['w'], was) and sd['w'].dtype == was.dtype and set(card['solvers']) == {'2', '3'} and card['size'] == list(SHAPE)
