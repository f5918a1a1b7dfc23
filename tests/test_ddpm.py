"DDPM (Ho et al. 2020): the table of noise levels, noising, Algorithm 2 as printed, diffusers' scheduler, an exact Gaussian"
import math
import pytest
import torch
from miniai.diffusion import ddpm, noisify
from miniai.denoiser import sample_ddpm
from oracles import f64, Gaussian, gen, Knows, Network, noise

T = torch.arange(1000)
FEW = ddpm(n_steps=100, beta_min=1e-3, beta_max=.2)       # as much noise at its end in a tenth of the steps

def test_many_small_steps_are_one():
    "Noise added a thousand times by eq. (2) is noise added once by eq. (4)"
    α,σ = ddpm().path(T)
    β = torch.linspace(1e-4, .02, 1000, **f64)
    factor,var = torch.ones(1, **f64), torch.zeros(1, **f64)
    for t in range(1000):
        factor,var = (1-β[t]).sqrt()*factor, (1-β[t])*var + β[t]
        assert abs(factor-α[t]) < 1e-9 and abs(var-σ[t]**2) < 1e-9

def test_the_levels_of_the_table():
    α,σ = ddpm().path(T)
    assert α.dtype == σ.dtype == torch.float64
    torch.testing.assert_close(α**2+σ**2, torch.ones(1000, **f64), rtol=0, atol=1e-12)
    assert (α.diff() < 0).all() and 0 < α[-1] < .01 and α[0] > .9999

@pytest.mark.parametrize('bad', [dict(beta_max=1.2), dict(beta_min=0.), dict(beta_min=-1e-4)], ids=str)
def test_betas_that_are_no_variances(bad):
    with pytest.raises(ValueError, match=r'β must lie in \(0,1\), got '): ddpm(**bad)

def test_no_steps():
    with pytest.raises(ValueError, match='n_steps must be at least'): ddpm(n_steps=0)

def test_noised_images_are_equation_4():
    x0 = noise(64,1,4,4).float().clamp(-1, 1)
    (x_t,t),ε = noisify(x0, ddpm(), gen())
    α,σ = (o.float().view(-1,1,1,1) for o in ddpm().path(t.round().long()))
    torch.testing.assert_close(x_t, α*x0 + σ*ε, rtol=0, atol=1e-6)
    torch.testing.assert_close(t, t.round(), rtol=0, atol=2e-3)

def test_every_time_is_drawn_and_the_noise_is_normal():
    (x_t,t),ε = noisify(torch.zeros(20_000,1,2,2), ddpm(), gen())
    assert t.round().unique().numel() == 1000 and t.min().round() == 0 and t.max().round() == 999
    assert abs(ε.mean()) < 4/80_000**.5 and abs(ε.var()-1) < 4*(2/80_000)**.5
    assert abs(x_t.var()/(ddpm().path(T)[1]**2).mean()-1) < .02

def test_the_same_generator_gives_the_same_batch():
    x0 = noise(5,1,4,4).float()
    a,b,c = (noisify(x0, ddpm(), gen(s)) for s in (3, 3, 4))
    assert torch.equal(a[0][0], b[0][0]) and torch.equal(a[1], b[1]) and not torch.equal(a[1], c[1])

def algorithm_2(ε_θ, shape, β, generator):
    "Ho et al. (2020), Algorithm 2, line by line"
    α = 1-β; ᾱ = α.cumprod(0)
    x = torch.randn(shape, generator=generator)
    for t in reversed(range(len(β))):
        z = torch.randn(shape, generator=generator) if t > 0 else 0
        x = 1/α[t].sqrt() * (x - β[t]/(1-ᾱ[t]).sqrt()*ε_θ(x, t)) + β[t].sqrt()*z        # eq. (11)
    return x

def test_sampling_is_algorithm_2():
    ε_θ = lambda x, t: .9*x + .1*x.tanh()
    β = torch.linspace(1e-3, .2, 100, **f64)
    paper = algorithm_2(ε_θ, (2,1,8,8), β, gen(5))
    ours = sample_ddpm(ε_θ, (2,1,8,8), FEW, device='cpu', generator=gen(5))
    torch.testing.assert_close(ours, paper.float(), rtol=1e-3, atol=1e-3)

def test_the_paper_s_thousand_steps_are_the_default():
    "Asked at 999, 998, … 0, once each"
    asked = []
    sample_ddpm(lambda x, t: asked.append(t.tolist()) or 0.9*x, (2,1,2,2), device='cpu')
    assert [pytest.approx(o, abs=2e-3) for o in asked] == [[t, t] for t in reversed(range(1000))]

def test_a_gaussian_comes_out_as_it_is():
    "1000 steps with the exact ε̂ of pixels N(0.3, 0.5²)"
    x = sample_ddpm(Network(Gaussian(.3, .5), ddpm()), (20,1,40,40), ddpm(), device='cpu', generator=gen(5))
    assert abs(x.mean()-.3) < .01 and abs(x.std()-.5) < .01

def test_diffusers_step():
    "The same images, the same ε̂, the same noise: DDPMScheduler with the larger variance, x̂0 kept in ±1"
    from diffusers import DDPMScheduler
    sch = DDPMScheduler(beta_end=.02, variance_type='fixed_large', clip_sample=True)
    a = sch.alphas_cumprod
    for t in (999, 500, 100, 3, 1):
        x,ε = torch.randn(2, 2,1,4,4, generator=gen(t)).unbind(0)
        theirs = sch.step(ε, t, x, generator=gen(t)).prev_sample
        x0 = ((x-(1-a[t]).sqrt()*ε)/a[t].sqrt()).clamp(-1, 1); β = 1-a[t]/a[t-1]
        μ = (a[t-1].sqrt()*β*x0 + (1-β).sqrt()*(1-a[t-1])*x)/(1-a[t])                          # eq. (7)
        torch.testing.assert_close(μ + β.sqrt()*torch.randn(x.shape, generator=gen(t)), theirs, rtol=0, atol=1e-5)

def test_the_last_step_gives_the_clipped_guess_itself():
    "No noise is added at t=0: with `clip` the images end in ±1 exactly, without it where the network leads"
    wild = lambda x, t: -x
    x = sample_ddpm(wild, (4,1,4,4), FEW, clip=True, device='cpu', generator=gen())
    assert x.abs().max() <= 1.001
    assert not sample_ddpm(wild, (4,1,4,4), FEW, device='cpu', generator=gen()).abs().max() <= 1.001

def test_the_generator_decides():
    net = Network(Gaussian(), FEW)
    a,b,c = (sample_ddpm(net, (2,1,4,4), FEW, device='cpu', generator=gen(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and (a-c).abs().min() > 0

def test_a_network_that_answers_only_sometimes():
    "Asked at each time, the last answer kept between: notebook 19's skipping sampler, by a network round a network"
    calls = []
    class AskAt:
        def __init__(self, at): self.at = set(at)
        def __call__(self, x, t):
            if round(float(t[0])) in self.at: self.ε = .9*x; calls.append(float(t[0]))
            return self.ε
    always = sample_ddpm(AskAt(range(100)), (2,1,4,4), FEW, clip=True, device='cpu', generator=gen())
    torch.testing.assert_close(always, sample_ddpm(lambda x, t: .9*x, (2,1,4,4), FEW, clip=True, device='cpu', generator=gen()))
    calls.clear(); sample_ddpm(AskAt([t for t in range(100) if t < 10 or (99-t) % 3 == 0]), (2,1,4,4), FEW, device='cpu')
    assert len(calls) == 10 + math.ceil(90/3)

def test_a_network_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r'was given \(2, 1, 8, 8\) and returned \(1, 1, 8, 8\)'):
        sample_ddpm(lambda x, t: x[:1], (2,1,8,8), FEW, device='cpu')

def test_diffusers_models_wrap_their_output():
    class Out:
        def __init__(self, sample): self.sample = sample
    a = sample_ddpm(lambda x, t: Out(.9*x), (2,1,4,4), FEW, device='cpu', generator=gen())
    assert torch.equal(a, sample_ddpm(lambda x, t: .9*x, (2,1,4,4), FEW, device='cpu', generator=gen()))
