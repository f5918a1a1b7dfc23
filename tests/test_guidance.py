"Guidance: its limits, what it draws from Gaussians, the calls it counts, and what it refuses"
import math
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from miniai.denoiser import Denoiser, WrappedDenoiser, clip_x0
from miniai.diffusion import Level
from miniai.guidance import autoguided, guided
from miniai.karras import edm, sigmas_karras
from miniai.solvers import sample
from miniai.unet import UNet

def awake(n_classes=3, seed=0, **kw):
    "A small U-Net in which nothing is zero, so that labels matter"
    torch.manual_seed(seed)
    net = UNet(widths=(16,32), n_blocks=1, patch=2, n_classes=n_classes, attn=0)
    for p in net.parameters(): torch.nn.init.normal_(p, std=0.1)
    return Denoiser(net.eval(), edm(), card=dict(size=(1,8,8)) | kw)

class Gauss:
    "Exact denoiser of N(m, s²) for a label, of N(M, S²) for none"
    def __init__(self, m=1., s=0.6, M=0., S=1.): self.m,self.s,self.M,self.S = m, s, M, S
    def of(self, x, σ, m, s): return (s**2*x + σ**2*m)/(s**2 + σ**2)
    def __call__(self, x, level, y=None):
        α,σ = level.alpha,level.sigma
        known = (y >= 0).view(-1,1,1,1)
        x0 = torch.where(known, self.of(x/α, σ/α, self.m, self.s), self.of(x/α, σ/α, self.M, self.S))
        return x0, (x-α*x0)/σ

X = torch.randn(6,1,8,8, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0,1,2,-1,1,0])
AT = [Level(9., 1., 9.), Level(0.3, 1., 0.3), Level(0.5, 0.8, 0.6)]

# --- limits

@pytest.mark.parametrize('level', AT)
def test_scale_one_is_the_denoiser_to_the_digit(level):
    den = awake()
    assert all(torch.equal(a, b) for a,b in zip(guided(den, 1.)(X, level, Y), den(X, level, Y)))
    assert all(torch.equal(a, b) for a,b in zip(autoguided(den, awake(seed=9), 1.)(X, level, Y), den(X, level, Y)))

@pytest.mark.parametrize('level', AT)
def test_is_ho_and_salimans_formula(level):
    "ε̃ = (1+w)·ε(z,c) - w·ε(z), their w being ours less one; what is said of x0 and ε adds up to x"
    den = awake()
    x0,ε = guided(den, 3.)(X, level, Y)
    assert torch.allclose(ε, 3*den(X, level, Y)[1] - 2*den(X, level)[1], atol=1e-4)
    assert torch.allclose(level.alpha*x0 + level.sigma*ε, X, atol=1e-4)

def test_scale_zero_is_the_network_without_labels():
    den = awake()
    assert torch.allclose(guided(den, 0.)(X, AT[0], Y)[0], den(X, AT[0])[0], atol=1e-5)

def test_an_image_without_a_label_is_not_guided():
    den = awake()
    assert torch.allclose(guided(den, 5.)(X, AT[1], Y)[0][3], den(X, AT[1])[0][3], atol=1e-5)

def test_the_same_network_twice_is_that_network():
    den = awake()
    assert torch.equal(sample(autoguided(den, den, 3.), 4, steps=3, y=1, device='cpu'), sample(den, 4, steps=3, y=1, device='cpu'))

def test_autoguidance_is_its_formula_with_and_without_labels():
    den,bad = awake(), awake(seed=9)
    for y in ((), (Y,)):
        want = bad(X, AT[1], *y)[0] + 2.5*(den(X, AT[1], *y)[0]-bad(X, AT[1], *y)[0])
        assert torch.allclose(autoguided(den, bad, 2.5)(X, AT[1], *y)[0], want, atol=1e-4)

def test_the_interval_is_open_below_and_closed_above():
    den = awake()
    g = guided(den, 3., (0.3, 9.))
    assert torch.equal(g(X, AT[1], Y)[0], den(X, AT[1], Y)[0]) and not torch.allclose(g(X, AT[0], Y)[0], den(X, AT[0], Y)[0])
    everywhere = guided(den, 3., (0, math.inf))
    assert torch.equal(everywhere(X, AT[1], Y)[0], guided(den, 3.)(X, AT[1], Y)[0])

def test_only_the_ratio_of_noise_to_signal_decides():
    g = guided(awake(), 3., (0.7, 0.8))
    assert g.n_calls(AT[2]) == 2 and g.n_calls(Level(0., 1., 0.6)) == 1 and g.n_calls(Level(1., 0., 1.)) == 1

# --- what it draws, exactly

def draw(den, n=20_000, steps=60, **kw):
    x = sample(den, n, 'heun', steps, y=0, size=(1,1,1), dtype=torch.float64, bs=n, device='cpu', **kw)
    return x.mean().item(), x.std().item()

@pytest.mark.parametrize('w', [1., 2., 4.])
def test_standard_deviation_of_a_guided_gaussian(w):
    "x ∝ (s²+σ²)^(w/2)·(S²+σ²)^((1-w)/2): what is drawn has standard deviation s^w·S^(1-w) in the limit"
    s,S,big = 0.6, 1.3, 80.
    ratio = (s/(s*s+big*big)**.5)**w*(S/(S*S+big*big)**.5)**(1-w)*big
    one = torch.ones(1,1,1,1, dtype=torch.float64)                  # linear: what becomes of 1 is the standard deviation
    got = sample(guided(Gauss(0, s, 0, S), w), 1, 'heun', 300, y=0, x=one, dtype=torch.float64, device='cpu')
    assert got.item() == pytest.approx(ratio, rel=0.005)
    assert ratio == pytest.approx(s**w*S**(1-w), rel=1e-3)

@pytest.mark.parametrize('w', [2., 3.])
def test_mean_of_a_guided_gaussian(w):
    "Of one standard deviation s: the mean is m + (w-1)(m-M), up to what is left at the first level"
    m,M = 0.5, -0.3
    got,std = draw(guided(Gauss(m, 0.5, M, 0.5), w), sigma_max=300.)
    assert got == pytest.approx(w*m + (1-w)*M, abs=0.02) and std == pytest.approx(0.5, rel=0.02)

def test_an_interval_narrows_only_there():
    "The exponents act between the levels of the interval alone"
    s,S,w,(lo,hi) = 0.6, 1.3, 3., (0.4, 3.)
    part = lambda v: math.log((v*v+hi*hi)/(v*v+lo*lo))/2           # of log x, from hi down to lo
    log = math.log(s) - (w-1)*(part(s)-part(S))
    one = torch.ones(1,1,1,1, dtype=torch.float64)
    got = sample(guided(Gauss(0, s, 0, S), w, (lo, hi)), 1, 'ddim', 1000, y=0, x=one, dtype=torch.float64, device='cpu')
    assert got.item() == pytest.approx(math.exp(log), rel=0.01)

def test_any_gaussians_against_scipy():
    "The whole way of single points, by another integrator"
    g,w = Gauss(0.7, 0.4, -0.2, 1.1), 2.5
    noise = torch.tensor([-1.2, 0.1, 0.8], dtype=torch.float64).view(3,1,1,1)
    slope = lambda σ, x: (x - w*g.of(x, σ, g.m, g.s) - (1-w)*g.of(x, σ, g.M, g.S))/σ
    want = [solve_ivp(slope, (20, 0.01), [20*o], rtol=1e-9, atol=1e-11).y[0,-1] for o in noise.flatten().tolist()]
    got = sample(guided(g, w), 3, 'heun', 300, y=0, x=noise, sigma_max=20., dtype=torch.float64, device='cpu')
    assert got.flatten().tolist() == pytest.approx(want, abs=3e-3)

def test_mean_with_different_widths_by_quadrature():
    "Variation of constants: the mean is Φ(0)∫ f/Φ over σ"
    g,w = Gauss(0.9, 0.5, -0.4, 1.2), 2.
    Φ = lambda σ: (g.s**2+σ**2)**(w/2)*(g.S**2+σ**2)**((1-w)/2)
    f = lambda σ: w*σ*g.m/(g.s**2+σ**2) + (1-w)*σ*g.M/(g.S**2+σ**2)
    want = Φ(0)*quad(lambda σ: f(σ)/Φ(σ), 0, 300, limit=500)[0]
    assert draw(guided(g, w), sigma_max=300.)[0] == pytest.approx(want, abs=0.015)

# --- in the loop

def test_the_same_images_whatever_the_batch_size():
    den,y = awake(), torch.tensor([0,1,2,0,-1,2,1])
    for g in (guided(den, 3.), autoguided(den, awake(seed=9), 2.), guided(den, 3., (0.1, 10.))):
        a = sample(g, 7, steps=4, y=y, device='cpu')
        for bs in (1, 3): assert torch.allclose(sample(g, 7, steps=4, y=y, bs=bs, device='cpu'), a, atol=1e-4)

def test_one_batch_holds_both_questions():
    seen = []
    class Spy(WrappedDenoiser):
        def __call__(self, x, level, y=None):
            seen.append((len(x), y.tolist()))
            return self.den(x, level, y)
    guided(Spy(awake()), 2.)(X[:2], AT[0], torch.tensor([2, 0]))
    assert seen == [(4, [2, 0, -1, -1])]

def nfe(den, solver='dpmpp_2m', steps=5, **kw):
    calls = []
    sample(den, 2, solver, steps, y=1, device='cpu', on_step=lambda i, now: calls.append(now.nfe), **kw)
    return calls[-1]

def test_calls_are_counted():
    den,bad = awake(), awake(seed=9)
    assert nfe(den) == 5 and nfe(guided(den, 2.)) == 10 and nfe(guided(den, 1.)) == 5 and nfe(autoguided(den, bad, 2.)) == 10
    assert nfe(guided(den, 2.), 'heun') == 18 and nfe(clip_x0(guided(den, 2.))) == 10
    assert nfe(autoguided(guided(den, 2.), bad, 2.)) == 15
    inside = sum(0.1 < s <= 5. for s in sigmas_karras(5)[:-1].tolist())
    assert 0 < inside < 5 and nfe(guided(den, 2., (0.1, 5.))) == 5+inside

def test_a_level_for_each_image():
    "The interval holds for each by itself"
    den,σ = awake(), torch.tensor([0.1, 1., 5.])
    g,level = guided(den, 3., (0.5, 2.)), Level(σ, torch.ones(3), σ)
    got,plain = g(X[:3], level, Y[:3])[0], den(X[:3], level, Y[:3])[0]
    assert torch.allclose(got[[0,2]], plain[[0,2]], atol=1e-5)
    assert torch.allclose(got[1], guided(den, 3.)(X[1:2], Level(1., 1., 1.), Y[1:2])[0][0], atol=1e-4)

def test_a_network_as_it_is():
    "A network trained by `NoiseCB` needs no wrapping of one's own"
    net = awake().net
    net.form = edm()
    assert guided(net, 2.)(X, AT[0], Y)[0].shape == X.shape and guided(net, 2.).n_classes == 3

class Mask(WrappedDenoiser):
    "Holds something for each image"
    def __init__(self, den, mask): super().__init__(den); self.mask = mask
    def __call__(self, x, level, y=None):
        assert len(self.mask) == len(x)
        return self.den(x, level, y)
    def for_images(self, images):
        new = super().for_images(images)
        new.mask = self.mask[images]
        return new

def test_what_is_held_for_each_image_is_cut():
    den,bad = awake(), Mask(awake(seed=9), torch.arange(5))
    assert sample(autoguided(den, bad, 2.), 5, steps=2, y=0, bs=2, device='cpu').shape == (5,1,8,8)
    assert sample(Mask(guided(den, 2.), torch.arange(5)), 5, steps=2, y=0, bs=2, device='cpu').shape == (5,1,8,8)

# --- what it refuses

@pytest.mark.parametrize('make,says', [
    (lambda: guided(awake(0), 2.), 'this network knows no labels: train one with `drop=0.1`'),
    (lambda: guided(awake(drop=0), 2.), r'never saw an image without one \(drop=0\)'),
    (lambda: guided(awake(), math.nan), 'the scale is a number, 1 for no guidance; got nan'),
    (lambda: guided(awake(), 2., (3., 1.)), 'an interval is two noise levels σ/α, 0 ≤ low < high; got 3.0 and 1.0'),
    (lambda: autoguided(awake(), awake(size=(1,16,16)), 2.), r'images of one size, not \(1, 8, 8\) and \(1, 16, 16\)')])
def test_refuses_to_be_made(make, says):
    with pytest.raises(ValueError, match=says): make()

@pytest.mark.parametrize('y,says', [
    (None, 'guidance needs labels: give `y`, one for each image, -1 for none'),
    ([0,1], r'one whole number for each of the 6 images, got torch.int64 of shape \(2,\)'),
    ([0.]*6, r'one whole number for each of the 6 images, got torch.float32'),
    ([0,1,2,3,0,0], 'labels must lie in 0…2, or be -1 for no label: got 0 to 3')])
def test_refuses_labels(y, says):
    with pytest.raises(ValueError, match=says): guided(awake(), 2.)(X, AT[0], y)
    with pytest.raises(ValueError): sample(guided(awake(), 2.), 6, steps=2, y=y, device='cpu')
