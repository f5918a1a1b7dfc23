"Straight paths, couplings, times, and MeanFlow: identities, and Gaussians on which the truth is known"
import itertools, math
import pytest
import torch
from torch import nn
from miniai.ddim import step_ddim
from miniai.diffusion import as_form, Level, levels, NoiseCB
from miniai.flow import CouplingCB, coupling, flow_grid, flow_logit, Leap, MeanDenoiser, MeanFlowCB, meanflow_target, step_leap, straightness
from miniai.solvers import flow, sample
from oracles import Bells, Gaussian, Knows, noise, walk

SIZE = 1,1,2

# --- the straight path

@pytest.mark.parametrize('n', [1, 2, 7])
def test_grid(n):
    ls = flow_grid(n)
    assert [l.sigma for l in ls] == pytest.approx([1-i/n for i in range(n+1)]) and all(l.alpha+l.sigma == pytest.approx(1) for l in ls)

def test_one_image_is_reached_along_a_straight_line():
    z,x0 = noise(5, *SIZE), noise(5, *SIZE, seed=2)
    assert straightness(Knows(x0), z) < 1e-20

def test_straightness_of_a_gaussian():
    "x_t = √((1-t)²s²+t²)·z: by numerical integration of its slope"
    s,n = .25, 400; z = noise(2000, *SIZE)
    t = torch.linspace(0, 1, 20001, dtype=torch.float64); w = ((1-t)**2*s**2+t**2).sqrt()
    slope = w.diff()/t.diff(); want = ((slope-(1-s)).square().mean()/(1-s)**2).item()
    assert straightness(Gaussian(0., s), z, n) == pytest.approx(want, rel=.02) and want > .01

def test_it_bends_more_where_there_is_more_to_decide():
    "A Gaussian as wide as the noise moves straight (it does not move at all at first); bells do not"
    z = noise(200, 2)
    assert straightness(Bells(), z) > 10*straightness(Knows(torch.zeros(200, 2, dtype=torch.float64)), z) + .01

# --- couplings

def cost(x0, ε): return (x0-ε).square().sum().item()

@pytest.mark.parametrize('seed', range(3))
def test_coupling_is_the_best_of_all_orders(seed):
    x0,ε = noise(5, *SIZE, seed=seed), noise(5, *SIZE, seed=seed+10)
    best = min(cost(x0[list(i)], ε) for i in itertools.permutations(range(5)))
    assert cost(x0[coupling(x0, ε)], ε) == pytest.approx(best)

def test_on_a_line_it_is_the_order():
    "In one dimension the best coupling sorts both"
    x0,ε = noise(50, 1, 1, 1), noise(50, 1, 1, 1, seed=3)
    assert torch.equal(x0[coupling(x0, ε)].flatten()[ε.flatten().argsort()], x0.flatten().sort().values)

class Learn:
    "What the two callbacks need of a learner"
    training = True
    def __init__(self, x0, y=None): self.model,self.batch = nn.Identity(), (x0,) if y is None else (x0, y)

def batch(x0, y=None, couple=True, form=flow()):
    learn = Learn(x0, y); torch.manual_seed(7); cb = NoiseCB(form, vrange=None, drop=None if y is None else 0.); cb.before_fit(learn)
    if couple: CouplingCB(form).before_batch(learn)
    cb.before_batch(learn)
    return learn.batch

def ends(x, t, F):
    "x0 and ε of a batch of rectified flow"
    t = t.view(-1, 1, 1, 1)
    return x - t*F, x + (1-t)*F

@pytest.mark.parametrize('form', [flow(), flow_logit()], ids=['flow', 'logit'])
def test_callback_pairs_as_the_coupling_says_and_leaves_both_ends_alone(form):
    "The same images, the same noise, the same times; only the partners differ, and they are the nearest"
    x0 = noise(32, *SIZE).float(); (a,t,F),(b,s,G) = batch(x0, couple=False, form=form), batch(x0, form=form)
    (x,ε),(y,η) = ends(a, t, F), ends(b, s, G)
    assert torch.equal(t, s); torch.testing.assert_close(ε, η, rtol=0, atol=1e-5)
    i = coupling(x0, η); torch.testing.assert_close(y, x0[i], rtol=0, atol=1e-5)
    assert sorted(i.tolist()) == list(range(32)) and cost(y, η) < cost(x, ε)

def test_labels_stay_with_their_images():
    x0 = noise(16, *SIZE).float(); x,t,y,F = batch(x0, torch.arange(16))
    torch.testing.assert_close(ends(x, t, F)[0], x0[y], rtol=0, atol=1e-5)

def test_validation_is_not_coupled():
    learn = Learn(noise(8, *SIZE).float()); learn.training,was = False, learn.batch
    CouplingCB(flow()).before_batch(learn)
    assert learn.batch is was

# --- times

@pytest.mark.parametrize('mean,std', [(0., 1.), (.5, .6)])
def test_logit_normal_times(mean, std):
    "Against its density's distribution function (Esser et al. 2024, eq. 19)"
    t = flow_logit(mean=mean, std=std).draw(20_000, torch.Generator().manual_seed(0)); assert 0 < t.min() and t.max() < 1
    for q in (.2, .5, .8):
        want = .5*(1+math.erf((math.log(q/(1-q))-mean)/(std*2**.5)))
        assert abs((t < q).float().mean().item()-want) < 4*.5/20_000**.5

def test_a_card_gives_the_form_back(): assert as_form(flow_logit(mean=.2, std=.7).card()) == flow_logit(mean=.2, std=.7)

def test_times_without_width():
    with pytest.raises(ValueError, match='std must be above 0, got 0'): flow_logit(std=0.)

# --- MeanFlow

S = .25
def width(t): return ((1-t)**2*S**2+t**2)**.5

class Mean(nn.Module):
    "The exact mean velocity of pixels N(0, S²): the flow is x_r = x_t·w(r)/w(t)"
    def forward(self, x, t, r):
        t,r = t.view(-1,1,1,1), r.view(-1,1,1,1)
        h = torch.where(t > r, t-r, torch.ones_like(t)); v = x*(t-(1-t)*S**2)/width(t)**2
        return torch.where(t > r, x*(1-width(r)/width(t))/h, v)

def test_one_step_of_the_exact_mean_velocity_is_exact():
    z,den = noise(6, *SIZE), MeanDenoiser(Mean())
    for n in (1, 2, 5): torch.testing.assert_close(sample(den, 6, step_leap, levels=flow_grid(n), x=z, dtype=torch.float64, device='cpu'), S*z, rtol=0, atol=1e-9)

def test_at_one_level_it_is_the_velocity():
    "And so agrees with the denoiser of that Gaussian, on any path"
    l = Level(0., .8, .5); x = noise(6, *SIZE); got,want = MeanDenoiser(Mean())(x, l), Gaussian(0., S)(x, l)
    for a,b in zip(got, want): torch.testing.assert_close(a, b, rtol=0, atol=1e-9)

def test_identity_holds_for_the_exact_mean_velocity():
    "Averaged over the images that a point may have come from, target and prediction are equal (eq. 6)"
    n = 20_000; x0,ε = S*noise(n, 1,1,1), noise(n, 1,1,1, seed=2); t,r = torch.full((2, n), .7, dtype=torch.float64); r = r-.4
    x,target = meanflow_target(Mean(), x0, ε, t, r); k = Mean()(x, t, r)
    slope = ((x*target).mean()/x.square().mean()).item()                            # both are linear in x
    assert slope == pytest.approx(((x*k).mean()/x.square().mean()).item(), abs=4*target.std().item()/(n**.5*x.std().item()))

def test_target_is_the_velocity_where_both_times_are_one():
    x0,ε,t = noise(4, *SIZE), noise(4, *SIZE, seed=2), torch.rand(4, dtype=torch.float64)
    assert torch.equal(meanflow_target(Mean(), x0, ε, t, t)[1], ε-x0)

def test_derivative_is_that_of_finite_differences():
    "du/dt along (v, 1, 0), v being the network's own velocity"
    x0,ε = noise(4, *SIZE), noise(4, *SIZE, seed=2); t,r,h = *torch.tensor([[.8]*4, [.3]*4], dtype=torch.float64), 1e-5
    x,target = meanflow_target(Mean(), x0, ε, t, r); v = Mean()(x, t, t)
    slope = (Mean()(x+h*v, t+h, r)-Mean()(x-h*v, t-h, r))/(2*h)
    torch.testing.assert_close(target, ε-x0-.5*slope, rtol=0, atol=1e-6)

@pytest.mark.parametrize('apart', [0., .5, 1.])
def test_callback_orders_the_times(apart):
    learn = Learn(noise(2000, *SIZE).float()); learn.model = Mean(); torch.manual_seed(0); MeanFlowCB(apart).before_batch(learn)
    x,t,r,target = learn.batch
    assert (r <= t).all() and not target.requires_grad and abs((r < t).float().mean().item()-apart) < .05

def test_any_denoiser_takes_the_leap():
    "Who does not look at where the step ends makes DDIM's"
    z = 80*noise(4, 1,1,1); ls = levels(flow(), [.9, .5])
    assert torch.equal(walk(Gaussian(), z, ls, step_leap).x, walk(Gaussian(), z, ls, step_ddim).x) and Leap(*ls[0], ls[1]).to.sigma == .5
