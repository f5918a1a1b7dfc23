"Bits per dimension: closed forms, adaptive solvers of SciPy and k-diffusion, the estimator's variance, entropy, and images that make no sense"
import importlib, importlib.metadata, math, sys, types
import numpy as np
import pytest
import torch
from miniai.denoiser import WrappedDenoiser
from miniai.diffusion import Level
from miniai.images import to_unit
from miniai.karras import edm
from miniai.likelihood import (LEVEL, bits_per_dim, denoising_errors, dequantise, log_likelihood, to_bits, trace, variational_bound)
from miniai.solvers import flow
from oracles import Bells, beside, f64, Gaussian, Network, noise, order, TwoValues, Wavy

CPU = dict(device='cpu')
NORMAL = torch.distributions.Normal

class Linear:
    "The exact denoiser of N(0, Σ), neighbours alike"
    def __init__(self, d=6, rho=.7):
        i = torch.arange(d, **f64); self.cov = .25*rho**(i[:,None]-i).abs(); self.lam,self.U = torch.linalg.eigh(self.cov)
    def f(self, g): return self.U @ torch.diag(g(self.lam)) @ self.U.T
    def __call__(self, x, l, y=None):
        σ = float(torch.as_tensor(l.sigma)); x0 = (x.flatten(1) @ self.f(lambda o: o/(o+σ**2))).view_as(x)
        return x0, (x-x0)/σ
    def carried(self, x, lo, hi):
        "log p(x) of the ODE from N(0, hi²) down to lo: closed form"
        M = self.f(lambda o: ((o+hi**2)/(o+lo**2)).log()/2); z = x.flatten(1) @ torch.linalg.matrix_exp(M)
        return NORMAL(0., hi).log_prob(z).sum(1) + M.trace()

def close(a, b, tol): torch.testing.assert_close(a, b, rtol=0, atol=tol)

# --- the ODE

def test_second_order_on_a_gaussian():
    den,x,ns = Linear(), .5*noise(5,1,2,3), (40, 80, 160)
    errs = [(log_likelihood(den, x, n, None, sigma_min=.05, **CPU)-den.carried(x, .05, 80.)).abs().max().item() for n in ns]
    assert errs[-1] < .01 and 1.9 < order(errs, ns) < 2.2, errs

def test_density_of_a_gaussian():
    "From σ_max = 2000 nothing of the prior's mismatch is left"
    x = .3+.5*noise(5,1,2,2); true = NORMAL(.3, (.25+.02**2)**.5).log_prob(x).flatten(1).sum(1)
    close(log_likelihood(Gaussian(), x, 500, None, sigma_min=.02, sigma_max=2000., **CPU), true, 4e-3)

@pytest.mark.parametrize('n', [None, 1])
def test_density_of_a_mixture(n):
    "Pixels on their own: the Jacobian is diagonal, and one probe is exact"
    x = torch.linspace(-1.2, 1.2, 12, **f64).view(4,1,1,3); v = (.3**2+.05**2)**.5
    true = (.5*(NORMAL(-.6, v).log_prob(x).exp() + NORMAL(.6, v).log_prob(x).exp())).log().flatten(1).sum(1)
    close(log_likelihood(TwoValues(), x, 400, n, sigma_min=.05, sigma_max=2000., **CPU), true, 3e-3)

class Plane(Bells):
    def x0(self, x, α, σ): return super().x0(x.flatten(1), α, σ).view_as(x)

def test_density_of_bells_and_an_adaptive_solver():
    "Three bells in the plane: the closed form, and SciPy's integrator of order 8 on the same slopes"
    from scipy.integrate import solve_ivp
    den,x,lo,hi = Plane(), noise(6,1,1,2)*.7, .05, 500.
    ours = log_likelihood(den, x, 400, None, sigma_min=lo, sigma_max=hi, **CPU)
    close(ours, den.log_p(x.flatten(1), 1., lo).logsumexp(1), 2e-3)
    def slope(u, s):
        s = torch.tensor(s).view(6, 3); p = s[:,:2].reshape(6,1,1,2).clone().requires_grad_(); σ = math.exp(u)
        x0 = den(p, Level(σ, 1., σ))[0]
        tr = sum(torch.autograd.grad(x0[...,i].sum(), p, retain_graph=True)[0][...,i].flatten() for i in (0, 1))
        return torch.cat([(p-x0).detach().flatten(1), (2-tr)[:,None]], 1).ravel().numpy()
    start = torch.cat([x.flatten(1), torch.zeros(6, 1, **f64)], 1).ravel().numpy()
    end = torch.tensor(solve_ivp(slope, (math.log(lo), math.log(hi)), start, method='DOP853', rtol=1e-9, atol=1e-9).y[:,-1]).view(6, 3)
    close(ours, NORMAL(0., hi).log_prob(end[:,:2]).sum(1) + end[:,2], 2e-3)

def test_the_variance_of_one_probe():
    "v·Mv of random signs: mean tr M, variance twice the sum of squares off the diagonal"
    den,x,n = Linear(), .5*noise(1,1,2,3), 3000
    kw = dict(steps=60, sigma_min=.05, **CPU)
    one = log_likelihood(den, x.expand(n, -1, -1, -1), probes=1, bs=n, **kw); exact = log_likelihood(den, x, probes=None, **kw)
    M = den.f(lambda o: ((o+80.**2)/(o+.05**2)).log()/2); var = 2*(M-torch.diag(M.diagonal())).pow(2).sum()
    assert abs(one.mean()-exact) < 4*(var/n)**.5 and abs(one.var()/var-1) < .15

@pytest.mark.parametrize('form', [edm(.5), flow()], ids=['edm', 'flow'])
def test_any_form(form):
    "A network of any form is the same denoiser, and so the same density"
    x = .5*noise(3,1,2,2); kw = dict(steps=60, sigma_min=.05, sigma_max=20., **CPU)
    net = Network(TwoValues(), form); net.form = form
    close(log_likelihood(net, x, **kw), log_likelihood(TwoValues(), x, **kw), 1e-4)

def test_batches_do_not_matter():
    x = noise(7,1,2,3); kw = dict(steps=5, **CPU)
    a = log_likelihood(Linear(), x, bs=7, **kw); b = log_likelihood(Linear(), x, bs=3, **kw)
    close(a, b, 1e-9); assert not torch.allclose(a, log_likelihood(Linear(), x, seed=1, **kw))

def test_labels_and_held_things_reach_the_denoiser():
    class Seen(WrappedDenoiser):
        def __init__(self, den, held): super().__init__(den); self.held = held; self.seen = seen
        def for_images(self, part): new = super().for_images(part); new.held = self.held[part]; return new
        def __call__(self, x, level, y=None): self.seen.append((len(self.held), y.tolist())); return self.den(x, level)
    seen = []; log_likelihood(Seen(Gaussian(), torch.arange(3)), noise(3,1,2,2), 1, y=torch.tensor([5,6,7]), bs=2, **CPU)
    assert seen == [(2, [5,6])]*2 + [(1, [7])]*2

# --- k-diffusion

@pytest.fixture(scope='module')
def k():
    "`k_diffusion.sampling` alone, with the true torchdiffeq (see tests/test_karras.py)"
    pytest.importorskip('torchdiffeq')
    pkg = types.ModuleType('k_diffusion'); pkg.__path__ = [str(importlib.metadata.distribution('k-diffusion').locate_file('k_diffusion'))]
    with pytest.MonkeyPatch.context() as mp:
        for nm,m in dict(torchsde=types.ModuleType('torchsde'), k_diffusion=pkg).items(): mp.setitem(sys.modules, nm, m)
        mp.delitem(sys.modules, 'k_diffusion.sampling', raising=False)
        return importlib.import_module('k_diffusion.sampling')

def theirs(k, den, x, lo, hi, probe, **kw):
    "Their log-likelihood, with our probe in place of theirs"
    f = lambda x, σ: den(x, Level(σ[0], torch.ones_like(σ[0]), σ[0]))[0]
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(torch, 'randint_like', lambda x, n: ((probe+1)/2).to(x))
        return k.log_likelihood(f, x, lo, hi, **kw)[0].double()

def signs(x, seed=0):
    from miniai.denoiser import image_noise
    return torch.where(image_noise(seed, 0, x.shape, 'cpu', x.dtype)() > 0, 1., -1.)

class Mixed(Wavy):
    "A smooth denoiser whose pixels depend on each other"
    def x0(self, x, α, σ): return super().x0(x + .3*x.roll(1, -1), α, σ)

@pytest.mark.parametrize('den', [TwoValues(), Plane(), Mixed()], ids=lambda d: type(d).__name__)
def test_log_likelihood_is_k_diffusions(k, den):
    x = .6*noise(4,1,1,2); lo,hi = .05, 20.
    ours = log_likelihood(den, x, 500, sigma_min=lo, sigma_max=hi, **CPU)
    close(ours, theirs(k, den, x, lo, hi, signs(x), atol=1e-8, rtol=1e-8), 1e-3)

def test_a_network_is_k_diffusions_too(k):
    "A small random network in float64"
    from miniai.denoiser import Denoiser
    from miniai.unet import UNet
    torch.manual_seed(0); net = UNet(1, (16,), 1, 0, t_scale=250.).double().eval()
    for p in net.parameters(): torch.nn.init.normal_(p, std=.05) if p.ndim > 1 else None
    den = Denoiser(net, edm(.5)); x = .5*noise(2,1,4,4)
    ours = to_bits(log_likelihood(den, x, 150, sigma_min=.1, sigma_max=5., **CPU), 16)
    close(ours, to_bits(theirs(k, den, x, .1, 5., signs(x), atol=1e-5, rtol=1e-5), 16), 1e-3)

# --- dequantisation and the bound

LEVELS = to_unit(torch.arange(256, dtype=torch.uint8).view(1,1,16,16))

def test_dequantisation_is_uniform_and_keeps_levels():
    from scipy.stats import kstest
    x = LEVELS.expand(40, -1, -1, -1); u = (dequantise(x, 3)-x)/LEVEL
    assert kstest(u.flatten().numpy(), 'uniform', args=(-.5, 1)).pvalue > .01 and u.abs().max() <= .5001
    assert torch.equal(dequantise(x[:2], 3), dequantise(x, 3)[:2]) and len({o.sum().item() for o in dequantise(x)}) == 40
    close(dequantise(torch.arange(256, dtype=torch.uint8).view(1,1,16,16)), dequantise(LEVELS), 0)

def test_bits_of_a_wide_density_are_those_of_the_levels():
    "Levels drawn from a discretised normal: the bits are the cross-entropy of its probabilities, by SciPy"
    from scipy.stats import norm
    s = .25; k = torch.arange(60, 196); x = to_unit(k.to(torch.uint8).view(-1,1,1,1)).double()
    edges = x.flatten().numpy(); p = norm.cdf((edges+LEVEL/2)/s)-norm.cdf((edges-LEVEL/2)/s)
    ours = bits_per_dim(Gaussian(0., s), x, steps=400, sigma_min=1e-3, sigma_max=2000., **CPU)
    close(ours, torch.tensor(-np.log2(p)), .06); assert abs(ours.mean() + np.log2(p).mean()) < .005

class Levels:
    "The exact denoiser of a pixel that takes levels `at` with probabilities `p`"
    def __init__(self, at, p): self.at,self.p = torch.tensor(at, **f64), torch.tensor(p, **f64)
    def __call__(self, x, l, y=None):
        σ = beside(l.sigma, x[...,None]); x0 = ((self.p.log() - (x[...,None]-self.at)**2/(2*σ**2)).softmax(-1)*self.at).sum(-1)
        return x0, (x-x0)/beside(l.sigma, x)

@pytest.mark.parametrize('at,p', [((-1., 1.), (.5, .5)), ((-1., 1.), (.2, .8)), ((-1., -.2, 1.), (.2, .3, .5))])
def test_the_bound_reaches_the_entropy(at, p):
    "With the exact denoiser, and levels drawn just as often as they should be"
    x = torch.cat([torch.full((int(100*q),), a, **f64) for a,q in zip(at, p)]).view(-1,1,1,1).expand(-1, -1, 10, 10)
    b = variational_bound(Levels(at, p), x, 200, sigma_min=.001, **CPU); H = -sum(q*math.log2(q) for q in p)
    assert abs(b.bits.mean()-H) < .03 and b.reconstruction.mean() < .01 and b.prior.max() < 1e-3

def test_the_bound_is_above_the_entropy_for_a_wrong_denoiser():
    x = torch.tensor([-1.]*20+[1.]*80, **f64).view(-1,1,1,1).expand(-1, -1, 4, 4)
    for p in ((.5, .5), (.01, .99)):
        cross = -(.2*math.log2(p[0]) + .8*math.log2(p[1]))
        assert abs(variational_bound(Levels((-1., 1.), p), x, 300, sigma_min=.001, **CPU).bits.mean()-cross) < .05

def test_diffusion_part_of_a_gaussian():
    "∫ E‖ε-ε̂‖² dlogσ of pixels N(0, s²) is half the log of the ratio of signal to noise: log(1+s²/σ²)/2 a pixel"
    s,lo = .5, .01; x = s*noise(300,1,2,2)
    σ,e = denoising_errors(Gaussian(0., s), x, 60, sigma_min=lo, sigma_max=80., **CPU)
    assert σ.shape == e.shape == (300, 60) and lo < σ.min() and σ.max() < 80 and (σ.diff(dim=1) > 0).all()
    got = math.log(80/lo)*e.mean()/4; want = math.log((1+s**2/lo**2)/(1+s**2/80**2))/2
    assert abs(got/want-1) < .02

def test_levels_are_sent_at_the_right_price():
    "The reconstruction of a level in the middle: a sum over all 256, in float64"
    from miniai.likelihood import _send_levels
    x = to_unit(torch.tensor([0, 1, 100, 254, 255], dtype=torch.uint8).view(5,1,1,1)).double(); σ = .03
    ε = noise(5,1,1,1); z = x+σ*ε; at = torch.arange(256, **f64)*LEVEL-1
    want = -torch.log_softmax(-(z.flatten()[:,None]-at)**2/(2*σ**2), 1)[torch.arange(5), torch.tensor([0, 1, 100, 254, 255])]
    close(_send_levels(x, σ, lambda: ε), want, 1e-6)

# --- what makes no sense

@pytest.mark.parametrize('f', [bits_per_dim, variational_bound])
@pytest.mark.parametrize('x,says', [(LEVELS*2, 'outside ±1'), ((LEVELS+1)/2*.999, 'between the 256 levels'), (LEVELS+LEVEL/3, 'between the 256 levels|outside')])
def test_images_that_are_no_levels(f, x, says):
    with pytest.raises(ValueError, match=says) as e: f(Gaussian(), x, **CPU)
    assert 'to_u' in str(e.value) and '\n' not in str(e.value)

def test_levels_have_no_density():
    with pytest.raises(ValueError, match=r'dequantise\(x\)'): log_likelihood(Gaussian(), LEVELS, 1, **CPU)
    assert log_likelihood(Gaussian(), LEVELS, 1, raw=True, **CPU).isfinite().all()

def test_the_wrong_size():
    den = Gaussian(); den.size = (1,28,28)
    with pytest.raises(ValueError, match='1×28×28.*1×16×16'): bits_per_dim(den, LEVELS, **CPU)

@pytest.mark.parametrize('kw', [dict(sigma_min=0.), dict(sigma_min=90.), dict(steps=0)])
def test_levels_that_make_no_sense(kw):
    with pytest.raises(ValueError, match='0 < sigma_min < sigma_max'): log_likelihood(Gaussian(), noise(1,1,2,2), **kw, **CPU)

def test_no_derivative():
    def fixed(x, l, y=None): return Gaussian()(x.detach(), l)
    with pytest.raises(ValueError, match='no derivative'): log_likelihood(fixed, noise(1,1,2,2), 1, **CPU)
    x = noise(3,4).requires_grad_(); A = noise(4,4, seed=2)
    close(trace(x @ A, x, list(torch.eye(4, **f64)*2)), A.trace().expand(3), 1e-12)
