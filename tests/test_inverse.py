"Restoring: adjoints, posteriors known in closed form, azula's DPS and MMPS, and the same images whatever the batch"
import math, sys
from pathlib import Path
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from miniai.denoiser import WrappedDenoiser
from miniai.diffusion import Level, levels
from miniai.editing import slerp, strength_sigma
from miniai.inverse import (Blur, Downsample, Grey, Linear, Mask, cg, check_adjoint, measure, measured, mmps, pigdm,
                            step_dps, step_repaint)
from miniai.karras import sigmas_karras, ve
from miniai.solvers import sample
from oracles import Exact, Gaussian, TwoValues, Wavy, f64, gen, noise, walk

sys.path.insert(0, str(Path(__file__).parent.parent/'experiments'))

class Normal(Exact):
    "Vectors N(mean, cov); what is known of them after a measurement A x0 + noise, in closed form"
    def __init__(self, mean, cov): self.mean,self.cov = mean, cov
    def x0(self, x, α, σ): return self.after(x, α, σ)[0]
    def after(self, x, α, σ, A=None, y=None, s=1.):
        "Mean N×d and covariance d×d of p(x0 | x_t, y)"
        I = torch.eye(len(self.mean), **f64)
        prec = torch.linalg.inv(self.cov) + α**2/σ**2*I
        info = torch.linalg.inv(self.cov)@self.mean + α/σ**2*x
        if A is not None: prec,info = prec + A.T@A/s**2, info + y@A/s**2
        V = torch.linalg.inv(prec)
        return info@V, V

def some_normal(d=5, seed=3):
    M = noise(d, d, seed=seed)
    return Normal(noise(d, seed=seed+1), M@M.T + .3*torch.eye(d, **f64))

def matrix(k=3, d=5): return noise(k, d, seed=9)

def as_op(A): return Linear(lambda x: x@A.T.to(x), (A.shape[1],))

# --- operators

OPS = {'mask': (Mask(torch.arange(8*8).reshape(8,8) % 3 > 0), (2,3,8,8)), 'mask each': (Mask(torch.arange(2*8*8).reshape(2,1,8,8) % 3 > 0), (2,3,8,8)),
       'down': (Downsample(4), (2,3,8,8)), 'blur': (Blur(1.3), (2,3,9,7)), 'grey': (Grey(), (2,3,8,8)), 'linear': (Linear(lambda x: x.cumsum(-1)[...,::2], (3,8,8)), (2,3,8,8))}

@pytest.mark.parametrize('name', OPS)
def test_adjoint_is_the_transpose(name):
    "As a matrix, column by column: T is the transpose of A"
    op,size = OPS[name]; n = math.prod(size)
    E = torch.eye(n, **f64)
    A = torch.stack([op(e.reshape(size)).flatten() for e in E], 1)
    out = op(torch.zeros(size, **f64)).shape
    At = torch.stack([op.T(e.reshape(out)).flatten() for e in torch.eye(math.prod(out), **f64)], 1)
    torch.testing.assert_close(At, A.T, rtol=1e-12, atol=1e-12)

def test_operators_are_what_they_say():
    x = noise(2,3,8,8)
    assert torch.equal(Downsample(4)(x)[0,1,1,0], x[0,1,4:,:4].mean()) or torch.allclose(Downsample(4)(x)[0,1,1,0], x[0,1,4:,:4].mean())
    assert Blur(.8)(torch.ones(1,1,15,15, **f64))[0,0,7,7].item() == pytest.approx(1)
    from scipy.ndimage import gaussian_filter
    want = torch.as_tensor(gaussian_filter(x[0,0].numpy(), 1., mode='constant', truncate=3.))
    torch.testing.assert_close(Blur(1.)(x)[0,0], want)
    assert Grey()(torch.ones(1,3,2,2))[0,0,0,0].item() == pytest.approx(1)
    seen = Mask(torch.tensor([[True,False]]))
    assert torch.equal(seen(torch.tensor([[[[3.,4.]]]])), torch.tensor([[[[3.,0.]]]]))

def test_an_adjoint_that_does_not_match_is_refused():
    class Wrong(Downsample):
        def T(self, y): return super().T(y)*self.k**2                          # upsampling is not the adjoint of the mean
    with pytest.raises(ValueError, match=r'⟨Au, v⟩ = .* `T` must be the adjoint'): check_adjoint(Wrong(4), torch.zeros(1,1,2,2))
    with pytest.raises(ValueError, match='linear'): measured(Gaussian(), Linear(lambda x: x.abs()+1, (1,8,8)), torch.zeros(1,1,8,8))
    check_adjoint(Linear(lambda x: F.pixel_unshuffle(x, 2), (1,8,8), lambda y: F.pixel_shuffle(y, 2)), torch.zeros(1,4,4,4))

def test_a_measurement_has_the_noise_that_was_said():
    x = torch.zeros(64,1,8,8)
    assert measure(Downsample(2), x, .3).std().item() == pytest.approx(.3, rel=.1)
    assert torch.equal(measure(Downsample(2), x, .3)[:3], measure(Downsample(2), x[:3], .3))
    hole = torch.ones(8,8); hole[2:5] = 0
    y = measure(Mask(hole), x, .3)
    assert (y[...,2:5,:] == 0).all() and (y[...,:2,:] != 0).all()

# --- conjugate gradients

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 99))
def test_cg_solves_in_as_many_iterations_as_there_are_unknowns(d, seed):
    M = noise(3, d, d, seed=seed+1); A = M@M.mT + .5*torch.eye(d, **f64); b = noise(3, d, seed=seed+2)
    v = cg(lambda v: (A@v[...,None])[...,0], b, d+2, .5)
    torch.testing.assert_close(v, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-8)

def test_cg_of_nothing_is_nothing():
    assert torch.equal(cg(lambda v: 2*v, torch.zeros(2,3), 5), torch.zeros(2,3))

# --- posteriors known in closed form

@pytest.mark.parametrize('α,σ', [(1,5.), (1,.3), (.8,.6), (.1,.99)])
def test_mmps_is_exact_on_gaussians(α, σ):
    "With as many iterations as there are measurements, x̂0 is the mean of p(x0 | x_t, y)"
    p,A = some_normal(), matrix(); x,y = noise(7, 5), noise(7, 3, seed=4)
    x0,ε = mmps(p, as_op(A), y, .2, iterations=5)(x, Level(0, α, σ))
    torch.testing.assert_close(x0, p.after(x, α, σ, A, y, .2)[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(α*x0 + σ*ε, x)

@pytest.mark.parametrize('α,σ', [(1,5.), (1,.3), (.8,.6)])
@pytest.mark.parametrize('std', [1., .4])
def test_pigdm_is_exact_for_independent_pixels(α, σ, std):
    "And for those alone: it is what its covariance says"
    p,A = Normal(noise(5), std**2*torch.eye(5, **f64)), matrix(); x,y = noise(7, 5, seed=6), noise(7, 3, seed=4)
    x0 = pigdm(p, as_op(A), y, .2, std=std)(x, Level(0, α, σ))[0]
    torch.testing.assert_close(x0, p.after(x, α, σ, A, y, .2)[0], rtol=1e-6, atol=1e-7)
    q = some_normal()
    assert not torch.allclose(pigdm(q, as_op(A), y, .2, std=std)(x, Level(0, α, σ))[0], q.after(x, α, σ, A, y, .2)[0], atol=1e-2)

def test_mmps_carries_noise_to_the_posterior():
    "The ODE is linear: its end, as a function of its start, has the posterior's mean and covariance"
    p,A,y,s = some_normal(3), matrix(2, 3), noise(1, 2, seed=4), .3
    z = torch.cat([torch.zeros(1, 3, **f64), torch.eye(3, **f64)])
    x = sample(mmps(p, as_op(A), y, s, iterations=4), (4,3), 'heun', 60, x=z, sigma_min=.005, sigma_max=200., device='cpu', dtype=torch.float64)
    M = (x[1:]-x[0]).T
    m,V = p.after(torch.zeros(1, 3, **f64), 1., 1e6, A, y, s)
    torch.testing.assert_close(x[:1], m, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(M@M.T, V, rtol=3e-2, atol=5e-3)

def test_dps_takes_no_covariance():
    "Its gradient is that of the norm: on a Gaussian, ζ·√(1+σ²)·k·Kᵀ Aᵀ r/‖r‖, K the denoiser's matrix"
    p,A = some_normal(), matrix(); x,y = noise(4, 5), noise(4, 3, seed=4); l,m = Level(1, 1., 2.), Level(0, 1., .5)
    den = measured(p, as_op(A), y)
    x0,ε = p(x, l)
    got = walk(den, x, [l, m], step_dps, zeta=.7, eta=0.).x
    K = p.cov@torch.linalg.inv(p.cov + 4*torch.eye(5, **f64)); r = y - x0@A.T
    want = x0 + .5*ε + .7*(5*1.25)**.5*(r/r.norm(dim=1, keepdim=True))@A@K
    torch.testing.assert_close(got, want)

def test_repaint_keeps_what_is_seen_and_draws_the_rest():
    "Independent pixels: what is seen comes back to the digit, the rest has the prior's mean and standard deviation"
    seen = torch.tensor([1.,1.,0.,0.]); y = torch.tensor([[.9,-.9,7.,7.]])
    g,ls = gen(), levels(ve, sigmas_karras(150, .01, 20.)); randn = lambda: torch.randn(4000, 4, generator=g, **f64)
    x = walk(measured(Gaussian(.3, .5), Mask(seen), y), 20*randn(), ls, step_repaint, randn, times=2).x
    torch.testing.assert_close(x[:,:2], y[:,:2].double().expand(4000, 2))
    assert x[:,2:].mean().item() == pytest.approx(.3, abs=.03) and x[:,2:].std().item() == pytest.approx(.5, abs=.04)

# --- azula's

def azula_experiment():
    pytest.importorskip('azula', reason='azula is not installed: its DPS and MMPS are NOT compared with ours (pip install azula)')
    import inverse
    return inverse

@pytest.mark.parametrize('name', ['DPS', 'MMPS'])
def test_same_images_as_azula(name):
    e,op = azula_experiment(), Downsample(2)
    ls = levels(e.sine, torch.linspace(.99, .02, 12, dtype=torch.float64)); den = TwoValues()
    for i in range(2):                                     # one at a time: azula's DPS takes one norm of the whole batch
        x,y = noise(1,1,4,4, seed=i+1), noise(1,1,2,2, seed=i+5)
        a,b = (f(name, den, op, y, .05, ls, x, 3) for f in (e.ours, e.theirs))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)

# --- in the loop

WRAPS = {'RePaint': (measured, step_repaint, dict(times=2)), 'DPS': (measured, step_dps, {}), 'ΠGDM': (pigdm, 'ancestral', {}), 'MMPS': (mmps, 'dpmpp_2m', {})}

@pytest.mark.parametrize('name', WRAPS)
def test_same_images_whatever_the_batch(name):
    "Each image has a mask and a measurement of its own; another wrapper round it does not matter"
    wrap,step,kw = WRAPS[name]
    masks = (torch.rand(5,1,4,4, generator=torch.Generator().manual_seed(0)) > .4)
    den = WrappedDenoiser(wrap(Wavy(), Mask(masks), noise(5,1,4,4), .1))
    a,b = (sample(den, (5,1,4,4), step, 4, bs=bs, device='cpu', dtype=torch.float64, **kw) for bs in (5, 2))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert not a.requires_grad

def test_one_measurement_for_all():
    y = noise(1,1,2,2)
    a,b = (sample(mmps(Wavy(), Downsample(2), o), (3,1,4,4), 'ddim', 4, device='cpu', dtype=torch.float64, bs=2) for o in (y, y.expand(3,-1,-1,-1)))
    torch.testing.assert_close(a, b)

def test_wrong_input_is_one_sentence():
    y = torch.zeros(2,1,8,8)
    for f,says in [(lambda: Mask(torch.ones(9,9))(y), r'mask is 9×9, but the images are 2×1×8×8'),
                   (lambda: measured(Wavy(), Mask(torch.ones(9,9)), y), 'bring them to one size'),
                   (lambda: Downsample(3)(y), 'multiples of 3'),
                   (lambda: measured(Wavy(), Downsample(2), y, 0), 'must be above 0'),
                   (lambda: sample(mmps(Wavy(), Downsample(2), torch.zeros(2,1,2,2)), (3,1,4,4), device='cpu'), '3 images but 2 measurements'),
                   (lambda: sample(Wavy(), (2,1,4,4), step_dps, device='cpu'), r'step_dps needs a measurement'),
                   (lambda: sample(measured(Wavy(), Downsample(2), torch.zeros(2,1,2,2)), (2,1,4,4), step_repaint, device='cpu'), 'RePaint fills masks'),
                   (lambda: strength_sigma(0), r'\(0,1\]'), (lambda: strength_sigma(1.2), r'\(0,1\]')]:
        with pytest.raises(ValueError, match=says) as e: f()
        assert '\n' not in str(e.value)

# --- editing

def test_strength_is_a_share_of_the_grid():
    "Half the strength starts half-way down the grid of `sigmas_karras`; 1 at its top"
    σ = sigmas_karras(21)
    assert strength_sigma(1.) == pytest.approx(80) and strength_sigma(.5) == pytest.approx(σ[10].item()) and strength_sigma(.05) == pytest.approx(σ[19].item())

def test_slerp_keeps_the_length():
    a,b = noise(2,1,32,32), noise(2,1,32,32, seed=2)
    b = b*(a.flatten(1).norm(dim=1)/b.flatten(1).norm(dim=1)).reshape(-1,1,1,1)
    for t in (.25, .5): torch.testing.assert_close(slerp(a, b, t).flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    torch.testing.assert_close(slerp(a, b, 0.), a)
    torch.testing.assert_close(slerp(a, b, 1.), b)
    mid = slerp(a, b, .5)
    torch.testing.assert_close((mid*a).sum((1,2,3)), (mid*b).sum((1,2,3)))
