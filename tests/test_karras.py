"The samplers of `karras` are the published algorithms: k-diffusion's functions, and Algorithm 2 of Karras et al. (2022) written out, on the same noise in float64"
import importlib.metadata, math, sys
import pytest
import torch
from miniai.denoiser import Denoiser
from miniai.diffusion import Level, NoiseCB, ddpm, levels, sample_loop
from miniai.karras import (denoise, draw_sigmas, edm, from_x0, sample, sample_dpmpp_2m, sample_euler, sample_euler_ancestral,
                           sample_heun, sample_lms, scalings, sigmas_karras, ve)
from miniai.learner import DeviceCB
from miniai.solvers import sample as sample_by_name
from common import ROOT
from oracles import plain, Gaussian, Network, f64, fit, gen, noise, order
sys.path.insert(0, str(ROOT/'bench'))
from peers import k_sampling

SIZE = (3,1,4,4)
STEPS = 5, 10, 18, 40

def states(step, f, n, size=SIZE, sigma_min=.01, sigma_max=80., rho=7., **kw):
    "`(σ, x)` after each step, f being `(x, σ) → x̂0`; float64, noise by seed 7"
    torch.manual_seed(7); ls = levels(ve, sigmas_karras(n, sigma_min, sigma_max, rho)); randn = lambda: torch.randn(size, **f64)
    return [(now.level.sigma, now.x) for now in sample_loop(from_x0(f), ls[0].sigma*randn(), ls, step, randn, **kw)]

def exact(x, sigma, m=.6, s=.3):
    "x̂0 for pixels that are -m or m, give or take s: the exact denoiser of a mixture of two Gaussians. σ is a number, or one for each image"
    v = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, *[1]*(x.ndim-1))**2 + s**2
    return (s**2*x + (v-s**2)*m*(m*x/v).tanh())/v

def ours(step, n, f=exact, **kw): return states(step, f, n, **kw)[-1][1]

@pytest.fixture(scope='module')
def k():
    "k-diffusion's samplers"
    try: return k_sampling()
    except importlib.metadata.PackageNotFoundError: pytest.fail('k-diffusion is not installed: `make test` does it, or `pip install --no-deps -c constraints.txt k-diffusion`')

def theirs(sampler, n, f=exact, **kw):
    "Their sampler over our noise levels, which are float64 where theirs are float32"
    torch.manual_seed(7); σs = sigmas_karras(n)
    return sampler(f, σs[0]*torch.randn(SIZE, dtype=torch.float64), σs, disable=True, **kw)

CASES = [(sample_euler, 'sample_euler', {})]
CASES += [(sample_euler_ancestral, 'sample_euler_ancestral', dict(eta=η)) for η in (0., .5, 1.)]
CASES += [(sample_heun, 'sample_heun', kw) for kw in (dict(s_churn=0.), dict(s_churn=2.), dict(s_churn=40., s_noise=1.007), dict(s_churn=1e9))]
CASES += [(sample_lms, 'sample_lms', dict(order=o)) for o in (1, 2, 3, 4)] + [(sample_dpmpp_2m, 'sample_dpmpp_2m', {})]

@pytest.mark.parametrize('n', STEPS)
@pytest.mark.parametrize('step,name,kw', CASES, ids=[f'{nm}-{kw}' for _,nm,kw in CASES])
def test_steps_are_k_diffusions(k, step, name, kw, n):
    a,b = ours(step, n, **kw), theirs(getattr(k, name), n, **kw)
    assert a.dtype == b.dtype == torch.float64
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)

@pytest.mark.parametrize('n', STEPS)
def test_the_grid_is_k_diffusions(k, n):
    for lo,hi,rho in ((.01, 80., 7.), (.002, 80., 7.), (.1, 10., 3.)):
        torch.testing.assert_close(sigmas_karras(n, lo, hi, rho).float(), k.get_sigmas_karras(n, lo, hi, rho), rtol=2e-6, atol=0)     # theirs is made in float32

@pytest.mark.parametrize('step,name,kw', [(sample_euler_ancestral, 'sample_euler_ancestral', dict(eta=.5)), (sample_heun, 'sample_heun', dict(s_churn=2.)), (sample_lms, 'sample_lms', dict(order=3))], ids=plain)
def test_another_setting_is_seen(k, step, name, kw):
    "The comparison can fail: with another η, churn or order than theirs the images differ by far more than the tolerance"
    assert (ours(step, 10, **kw) - theirs(getattr(k, name), 10)).abs().max() > 1e-3

def algorithm_2(D, N, S_churn, S_tmin=0., S_tmax=math.inf, S_noise=1., evaluate_at='t_hat', size=SIZE):
    "Karras et al. (2022), Algorithm 2, line by line; their t is σ"
    torch.manual_seed(7); t = sigmas_karras(N)
    x = t[0]*torch.randn(size, dtype=torch.float64)
    for i in range(N):
        γ = min(S_churn/N, 2**.5-1) if S_tmin <= t[i] <= S_tmax else 0.
        t_hat = t[i] + γ*t[i]
        ε = S_noise*torch.randn(size, dtype=torch.float64) if γ else 0.
        x_hat = x + (t_hat**2-t[i]**2).sqrt()*ε
        told = t_hat if evaluate_at == 't_hat' else t[i]
        d = (x_hat - D(x_hat, told))/told
        x = x_hat + (t[i+1]-t_hat)*d
        if t[i+1] != 0:
            d2 = (x - D(x, t[i+1]))/t[i+1]
            x = x_hat + (t[i+1]-t_hat)*(d/2 + d2/2)
    return x

CHURN = [dict(s_churn=0.), dict(s_churn=2.), dict(s_churn=40., s_tmin=.05, s_tmax=50., s_noise=1.003), dict(s_churn=1e9), dict(s_churn=5., s_tmin=1e3)]

@pytest.mark.parametrize('n', STEPS)
@pytest.mark.parametrize('kw', CHURN, ids=plain)
def test_heun_is_algorithm_2(kw, n):
    paper = algorithm_2(exact, n, **{'S'+nm[1:]: v for nm,v in kw.items()})
    torch.testing.assert_close(ours(sample_heun, n, **kw), paper, rtol=0, atol=1e-12)

@pytest.mark.parametrize('n', STEPS)
def test_the_denoiser_is_asked_at_sigma_hat(n):
    "Asked at the level before the churn, which is easily written, Algorithm 2 gives other images; without churn it makes no difference"
    for churn,same in ((0., True), (10., False)):
        wrong = algorithm_2(exact, n, churn, evaluate_at='t')
        assert ((ours(sample_heun, n, s_churn=churn) - wrong).abs().max() < 1e-12) == same
    asked = []; ours(sample_heun, n, f=lambda x, s: asked.append(float(s)) or exact(x, s), s_churn=10.)
    σs = sigmas_karras(n); γ = min(10/n, 2**.5-1)
    assert asked[::2] == pytest.approx((σs[:-1]*(1+γ)).tolist()) and asked[1::2] == pytest.approx(σs[1:-1].tolist())

# --- σ: drawn, spaced, scaled

def test_noise_levels_are_log_normal():
    σs = draw_sigmas(100_000, generator=gen())
    assert abs(σs.log().mean()+1.2) < .02 and abs(σs.log().std()-1.2) < .02 and (σs > 0).all()
    assert torch.equal(draw_sigmas(5, generator=gen()), draw_sigmas(5, generator=gen()))
    for kw,says in ((dict(n=0), 'n ≥ 1 and P_std > 0 expected: got 0'), (dict(n=3, P_std=-1.), 'got 3, -1.0')): sentence(ValueError, says, draw_sigmas, **kw)

def test_the_grid():
    "Even in σ^(1/ρ), from the largest to the smallest, then 0"
    for n in (1, 2, 5, 40):
        s = sigmas_karras(n); assert len(s) == n+1 and s[-1] == 0 and s[0] == pytest.approx(80.) and (s.diff() < 0).all() and s.dtype == torch.float64
    s = sigmas_karras(10); r = s[:-1]**(1/7); assert s[-2] == pytest.approx(.01)
    torch.testing.assert_close(r.diff(), (r[1]-r[0]).expand(9), rtol=0, atol=1e-9)
    torch.testing.assert_close(sigmas_karras(5, 1., 5., 1.), torch.tensor([5., 4, 3, 2, 1, 0], dtype=torch.float64))

@pytest.mark.parametrize('s', [.05, .5, 1.5, 10.])
def test_c_skip_makes_the_errors_smallest(s, sd=.7):
    "Of all mixtures of input and output, c_skip's amplifies the network's errors least: (Karras et al. 2022, Appendix B.6)"
    c = torch.linspace(0, 1, 100_001, dtype=torch.float64); c_out = ((1-c)**2*sd**2 + c**2*s**2).sqrt(); i = c_out.argmin()
    assert scalings(s, sd)[:2] == pytest.approx((c[i].item(), c_out[i].item()), abs=1e-5)

# --- a Gaussian, whose way is known

def gaussian(x, s, den=Gaussian(0., .5)): return den(x, Level(None, 1., float(s)))[0]

@pytest.mark.parametrize('step,p', [(sample_euler, 1), (sample_heun, 2), (sample_dpmpp_2m, 2), (sample_lms, 4)], ids=['euler', 'heun', '2m', 'lms'])
def test_orders_on_a_gaussian(step, p):
    "At the last level above 0, where a point is by its standard deviation"
    ns = [80, 160, 320]; errors = []
    for n in ns:
        torch.manual_seed(7); z = torch.randn(SIZE, **f64)
        σ,x = states(step, gaussian, n)[-2]
        errors.append((x/(80*z*((σ**2+.25)/(80**2+.25))**.5) - 1).abs().mean().item())
    assert abs(order(errors, [n-1 for n in ns]) - p) < .25, errors

def test_what_the_denoiser_is_told_matters():
    "Algorithm 2 with the mistake makes images too wide by more than 2%, as it stands it does not"
    size = (100,1,20,20)
    right = states(sample_heun, gaussian, 100, size, s_churn=40.)[-1][1]; wrong = algorithm_2(gaussian, 100, 40., evaluate_at='t', size=size)
    assert abs(right.std()/.5-1) < .015 and wrong.std() > 1.02*right.std()

# --- networks

def test_the_callback_noises_and_nothing_else():
    assert NoiseCB.order == DeviceCB.order+1 and not {'predict', 'get_loss', 'backward', 'step', 'zero_grad'} & set(dir(NoiseCB))

def test_denoise_is_equation_7():
    "A network that says 0 leaves c_skip·x; a level for each image is a call for each"
    x,form = noise(2,1,4,4), edm(.7)
    torch.testing.assert_close(denoise(Denoiser(lambda x, t: 0*x, form), x, 1.), x*scalings(1., .7)[0], rtol=0, atol=1e-12)
    net = Denoiser(lambda x, t: x*t[:,None,None,None], form)
    together = denoise(net, x, torch.tensor([1., 5.]))
    torch.testing.assert_close(together, torch.cat([denoise(net, x[:1], 1.), denoise(net, x[1:], 5.)]), rtol=0, atol=1e-6)

def test_a_network_carries_its_form():
    "What `NoiseCB` left on it is what `denoise` and the samplers read"
    net = torch.nn.Conv2d(1, 1, 1); net.forward = lambda x, t: 0*x
    with pytest.raises(ValueError, match='what was Conv2d trained to predict'): denoise(net, noise(2,1,4,4), 1.)
    net.form = edm(.7)
    assert denoise(net, noise(2,1,4,4), 1.).abs().max() > 0
    assert sample(sample_euler, net, SIZE, 3, device='cpu').isfinite().all()

def test_a_network_that_guesses_noise_needs_no_retraining():
    "DDPM's form, Karras's samplers: the exact network draws the exact Gaussian"
    net = Network(Gaussian(.3, .5), ddpm()); net.form = ddpm()
    x = sample(sample_lms, net, (10,1,40,40), 40, sigma_max=150., device='cpu', generator=gen())
    assert abs(x.mean()-.3) < .02 and abs(x.std()/.5-1) < .05

# --- bad input

def sentence(error, words, f, *args, **kw):
    with pytest.raises(error) as e: f(*args, **kw)
    text = str(e.value); assert words in text and '\n' not in text and e.value.__context__ is None, text

def test_levels_that_do_not_fall():
    for lo,hi in ((80., .01), (1., 1.), (0., 80.), (-1., 80.), (.01, math.inf)): sentence(ValueError, f'0 < sigma_min < sigma_max expected: got {lo} and {hi}', ours, sample_euler, 5, sigma_min=lo, sigma_max=hi)

@pytest.mark.parametrize('rho', [0, -7, math.inf, math.nan])
def test_rho(rho): sentence(ValueError, f'rho must be above 0 (7 is usual), got {rho}', ours, sample_euler, 5, rho=rho)

@pytest.mark.parametrize('n', [0, -3, 2.5])
def test_steps(n): sentence(ValueError, f'a whole number of steps, at least 1; got {n}', ours, sample_euler, n)

@pytest.mark.parametrize('order', [0, -1, 5, 1.5])
def test_order(order): sentence(ValueError, f'order must be 1, 2, 3 or 4 slopes, got {order}', ours, sample_lms, 5, order=order)

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_a_model_that_gives_nan(bad):
    "Which call and which σ: of Heun's two calls in a step too"
    σs = sigmas_karras(5)
    for step,at,call in ((sample_euler, 0, 1), (sample_euler, 3, 4), (sample_dpmpp_2m, 4, 5), (sample_heun, 3, 6)):      # Heun's third step looks at the fourth level
        sentence(FloatingPointError, f'returned NaN or infinity in call {call}, at σ/α={σs[at]:.4g}: look for it', ours, step, 5, lambda x, s: exact(x, s) + (bad if s <= σs[at] else 0.))

@pytest.mark.parametrize('bad', [0., -2., math.inf, math.nan, torch.tensor([1., 0.]), torch.ones(3)], ids=plain)
def test_a_level_out_of_range(bad):
    sentence(ValueError, 'σ must be one number above 0, or one for each of the 2 images; got', denoise, Denoiser(lambda x, t: x, edm()), noise(2,1,4,4), bad)

def test_more_noise_than_a_network_has_seen(capsys):
    "The grid is cut to what it knows, and that is said"
    den = Denoiser(Network(Gaussian(), ddpm()), ddpm()); first = []
    sample_by_name(den, 2, steps=3, size=(1,4,4), sigma_max=1000., device='cpu', on_step=lambda i, now: first.append(now.level.sigma))
    assert 'σ_max=1000 is beyond what this network was trained on: starting at 157.4' in capsys.readouterr().out
    sample_by_name(den, 2, steps=3, size=(1,4,4), device='cpu'); assert capsys.readouterr().out == ''
