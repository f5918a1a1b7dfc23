"What networks are trained to predict: the mixes a·x0 + b·ε and back, published parameterisations as special cases, noising, training"
import math
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from miniai.diffusion import ddpm, eps_pred, Level, levels, noisify
from miniai.denoiser import clip_x0, Denoiser, unmix
from miniai.schedules import cosine, v_pred, x0_pred
from miniai.karras import edm, scalings, ve
from miniai.solvers import flow, flow_pred
from oracles import Bells, edm_pred, f64, fit, Gaussian, gen, level, Network, noise, TwoValues
from miniai.datasets import DataLoaders

PREDS = dict(eps=eps_pred, x0=x0_pred, v=v_pred, flow=flow_pred, edm=lambda α, σ: edm_pred(α, σ, .7))
FORMS = dict(ddpm=ddpm(), ddpm_v=ddpm(predicts='v'), ddpm_x0=ddpm(predicts='x0'), cosine=cosine(), cosine_v=cosine(predicts='v'), edm=edm(.7), flow=flow())
FORM = pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
PRED = pytest.mark.parametrize('pred', PREDS.values(), ids=PREDS)

def vp(t): return 1/(1+t**2).sqrt(), t/(1+t**2).sqrt()
def straight(t): return 1-t, t
def halved(t): return cosine().path(t)[0]/2, cosine().path(t)[1]

PATHS = [(ddpm(), 500), (cosine(), .3), (vp, 2.), (ve, 5.), (straight, .6), (halved, .3)]

def close(a, b, tol): torch.testing.assert_close(torch.as_tensor(a, **f64), torch.as_tensor(b, **f64), rtol=0, atol=tol)

# --- two equations, two unknowns

@pytest.mark.parametrize('alpha,sigma', [(1., .01), (.8, .6), (.1, .9), (1., 80.)])
@PRED
def test_unmix(pred, alpha, sigma):
    x0,ε = noise(2,100).unbind(0); a,b = pred(alpha, sigma)
    back = unmix(alpha*x0 + sigma*ε, a*x0 + b*ε, alpha, sigma, a, b)
    close(back[0], x0, 1e-10); close(back[1], ε, 1e-10)

@pytest.mark.parametrize('pred', [v_pred, flow_pred, edm_pred], ids=['v', 'flow', 'edm'])
def test_predictions_that_work_from_pure_noise(pred):
    x0,ε = noise(2,100).unbind(0)
    a,b = pred(0., 1.)
    close(unmix(ε, a*x0 + b*ε, 0., 1., a, b)[0], x0, 1e-12)

def test_the_noise_tells_nothing_in_pure_noise():
    x = noise(4)
    with pytest.raises(ValueError, match='this prediction is the input itself'): unmix(x, x, torch.tensor(0.), torch.tensor(1.), 0., 1.)

# --- the published parameterisations

σ = torch.tensor([.002, .1, 1, 10, 80.], **f64)

def test_edm_is_karras_s_preconditioning():
    "c_skip, c_out and the weight λ(σ) of Table 1, out of the mix (Karras et al. 2022)"
    sd = .7; α = torch.ones_like(σ); a,b = edm_pred(α, σ, sd); Δ = α*b-σ*a
    c_skip,c_out,c_in = scalings(σ, sd)
    close(b/Δ, c_skip, 1e-12); close(-σ/Δ, c_out, 1e-12)
    close((Δ/σ)**2 * (σ*sd)**2/(σ**2+sd**2), torch.ones_like(σ), 1e-9)
    close((a*sd)**2 + b**2, torch.ones_like(σ), 1e-12)                               # a target of variance 1
    close(edm(sd).scale(α, σ), c_in, 1e-12)                                          # and an input

def test_the_scalings_are_those_of_the_derivation():
    σ = torch.logspace(-3, 3, 50, **f64)
    for sd in (.5, .7):
        c_skip,c_out,c_in = scalings(σ, sd)
        close(c_in**2*(σ**2+sd**2), torch.ones(50), 1e-12)                           # input of variance 1
        close(((1-c_skip)**2*sd**2 + c_skip**2*σ**2)/c_out**2, torch.ones(50), 1e-12)     # target of variance 1
        close((1-c_skip)*sd**2 / (c_skip*σ**2), torch.ones(50), 1e-10)               # c_out as small as it can be
    close(scalings(.7, .7), (.5, .7/2**.5, 1/(.7*2**.5)), 1e-12)

@pytest.mark.parametrize('bad', [0., -1., math.nan])
def test_data_without_spread(bad):
    with pytest.raises(ValueError, match='sigma_data must be above 0, got'): scalings(1., bad)

def test_edm_of_unit_data_is_v_on_the_circle():
    α,σ = cosine().path(torch.linspace(.01, .99, 50, **f64))
    close(torch.stack(edm_pred(α, σ, 1.)), -torch.stack(v_pred(α, σ)), 1e-12)

def test_v_is_the_velocity_on_the_circle_and_flow_that_on_the_line():
    x0,ε = noise(2,5).unbind(0); h = 1e-6
    for path,pred,speed in ((cosine().path, v_pred, math.pi/2), (flow().path, flow_pred, 1.)):
        at = lambda t: sum(o*v for o,v in zip(path(torch.tensor(t, **f64)), (x0, ε)))
        a,b = pred(*path(torch.tensor(.3, **f64)))
        close((at(.3+h)-at(.3-h))/(2*h), speed*(a*x0 + b*ε), 1e-7)

def test_what_an_error_weighs():
    "An error of 1 in F is one of 1/weight in x̂0²: SNR, 1, SNR+1, 1/σ²"
    t = torch.linspace(.01, .99, 200, **f64); (α,σ),(fα,fσ) = cosine().path(t), flow().path(t)
    def weight(pred, α, σ): a,b = pred(α, σ); return ((α*b-σ*a)/σ)**2
    snr = (α/σ)**2; one = torch.ones_like(t)
    close(weight(eps_pred, α, σ)/snr, one, 1e-9); close(weight(x0_pred, α, σ), one, 1e-9)
    close(weight(v_pred, α, σ)/(snr+1), one, 1e-9); close(weight(flow_pred, fα, fσ)*fσ**2, one, 1e-9)

def test_the_mix_keeps_its_digits():
    "EDM's target as a difference loses half of float32's digits where there is little noise; as a mix none"
    x0,ε = noise(2,10_000).unbind(0); σ,sd = torch.tensor(.002, **f64), .7
    def both(x0, ε, σ):
        c_skip,c_out,_ = scalings(σ, sd); a,b = edm_pred(1., σ, sd)
        return (x0-c_skip*(x0+σ*ε))/c_out, a*x0+b*ε
    true = both(x0, ε, σ)[1]
    as_difference,as_mix = ((o-true).abs().max() for o in both(x0.float(), ε.float(), σ.float()))
    assert as_mix < 1e-6 < as_difference

# --- networks as denoisers

class Knows(nn.Module):
    "Answers what a form asks, for one image and one noise that it knows"
    def __init__(self, form, l, x0, ε):
        super().__init__(); k = float(form.scale(l.alpha, l.sigma))
        a,b = form.pred(k*l.alpha, k*l.sigma); self.F = a*x0 + b*ε
    def forward(self, x, t): return self.F

@pytest.mark.parametrize('path,t', PATHS, ids=['table', 'circle', 'vp', 've', 'straight', 'halved'])
@FORM
def test_every_form_on_every_path(form, path, t):
    "Whatever path the images are on, a network of any form is asked in its own words, and its answer translated"
    x0,ε = noise(2,3,1,4,4).unbind(0); l = level(path, t)
    got = Denoiser(Knows(form, l, x0, ε), form)(float(l.alpha)*x0 + float(l.sigma)*ε, l)
    close(got[0], x0, 1e-10); close(got[1], ε, 1e-10)

@pytest.mark.parametrize('path,t', PATHS[1:], ids=['circle', 'vp', 've', 'straight', 'halved'])
@FORM
def test_the_exact_network_is_the_exact_denoiser(form, path, t):
    "The network that perfect training ends in, read through its form at any level, is the posterior mean"
    for den in (Gaussian(.3, .7), TwoValues()):
        l = level(path, t); x = float(l.alpha)*noise(4,1,3,3) + float(l.sigma)*noise(4,1,3,3, seed=2)
        for got,want in zip(Denoiser(Network(den, form), form)(x, l), den(x, l)): close(got, want, 2e-4 if 'ddpm' in str(form)[:20] else 1e-5)

@FORM
def test_a_level_for_each_image(form):
    "As in training: one call with four levels is four calls"
    den = Denoiser(Network(TwoValues(), form), form); x = noise(4,1,3,3)
    r = torch.tensor([.05, .5, 2., 30.], **f64); one = torch.ones_like(r)
    together = den(x, Level(None, one, r))
    for i in range(4):
        for a,b in zip(together, den(x[i:i+1], level(ve, float(r[i])))): close(a[i:i+1], b, 1e-5)

def test_the_time_that_a_network_is_told():
    α,σ = ddpm().path(torch.arange(1000)); close(ddpm().time(α, σ).double(), torch.arange(1000.), 2e-3)
    t = torch.linspace(.01, .99, 50, **f64)
    close(cosine().time(*cosine().path(t)), t, 1e-12); close(flow().time(*flow().path(t)), t, 1e-12)
    close(edm().time(*(torch.tensor(o, **f64) for o in (3., 6.))), math.log(2)/4, 1e-6)

@FORM
def test_time_and_scale_ask_for_the_ratio_alone(form):
    "The same image twice as bright with twice the noise is the same image to a network"
    α,σ = (torch.tensor(o, **f64) for o in (.4, .9))
    close(2*form.scale(2*α, 2*σ), form.scale(α, σ), 1e-12)
    close(form.time(2*form.scale(2*α, 2*σ)*α, 2*form.scale(2*α, 2*σ)*σ).double(), form.time(form.scale(α, σ)*α, form.scale(α, σ)*σ).double(), 1e-6)

def test_a_network_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r'was given \(2, 1, 4, 4\) and returned \(1, 1, 4, 4\)'):
        Denoiser(lambda x, t: x[:1], cosine())(noise(2,1,4,4), level(cosine(), .5))

def test_clip_keeps_both_guesses_together():
    far = lambda x, l, y=None: (3*x, x); l = level(cosine(), .5); x = noise(2,1,4,4)
    x0,ε = clip_x0(far)(x, l)
    assert x0.abs().max() == 1
    close(float(l.alpha)*x0 + float(l.sigma)*ε, x, 1e-12)

def test_clip_leaves_what_lies_within():
    den = Gaussian(0., .2); l = level(ve, .1); x = noise(2,1,4,4)*.1
    for a,b in zip(clip_x0(den)(x, l), den(x, l)): close(a, b, 1e-12)

# --- noising

@FORM
def test_a_training_batch_unmixes_to_its_image(form):
    "What the network sees and what it is to say together give x0 and ε back, at the level that its time tells"
    x0 = noise(256,1,4,4).float().clamp(-1, 1)
    (x,t),target = noisify(x0, form, gen())
    assert x.shape == target.shape == x0.shape and t.shape == (256,) and x.dtype == t.dtype == target.dtype == torch.float32
    from oracles import beside, ratio_of
    r = beside(ratio_of(form, t.double().round() if 'ddpm' in str(form)[:20] else t.double()), x); k = form.scale(torch.ones_like(r), r)
    got = unmix(x, target, k, k*r, *form.pred(k, k*r))[0]
    assert ((got-x0).abs()/(1+r)).max() < 5e-4          # float32 beside noise that is r times as large

def test_edm_s_batch_has_variance_1():
    x0 = .7*noise(40_000,1,2,2).float(); (x,t),target = noisify(x0, edm(.7), gen()); log_σ = 4*t
    assert abs(log_σ.mean()+1.2) < .03 and abs(log_σ.std()-1.2) < .03
    for lo in torch.arange(-4, 2, .5):
        b = (log_σ > lo) & (log_σ <= lo+.5)
        assert abs(x[b].std()-1) < .05 and abs(target[b].std()-1) < .05

def test_edm_s_batch_is_equation_8():
    x0 = noise(9,1,4,4).float(); (x,t),target = noisify(x0, edm(.7), gen())
    σ = (4*t).exp()[:,None,None,None]; c_skip,c_out,c_in = scalings(σ, .7)
    torch.testing.assert_close(c_skip*x/c_in + c_out*target, x0, rtol=0, atol=1e-4)      # eq. (7)

def test_flow_s_batch_is_on_the_line():
    x0 = noise(9,1,4,4).float(); (x,t),v = noisify(x0, flow(), gen()); t = t[:,None,None,None]
    torch.testing.assert_close(x - t*v, x0, rtol=0, atol=1e-5); torch.testing.assert_close(x + (1-t)*v, x0+v, rtol=0, atol=1e-5)

# --- training

class Tiny(nn.Module):
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(2, 1, 3, padding=1)
    def forward(self, x, t): return self.conv(torch.cat([x, t[:,None,None,None].expand_as(x)/(1000 if t.max() > 10 else 1)], 1))

def dls(n=4, bs=32):
    xs = torch.randn(n, bs,1,8,8, generator=gen()).mul(.5).cumsum(-1).clamp(-1, 1)
    return DataLoaders([(x,) for x in xs], [(xs[0],)])

@FORM
def test_the_loss_falls(form):
    h = fit(form, Tiny(), dls(), epochs=3)
    losses = [r['loss'] for r in h if r['train'] == 'train']
    assert losses[-1] < losses[0] and all(map(math.isfinite, losses))

@FORM
def test_validation_sees_the_same_noise_each_epoch(form):
    valid = [r['loss'] for r in fit(form, Tiny(), dls(), epochs=3, lr=0.) if r['train'] == 'eval']
    assert valid[0] == valid[1] == valid[2]

@FORM
def test_no_network_beats_the_exact_one(form):
    "In each form the posterior mean has the least expected loss: any other answer costs its squared distance from it"
    x0 = (.7*noise(20_000,1,1,1) + .3).float(); (x,t),target = noisify(x0, form, gen())
    with torch.no_grad(): F_ = Network(Gaussian(.3, .7), form)(x, t)
    best = F.mse_loss(F_, target)
    for d in (.1, -.1): assert abs(F.mse_loss(F_+d, target) - best - d**2) < 2*abs(d)*4*(best/20_000)**.5 + 1e-6       # 4 standard errors
    assert F.mse_loss(F_*1.1, target) > best and F.mse_loss(F_*.9, target) > best

class Out:
    def __init__(self, sample): self.sample = sample

def test_diffusers_models_wrap_their_output():
    class Wrapped(Tiny):
        def forward(self, x, t): return Out(super().forward(x, t))
    torch.manual_seed(1); a = fit(cosine(), Tiny(), dls()); torch.manual_seed(1); b = fit(cosine(), Wrapped(), dls())
    assert a == b
    net,x,l = Wrapped(), noise(2,1,4,4).float(), level(cosine(), .5)
    bare = Denoiser(lambda x, t: net(x, t).sample, cosine())
    assert torch.equal(Denoiser(net, cosine())(x, l)[0], bare(x, l)[0])
