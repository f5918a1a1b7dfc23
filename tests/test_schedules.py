"Continuous time: ᾱ and its inverse, the γ families of Chen (2023), log-SNR, grids, DDIM on them, and DDPM's table read between its times"
import math
from dataclasses import dataclass
import pytest
import torch
from miniai.diffusion import ddpm, Form, levels, noisify
from miniai.denoiser import clip_x0, Denoiser
from miniai.ddim import sample_ddim, step_ddim, subsequence
from miniai.schedules import (abar, cosine, cosine_gamma, inv_abar, linear_gamma, log_snr, sample_grid, sigmoid_gamma,
                              T_MAX, uniform_grid)
from oracles import f64, Gaussian, gen, level, Network, noise, order, walk

t = torch.linspace(0, 1, 1001, **f64)
inner = t[1:-1]

def close(a, b, tol): torch.testing.assert_close(torch.as_tensor(a, **f64), torch.as_tensor(b, **f64), rtol=0, atol=tol)

# --- ᾱ

def test_abar_is_cos_squared():
    close(abar(t), (math.pi/2*t).cos()**2, 1e-15)
    assert (abar(t).diff() < 0).all() and abar(0) == 1 and abar(1) == 0 and abar(t.float()).dtype == torch.float32

def test_its_inverse():
    close(inv_abar(abar(t)), t, 1e-7)
    close(inv_abar(abar(t.float())), t.float(), 1e-3)

def test_its_slope_has_no_jumps():
    "-dᾱ/dt = π/2·sin πt: the noise comes evenly, and slowly at both ends"
    slope = -torch.autograd.functional.jacobian(lambda u: abar(u).sum(), t)
    close(slope, math.pi/2*(math.pi*t).sin(), 1e-12)

@pytest.mark.parametrize('bad', [999, -.1, torch.tensor([.5,1.5]), math.nan], ids=str)
def test_an_index_is_not_a_time(bad):
    with pytest.raises(ValueError, match=r't must lie in \[0,1\], got '): abar(bad)
    with pytest.raises(ValueError, match=r'ᾱ must lie in \[0,1\], got '): inv_abar(bad)

def test_log_snr():
    close(log_snr(abar(inner)), -2*(math.pi/2*inner).tan().log(), 1e-9)              # cos²/sin²
    close(log_snr(abar(inner)).sigmoid(), abar(inner), 1e-12)
    close(log_snr(abar(inner)) + log_snr(abar(inner)).flip(0), 0*inner, 1e-9)        # odd about t = 1/2

def test_the_variance_of_log_snr_is_pi_squared():
    "Over uniform times: the baseline of a network that predicts the noise level"
    u = torch.linspace(0, 1, 2_000_001, **f64)[1:-1]
    assert abs(log_snr(abar(u)).var() - math.pi**2) < .01

@pytest.mark.parametrize('bad', [0., 1., torch.tensor([.5, 1.])], ids=str)
def test_log_snr_where_only_one_is_left(bad):
    with pytest.raises(ValueError, match=r'log-SNR needs ᾱ in \(0,1\), got'): log_snr(bad)

# --- γ

FAMILIES = [(cosine_gamma, p) for p in ((0.,1.,1.), (0.,.5,1.), (.2,1.,1.), (.2,1.,3.))]
FAMILIES += [(sigmoid_gamma, p) for p in ((-3.,3.,1.), (0.,3.,1.), (0.,3.,.3), (-3.,3.,.5))] + [(linear_gamma, ())]

@pytest.mark.parametrize('clip_min', [1e-3, 1e-9])
@pytest.mark.parametrize('f,p', FAMILIES, ids=lambda o: getattr(o, '__name__', str(o)))
def test_gammas_fall_from_1_to_their_least(f, p, clip_min):
    γ = f(t, *p, clip_min=clip_min)
    close([γ[0], γ[-1]], [1, clip_min], 1e-12)
    assert (γ.diff() <= 0).all()

def test_special_cases_of_gamma():
    close(cosine_gamma(t, clip_min=0), abar(t), 1e-12)
    close(linear_gamma(inner), 1-inner, 1e-12)
    S = lambda u: 1/(1+math.exp(-u/.7))
    close(sigmoid_gamma(.3, -2, 3, .7), (S(3)-S(-.5))/(S(3)-S(-2)), 1e-12)

@pytest.mark.parametrize('bad', [dict(start=1, end=0), dict(tau=0), dict(tau=math.nan)], ids=str)
def test_no_such_piece(bad):
    with pytest.raises(ValueError, match='needs start < end and tau > 0: got start='): sigmoid_gamma(t, **bad)

def test_gammas_out_of_range():
    with pytest.raises(ValueError, match=r'\[0,1\]'): cosine_gamma(.5, end=1.5)
    with pytest.raises(ValueError, match=r'clip_min must lie in \[0,1\), got -1'): linear_gamma(.5, -1)

# --- the input scale b: a form of one's own

@dataclass(frozen=True)
class chen(Form):
    "α = b·√γ(t), σ = √(1-γ(t)), x brought to variance 1 (Chen 2023, strategy 2)"
    gamma:str = 'cosine'
    b:float = 1.
    data_std:float = 1.
    def path(self, t):
        γ = dict(cosine=cosine_gamma, sigmoid=sigmoid_gamma)[self.gamma](t)
        return self.b*γ.sqrt(), (1-γ).sqrt()
    def scale(self, alpha, sigma): return 1/(alpha**2*self.data_std**2 + sigma**2)**.5

def snr(form): α,σ = form.path(inner); return 2*(α/σ).log()

@pytest.mark.parametrize('b', [1., .5, .25, 2.])
def test_the_input_scale_is_a_shift(b):
    "By 2·log b of the log-SNR, at every t"
    close(snr(chen(b=b)) - log_snr(abar(inner)), torch.full_like(inner, 2*math.log(b)), 1e-6)

@pytest.mark.parametrize('data_std', [1., .7])
@pytest.mark.parametrize('b', [1., .5, .25])
def test_scaled_to_variance_1(b, data_std):
    form = chen(b=b, data_std=data_std); α,σ = form.path(inner)
    k = form.scale(α, σ)
    close((k*α*data_std)**2 + (k*σ)**2, torch.ones_like(inner), 1e-12)
    x0 = data_std*noise(100_000)
    for u in (.1, .5, .9):
        l = level(form, u); x = float(form.scale(l.alpha, l.sigma))*(float(l.alpha)*x0 + float(l.sigma)*noise(100_000, seed=2))
        assert abs(x.std()-1) < .02

def test_an_average_of_k_pixels_sees_less_noise():
    "b = 1/k undoes it for images enlarged k times: the reason for b"
    for k in (2, 4, 8): close(snr(chen(b=1/k)) + 2*math.log(k), snr(chen()), 1e-9)

# --- forms

def test_the_quarter_circle():
    α,σ = cosine().path(t)
    close(α**2 + σ**2, torch.ones_like(t), 1e-12)
    close(α**2, abar(t), 1e-12)
    close(cosine().time(α, σ), t, 1e-9)

def test_noised_images_are_on_it():
    x0 = noise(64,1,4,4).float().clamp(-1, 1)
    (x_t,u),ε = noisify(x0, cosine(), gen())
    α,σ = (o.view(-1,1,1,1) for o in ((math.pi/2*u).cos(), (math.pi/2*u).sin()))
    torch.testing.assert_close(x_t, α*x0 + σ*ε, rtol=0, atol=1e-5)
    assert u.shape == (64,) and 0 <= u.min() and u.max() < 1

# --- grids

def test_the_uniform_grid():
    "n calls, none of them at the clean end, evenly"
    close(uniform_grid(4, 1., .2), [1., .8, .6, .4], 1e-12)
    g = uniform_grid(5); assert len(g) == 5 and g[0] == T_MAX and g.dtype == torch.float64
    close(g[-1], T_MAX/5, 1e-12)

@pytest.mark.parametrize('bad', [dict(n=0), dict(n=-3), dict(n=5, t_min=-.1), dict(n=5, t_max=.3, t_min=.5)], ids=str)
def test_grids_that_do_not_run_down(bad):
    with pytest.raises(ValueError, match='a grid needs n ≥ 1 and'): uniform_grid(**bad)

def test_where_sampling_starts():
    "An error in ε̂ is 127 times as large in x̂0 at T_MAX, about as at the end of DDPM's table"
    l,last = level(cosine(), T_MAX), level(ddpm(), 999)
    assert abs(float(l.sigma/l.alpha) - math.tan(math.pi/2*T_MAX)) < 1e-6 and abs(float(l.sigma/l.alpha) - 127.3) < .1
    assert l.sigma/l.alpha < last.sigma/last.alpha

# --- DDIM on them

@pytest.mark.parametrize('eta', [0., .5, 1.])
@pytest.mark.parametrize('clip', [False, True])
def test_continuous_time_on_the_table_is_ddim_of_the_table(eta, clip):
    "The same network, told the index; on levels of another path: one and the same image"
    net = lambda x, i: .9*x + .1*x.tanh()*(i/1000).view(-1,1,1,1)
    for n in (7, 13, 50):
        a = sample_ddim(net, (2,1,4,4), n, eta, spacing='trailing', clip=clip, device='cpu', generator=gen())
        ls = levels(lambda i: ddpm().path(i), [int(i) for i in subsequence(n, 1000, 'trailing')])
        den = Denoiser(net, ddpm()); g = gen(); randn = lambda: torch.randn((2,1,4,4), generator=g)
        b = walk(clip_x0(den) if clip else den, randn(), ls, step_ddim, randn, eta=eta).x
        assert (a-b).abs().max() < 2e-4*b.abs().max().clamp(min=1)

def test_n_calls_for_n_steps():
    calls = []; net = lambda x, t: calls.append(t[0].item()) or .9*x
    for n in (1, 2, 10):
        calls.clear(); sample_grid(net, (2,1,4,4), n, device='cpu')
        assert calls == pytest.approx(uniform_grid(n).tolist(), abs=1e-6)

@pytest.mark.parametrize('eta', [0., 1.])
@pytest.mark.parametrize('form,t_max', [(cosine(), T_MAX), (chen('sigmoid'), .9999)], ids=['cosine', 'sigmoid'])
def test_a_gaussian_comes_out_as_it_is(form, t_max, eta):
    x = sample_grid(Network(Gaussian(.3, .5), form), (20,1,40,40), 300, form, eta, t_max, device='cpu', generator=gen())
    assert abs(x.mean()/.3-1) < .03 and abs(x.std()/.5-1) < .03

def test_the_order_is_1():
    den,z,ns = Gaussian(.3, .5), noise(100), [10, 20, 50, 100, 200]
    errors = []
    for n in ns:
        ls = levels(cosine(), uniform_grid(n))
        errors.append((walk(den, den.at(ls[0], z), ls, step_ddim).x - den.at(ls[-1], z)).abs().mean().item())
    assert abs(order(errors, ns) - 1) < .1, errors

def test_times_that_rise():
    with pytest.raises(ValueError, match='must fall from noise to image'): levels(cosine(), [0.1, .5])

def test_all_noise_tells_a_network_that_guesses_noise_nothing():
    with pytest.raises(ValueError, match='this prediction is the input itself: start a little lower'): sample_grid(lambda x, t: x, (2,1,4,4), 5, t_max=1., device='cpu')

def test_a_network_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r'was given \(2, 1, 4, 4\) and returned \(1, 1, 4, 4\)'): sample_grid(lambda x, t: x[:1], (2,1,4,4), 3, device='cpu')

# --- DDPM's table, between its times

def index(ᾱ): ᾱ = torch.as_tensor(ᾱ, **f64).reshape(-1); return ddpm().time(ᾱ.sqrt(), (1-ᾱ).sqrt()).double()

def test_an_index_for_every_level():
    ᾱ = ddpm().path(torch.arange(1000))[0]**2
    close(index(ᾱ), torch.arange(1000.), 2e-3)
    assert 300 < index(ᾱ[300:302].mean()) < 301
    between = (ᾱ[30].logit() + ᾱ[31].logit())/2
    close(index(between.sigmoid()), [30.5], 2e-3)                                     # even in log-SNR
    close(index([.999999, 1e-7]), [0., 999.], 0)                                      # beyond its ends, the end
