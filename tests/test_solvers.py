"One loop for all: earlier formulations as its special cases, diffusers' schedulers, orders of convergence, noise, what a batch is"
import math
import pytest
import torch
from miniai.diffusion import ddpm, levels, Run, sample_loop
from miniai.denoiser import Denoiser, image_noise
from miniai.ddim import step_ddim, subsequence
from miniai.schedules import cosine, uniform_grid
from miniai.karras import edm, sigmas_karras, step_churn, step_dpmpp_2m, step_heun, step_lms, ve
from miniai.solvers import sample, flow, get_solver, logsnr_grid, SOLVERS, step_dpmpp_3m, step_ipndm, step_unipc
from oracles import (plain, Bells, f64, Gaussian, gen, generate, Knows, level, noise, one_step, order, TwoValues,
                     walk, Wavy)

DETERMINISTIC = dict(ddim=step_ddim, heun=step_heun, lms=step_lms, dpmpp_2m=step_dpmpp_2m, dpmpp_3m=step_dpmpp_3m, unipc=step_unipc, ipndm=step_ipndm)
DRAWING = {'ancestral', 'churn', 'ddpm'}
STEP = pytest.mark.parametrize('step', DETERMINISTIC.values(), ids=DETERMINISTIC)
WAVY = Wavy()

def vp(t): return 1/(1+t**2).sqrt(), t/(1+t**2).sqrt()
def halved(t): return .5*torch.ones_like(t), .5*t
def line(t): return 1/(1+t), t/(1+t)
def rho(n, lo=.01, hi=80.): return sigmas_karras(n, lo, hi)[:-1]
def close(a, b, tol): torch.testing.assert_close(a, b, rtol=0, atol=tol)

# --- one loop, whatever the path

@pytest.mark.parametrize('path', [vp, halved, line], ids=['circle', 'halved', 'line'])
@pytest.mark.parametrize('name', sorted(set(SOLVERS) - {'ddpm'}))
def test_the_path_does_not_matter(name, path):
    "The same σ/α on another path: the same images (DDPM's own variance β, alone, depends on the path)"
    start = noise(4,1,3,3)
    def run(path):
        g = gen(2); ls = levels(path, rho(12)); randn = lambda: torch.randn(start.shape, generator=g, **f64)
        return walk(TwoValues(), float(ls[0].sigma)*start, ls, SOLVERS[name], randn).x
    close(run(path), run(ve), 1e-8)

@STEP
def test_deterministic_solvers_draw_nothing(step):
    def never(): raise AssertionError('noise was drawn')
    walk(TwoValues(), noise(2,1,2,2), levels(ve, rho(8)), step, never)

@pytest.mark.parametrize('name', sorted(SOLVERS))
def test_calls_are_counted(name):
    "One a step; Heun and churn look twice but for the last"
    calls = []
    def counted(x, l, y=None): calls.append(len(x)); return Gaussian()(x, l)
    for n in (1, 2, 5, 20):
        calls.clear(); now = walk(counted, 80*noise(2,1,2,2), levels(ve, rho(n)), SOLVERS[name], lambda: noise(2,1,2,2))
        assert now.nfe == len(calls) == (2*n-1 if name in ('heun', 'churn') else n)
        assert float(now.level.sigma) == 0

@pytest.mark.parametrize('name', sorted(SOLVERS))
def test_a_denoiser_that_knows_the_image_ends_with_it(name):
    x0 = noise(2,1,3,3, seed=9)
    for n in (1, 2, 6): close(walk(Knows(x0), noise(2,1,3,3), levels(vp, rho(n)), SOLVERS[name], lambda: noise(2,1,3,3)).x, x0, 1e-7)

@STEP
def test_on_one_image_s_line_every_step_is_exact(step):
    "With x̂0 and ε̂ constant along the way the solution is α·x0 + σ·ε, whatever the grid"
    x0,ε = noise(2,3,1,2,2).unbind(0); ls = levels(vp, rho(7))
    for now in sample_loop(Knows(x0), float(ls[0].alpha)*x0 + float(ls[0].sigma)*ε, ls, step, None):
        close(now.x, float(now.level.alpha)*x0 + float(now.level.sigma)*ε, 1e-8)

# --- special cases

def test_euler():
    "DDIM where α = 1 is x + (σ' - σ)·dx/dσ"
    l,m = level(ve, 5.), level(ve, 2.); x = 5*noise(4,1,2,2); ε = WAVY(x, l)[1]
    close(one_step(step_ddim, WAVY, x, l, m), x + (2.-5.)*ε, 1e-12)

def test_ancestral_euler():
    "With η = 1: down to σ_down, up again with σ_up (k-diffusion's `get_ancestral_step`)"
    l,m = level(ve, 5.), level(ve, 2.); x,z = 5*noise(4,1,2,2), noise(4,1,2,2, seed=8); ε = WAVY(x, l)[1]
    up = min(2., (2**2*(5**2-2**2)/5**2)**.5); down = (2**2-up**2)**.5
    close(one_step(get_solver('ancestral'), WAVY, x, l, m, lambda: z), x + (down-5)*ε + up*z, 1e-12)

def test_rectified_flow():
    "On the straight path DDIM is x + (t' - t)·v"
    l,m = level(flow(), .6), level(flow(), .4); x = noise(4,1,2,2); x0,ε = WAVY(x, l)
    close(one_step(step_ddim, WAVY, x, l, m), x + (.4-.6)*(ε-x0), 1e-12)

def test_ddim_on_the_circle():
    "A turn of the circle by the angle of the step (Salimans and Ho 2022, eq. 34): cos δ·x - sin δ·v"
    l,m = level(cosine(), .6), level(cosine(), .45); x = noise(4,1,2,2); x0,ε = WAVY(x, l)
    v = float(l.alpha)*ε - float(l.sigma)*x0; δ = (.6-.45)*math.pi/2
    close(one_step(step_ddim, WAVY, x, l, m), math.cos(δ)*x - math.sin(δ)*v, 1e-12)

def test_heun_is_two_slopes_averaged():
    l,m = level(ve, 5.), level(ve, 2.); x = 5*noise(4,1,2,2); d = WAVY(x, l)[1]
    close(one_step(step_heun, WAVY, x, l, m), x - 3*(d + WAVY(x-3*d, m)[1])/2, 1e-12)

@pytest.mark.parametrize('n', [1, 2, 5, 20])
def test_lowest_orders_and_no_churn(n):
    x,ls = 80*noise(2,1,3,3), levels(ve, rho(n)); ddim = walk(WAVY, x, ls, step_ddim).x
    close(walk(WAVY, x, ls, step_ddim, eta=0.).x, ddim, 0)
    close(walk(WAVY, x, ls, step_lms, order=1).x, ddim, 1e-10)
    close(walk(WAVY, x, ls, step_unipc, order=1).x if n == 1 else ddim, ddim, 1e-10)
    close(walk(WAVY, x, ls, step_churn, s_churn=0.).x, walk(WAVY, x, ls, step_heun).x, 0)

def test_first_steps_of_multistep_methods_are_ddim_s():
    "With nothing to look back to"
    x,ls = 80*noise(2,1,3,3), levels(ve, rho(9)); first = next(sample_loop(WAVY, x, ls, step_ddim, None)).x
    for step in (step_lms, step_ipndm, step_dpmpp_2m, step_dpmpp_3m, step_unipc): close(next(sample_loop(WAVY, x, ls, step, None)).x, first, 1e-10)

def test_churn_in_its_window_only():
    x,ls = 80*noise(2,1,3,3), levels(ve, rho(9)); z = lambda: noise(2,1,3,3, seed=6)
    heun = walk(WAVY, x, ls, step_heun).x
    close(walk(WAVY, x, ls, step_churn, z, s_churn=5., s_tmin=1e3).x, heun, 0)
    close(walk(WAVY, x, ls, step_churn, z, s_churn=5., s_tmax=1e-3).x, heun, 0)
    assert (walk(WAVY, x, ls, step_churn, z, s_churn=5.).x - heun).abs().max() > 1e-3

# --- diffusers

def against(sch, step, n=12, **kw):
    "Largest difference of ours from the scheduler's, after any step"
    sch.set_timesteps(n); ls = levels(vp, sch.sigmas[:-1].double()); x = y = noise(64,1,1,1); d = []
    for t,l,now in zip(sch.timesteps, ls, sample_loop(WAVY, x, ls, step, None, **kw)):
        y = sch.step(WAVY(y, l)[1], t, y).prev_sample; d.append((now.x-y).abs().max().item())
    return max(d)

CFG = dict(beta_end=.02, final_sigmas_type='zero')

def test_2m_is_diffusers():
    from diffusers import DPMSolverMultistepScheduler as DPM
    assert against(DPM(solver_order=2, lower_order_final=False, **CFG), step_dpmpp_2m) < 1e-5

@pytest.mark.parametrize('k', [1, 2, 3])
def test_unipc_is_diffusers(k):
    from diffusers import UniPCMultistepScheduler
    assert against(UniPCMultistepScheduler(solver_order=k, **CFG), step_unipc, order=k) < 1e-5

def test_another_order_is_seen():
    "The comparison can fail"
    from diffusers import UniPCMultistepScheduler
    assert against(UniPCMultistepScheduler(solver_order=3, **CFG), step_unipc, order=2) > 1e-4

def half_parabola(run, x, l, m):
    "DPM-Solver++(3M) as published in code: the parabola's own term halved"
    run(x, l); seen = run.past[-min(3, run.left):]; λ = lambda l: math.log(float(l.alpha)/float(l.sigma))
    if m.sigma == 0: return m.alpha*seen[-1].x0
    h = λ(m)-λ(l); I0 = -math.expm1(-h); I1 = 1-I0/h; I2 = 1-2/h*I1; x0 = I0*seen[-1].x0
    if len(seen) == 2: x0 = x0 + I0/2*(seen[0].x0-seen[1].x0)/((λ(seen[0].level)-λ(l))/h)
    if len(seen) == 3:
        r1,r2 = ((λ(o.level)-λ(l))/h for o in seen[-2::-1]); d1,d2 = ((o.x0-seen[-1].x0)/r for o,r in zip(seen[-2::-1], (r1,r2)))
        curve = (d1-d2)/(r1-r2); x0 = x0 + I1*(d1 - curve*r1) + I2*curve/2
    return float(m.sigma/l.sigma)*x + float(m.alpha)*x0

def test_3m_is_diffusers_but_for_one_term():
    "Theirs halves one term of the exact integral; ours does not, and converges with order 3 (below)"
    from diffusers import DPMSolverMultistepScheduler as DPM
    sch = DPM(solver_order=3, **CFG)
    assert against(sch, half_parabola) < 1e-5 < against(sch, step_dpmpp_3m)

# --- iPNDM

def published(den, x, ls, order):
    "iPNDM written out, as published for EDM's levels: the weights of 1, 2, 3 and 4 slopes, newest first"
    table = {1: [1], 2: [3/2, -1/2], 3: [23/12, -16/12, 5/12], 4: [55/24, -59/24, 37/24, -9/24]}; past = []
    for l,m in zip(ls, ls[1:]):
        d = (x - den(x, l)[0])/l.sigma
        w = table[min(order, len(past)+1)]
        x = x + (m.sigma-l.sigma)*(w[0]*d + sum(wi*o for wi,o in zip(w[1:], past)))
        past = [d, *past][:3]
    return x

@pytest.mark.parametrize('order', [1, 2, 3, 4])
@pytest.mark.parametrize('n', [1, 2, 3, 9])
def test_ipndm_is_the_published_update(n, order):
    "Of any order, with more calls than that or fewer"
    x,ls = 80*noise(4,1,2,2), levels(ve, rho(n))
    close(walk(WAVY, x, ls, step_ipndm, order=order).x, published(WAVY, x, ls, order), 1e-9)

def test_ipndm_is_diffusers():
    "On diffusers' own levels, but for the last, where it would divide by zero"
    from diffusers import IPNDMScheduler
    sch = IPNDMScheduler(); sch.set_timesteps(9); x = y = noise(64,1,1,1); α,β = sch.alphas.double(), sch.betas.double()
    ls = levels(lambda i: (α[i], β[i]), list(range(1, 10))); sch.set_begin_index(1)
    for i,now in zip(range(1, 9), sample_loop(WAVY, x, ls, step_ipndm, None)):
        ε = WAVY(y, ls[i-1])[1]
        y = sch.step((ε - y*β[i])/α[i], sch.timesteps[i], y).prev_sample
        close(now.x, y, 1e-5)

def ipndm_error(ls, order, den=Gaussian(.3, .5)):
    "Mean error at the last level after three exact levels, so that the start's lower orders do not count"
    z = noise(100,1,1,1); run = Run(den, ls, None)
    for l in ls[:3]: run(den.at(l, z), l)
    x = den.at(ls[3], z)
    for l,m in zip(ls[3:], ls[4:]): x = step_ipndm(run, x, l, m, order=order)
    return (x-den.at(ls[-1], z)).abs().mean().item()

def even(n): return levels(ve, torch.linspace(2., .2, n+1, **f64))[:-1]

@pytest.mark.parametrize('p', [1, 2, 3, 4])
def test_ipndm_has_its_order_on_even_levels(p):
    ns = [200, 400, 800]
    assert abs(order([ipndm_error(even(n), p) for n in ns], ns) - p) < .25

@pytest.mark.parametrize('p', [2, 3, 4])
def test_ipndm_has_order_two_on_others(p):
    "Its weights are those of even places: on Karras's grid, order 2 whatever the number of slopes"
    ns = [200, 400, 800]
    assert abs(order([ipndm_error(levels(ve, rho(n+1, .2, 20.)[:-1])[:-1], p) for n in ns], ns) - 2) < .25

# --- orders

def error(step, path, n, den=Gaussian(.3, .5)):
    "Mean error at the last noisy level, against the exact way of a Gaussian"
    ls = levels(path, logsnr_grid(n+1, .05, 20.))[:-1]; z = noise(100,1,1,1)
    return (walk(den, den.at(ls[0], z), ls, step).x - den.at(ls[-1], z)).abs().mean().item()

@pytest.mark.parametrize('name,at_least', dict(ddim=1, heun=2, dpmpp_2m=2, dpmpp_3m=3, unipc=2, lms=3, ipndm=2).items())
def test_orders_on_a_gaussian(name, at_least):
    ns = [20, 40, 80, 160]; errors = [error(DETERMINISTIC[name], ve, n) for n in ns]
    assert order(errors[1:], ns[1:]) > at_least-.2, errors
    if at_least < 3 and name != 'unipc': assert order(errors[1:], ns[1:]) < at_least+.4, errors

def test_the_exact_integral_is_what_makes_3m_third_order():
    ns = [40, 80, 160]
    assert order([error(half_parabola, ve, n) for n in ns], ns) < 2.3

@pytest.mark.parametrize('name,at_least', dict(ddim=1, heun=2, dpmpp_2m=2, dpmpp_3m=2.5, unipc=2, lms=2.5).items())
def test_orders_on_two_values(name, at_least):
    "Not linear in x: the ODE leaves each point's share of the points below it as it is"
    den,ns = TwoValues(), [40, 80, 160]; errors = []
    for n in ns:
        ls = levels(ve, logsnr_grid(n+1, .05, 20.))[:-1]; x = 20*noise(200)
        errors.append((den.cdf(ls[-1], walk(den, x, ls, DETERMINISTIC[name]).x) - den.cdf(ls[0], x)).abs().mean().item())
    assert order(errors, ns) > at_least-.25, errors

@pytest.mark.parametrize('name,p', dict(ddim=1, heun=2, dpmpp_2m=2).items())
def test_orders_on_three_bells(name, p):
    "In the plane, against an integrator of order 8"
    den,x,ns = Bells(), 20*noise(30,2), [40, 80, 160]; truth = den.truth(x, 20., .05); errors = []
    for n in ns: errors.append((walk(den, x, levels(ve, logsnr_grid(n+1, .05, 20.))[:-1], DETERMINISTIC[name]).x-truth).pow(2).mean().sqrt().item())
    assert abs(order(errors, ns) - p) < .35, errors

@STEP
def test_a_gaussian_to_the_very_end(step):
    "On the usual grid with about 40 calls the images are as wide as they should be"
    n = 20 if step is step_heun else 40; den = Gaussian(.3, .5)
    x = walk(den, 80*noise(4000,1,1,1), levels(ve, rho(n, .002)), step).x
    tol = dict(ddim=.15, heun=.05).get(next(k for k,v in DETERMINISTIC.items() if v is step), .01)
    assert abs(x.std()/.5-1) < tol + 3/8000**.5 and abs(x.mean()-.3) < tol + 3*.5/4000**.5

@pytest.mark.parametrize('churn', [0., 10., 40.])
def test_churn_keeps_the_variance(churn):
    g = gen(3); n = 4000
    x = walk(Gaussian(0., .5), 80*noise(n), levels(ve, rho(60)), step_churn, lambda: torch.randn(n, generator=g, **f64), s_churn=churn).x
    assert abs(x.std()/.5-1) < .02 + 3/(2*n)**.5

def test_shares_of_the_bells():
    "Half, three tenths and a fifth of the points find their bells"
    den = Bells(); x = walk(den, 80*noise(10_000,2), levels(ve, rho(30)), step_dpmpp_2m).x
    share = den.log_p(x, 1., 0.).argmax(-1).bincount()/len(x)
    assert (share-den.weight).abs().max() < 3*.5/10_000**.5

# --- grids

def test_grids_agree():
    close(logsnr_grid(9, .02, 20.).log().diff(), torch.full((8,), math.log(1e-3)/8, **f64), 1e-12)
    ls = levels(ddpm(), subsequence(7)); assert [int(l.t) for l in ls[:-1]] == subsequence(7) and float(ls[-1].sigma) == 0 and float(ls[-1].alpha) == 1
    assert len(levels(cosine(), uniform_grid(5))) == 6

@pytest.mark.parametrize('bad', [[1., 2.], [2., 2.], [3., 1., 1.5]], ids=plain)
def test_grids_of_the_wrong_direction(bad):
    with pytest.raises(ValueError, match='must fall from noise to image: their σ/α are'): levels(ve, bad)

@pytest.mark.parametrize('bad', [(5, 2., 1.), (0, .01, 80.), (5, 0., 1.), (5, -1., 1.)], ids=plain)
def test_grids_that_are_none(bad):
    with pytest.raises(ValueError, match='n ≥ 1 and 0 < sigma_min < sigma_max expected'): logsnr_grid(*bad)

# --- arguments of the steps

@pytest.mark.parametrize('step,kw,says', [(step_ddim, dict(eta=-1.), 'eta must be 0'), (step_ddim, dict(eta=math.nan), 'eta must be 0'), (step_lms, dict(order=5), 'order must be 1, 2, 3 or 4'),
                                          (step_unipc, dict(order=0), 'order must be 1, 2 or 3'), (step_ipndm, dict(order=5), 'order must be 1, 2, 3 or 4 slopes, got 5'), (step_churn, dict(s_churn=-1.), 's_churn must be 0'), (step_churn, dict(s_churn=math.inf), 's_churn must be 0')], ids=plain)
def test_bad_arguments(step, kw, says):
    with pytest.raises(ValueError, match=says): walk(Gaussian(), noise(1,1,2,2), levels(ve, rho(5)), step, lambda: noise(1,1,2,2), **kw)

def test_no_such_solver():
    with pytest.raises(ValueError, match="no solver 'rk45': there are ddim, ancestral"): get_solver('rk45')

# --- seeds and batches

SHAPE = 7,1,4,4
LS = levels(ve, rho(6))

@pytest.mark.parametrize('name', ['dpmpp_2m', 'ancestral', 'churn', 'ddpm'])
def test_the_same_images_for_every_batch_size(name):
    step = SOLVERS[name]; a = generate(TwoValues(), SHAPE, LS, step, bs=7)
    for bs in (1, 2, 3, 100): assert torch.equal(generate(TwoValues(), SHAPE, LS, step, bs=bs), a), bs
    assert torch.equal(generate(TwoValues(), (2,1,4,4), LS, step), a[:2])              # fewer images are the first of more

def test_seeds():
    a,b = (generate(TwoValues(), SHAPE, LS, step_ddim, seed=s) for s in (0, 1))
    assert (a-b).abs().min() > 0 and torch.equal(a, generate(TwoValues(), SHAPE, LS, step_ddim, seed=0))
    assert len({tuple(o.flatten().tolist()) for o in torch.cat([a,b])}) == 14           # no image twice, within or between

def test_noise_of_each_image_is_its_own():
    z = image_noise(3, 0, SHAPE, device='cpu'); first,second = z(), z()
    part = image_noise(3, 4, (2,1,4,4), device='cpu')
    assert torch.equal(part(), first[4:6]) and torch.equal(part(), second[4:6]) and (first-second).abs().min() > 0
    many = image_noise(0, 0, (1000,1,8,8), device='cpu')()
    assert abs(many.mean()) < 4/64_000**.5 and abs(many.var()-1) < 4*(2/64_000)**.5

@pytest.mark.parametrize('shape,bs', [((0,1,4,4), 128), ((2,1,4,4), 0)])
def test_nothing_to_draw(shape, bs):
    with pytest.raises(ValueError, match=f'n and bs must be at least 1: got n={shape[0]}, bs={bs}'): generate(Gaussian(), shape, LS, step_ddim, bs=bs)

def test_single_precision_on_the_way_is_enough():
    a,b = (generate(TwoValues(), SHAPE, levels(ve, rho(20)), step_dpmpp_2m, dtype=d) for d in (torch.float32, torch.float64))
    assert a.dtype == torch.float32 and b.dtype == torch.float64
    start = image_noise(0, 0, SHAPE, 'cpu')(); want = walk(TwoValues(), 80*start.double(), levels(ve, rho(20)), step_dpmpp_2m).x
    assert (a-want).abs().max() < 1e-4

def test_labels_at_random():
    "The first images are the same however many are drawn; all classes come; a network without labels has none to draw"
    seen = []
    class Net(torch.nn.Module):
        n_classes = 10
        def forward(self, x, t, y): seen.append(y.cpu()); return 0*x
    den = Denoiser(Net(), edm(0.5))
    def drawn(n): seen.clear(); sample(den, n, steps=1, y='any', size=(1,4,4), bs=7); return torch.cat(seen)
    few,many = drawn(5), drawn(200)
    assert few.tolist() == many[:5].tolist() and set(many.tolist()) == set(range(10))
    with pytest.raises(ValueError, match='without labels'): sample(lambda x, l: (x, x), 2, y='any', size=(1,4,4))
    with pytest.raises(ValueError, match="'any'"): sample(den, 2, y='boots', size=(1,4,4))
