"What all forms, steps and samplers have in common: cards, one's own parts, labels, batches, starting points, NaN"
import dataclasses, json, math
from dataclasses import dataclass, field
import pytest
import torch
from torch import nn
from common import run_python
from miniai import karras
from miniai.accel import AccelerateCB, MixedPrecision
from miniai.bridge import edm_minus, from_diffusers, table, to_diffusers
from miniai.core import load, save
from miniai.datasets import DataLoaders
from miniai.ddim import sample_ddim, step_ddim
from miniai.denoiser import Denoiser, WrappedDenoiser, as_denoiser, clip_x0, image_noise, sample_ddpm
from miniai.diffusion import FORMS, DDPMCB, Form, NoiseCB, as_form, check_images, ddpm, levels, noisify, ratio, sample_loop, step_ddpm
from miniai.flow import flow_logit
from miniai.guidance import guided
from miniai.karras import edm, ve
from miniai.learner import Callback, Learner, MetricsCB, TrainCB
from miniai.recipes import Card, diffusion_learner, load_denoiser, save_denoiser, small_unet
from miniai.schedules import cosine, sample_grid
from miniai.solvers import SOLVERS, flow, invert, sample
from oracles import Gaussian, Network, TwoValues, f64, fit, gen, level, noise, walk

EVERY = dict(ddpm=ddpm(), ddpm_v=ddpm(predicts='v'), short=ddpm(n_steps=50, beta_max=.3), cosine=cosine(), cosine_x0=cosine(predicts='x0'),
             edm=edm(), edm_own=edm(.7, -1., 1.4), flow=flow(), flow_1000=flow(1000.))
FORM = pytest.mark.parametrize('form', EVERY.values(), ids=EVERY)

# --- a form and its card

@FORM
def test_a_form_comes_back_from_its_card(form):
    assert as_form(json.loads(json.dumps(form.card()))) == form == as_form(form)
    assert form.card()['name'] in FORMS and hash(form) == hash(as_form(form.card()))

def test_a_form_of_its_name_alone(): assert as_form('edm') == edm() and as_form(dict(name='ddpm')) == ddpm()

@pytest.mark.parametrize('bad,says', [('gan', "no form 'gan': there are ddpm"), (dict(sigma_data=.5), 'a form has a name'), (None, 'a form has a name'), ({}, 'a form has a name'),
                                      (dict(name='edm', T=5), "the form 'edm' does not take"), (dict(name='ddpm', predicts='w'), "no prediction 'w': there are"),
                                      (dict(name='edm', sigma_data=-1), 'sigma_data must be above 0')], ids=str)
def test_forms_that_are_none(bad, says):
    with pytest.raises(ValueError, match=says) as e: as_form(bad)
    assert '\n' not in str(e.value)

@FORM
def test_forms_do_not_change(form):
    with pytest.raises(dataclasses.FrozenInstanceError): form.predicts = 'x0'

OWN = '''
import math, torch
from dataclasses import dataclass
from miniai.diffusion import Form, prediction
from miniai.solvers import SOLVERS

@prediction
def half_pred(alpha, sigma): return .5, -1.                       # F = x0/2 - ε

@dataclass(frozen=True)
class quartic(Form):
    speed:float = 1.
    def path(self, t): return 1-t**2, (self.speed*t**2).clamp(min=1e-3)
    def time(self, alpha, sigma): return (sigma/alpha).log()

def step_twice(run, x, l, m):
    "Two looks at the same level, averaged: it changes nothing, and shows that it was called"
    (a,e),(b,f) = run(x, l), run(x, l)
    return m.alpha*(a+b)/2 + m.sigma*(e+f)/2
SOLVERS['twice'] = step_twice
'''

def test_parts_of_one_s_own_in_another_process(tmp_path):
    "A form with its path, a prediction and a step, trained here, saved in a card, loaded and sampled there"
    (tmp_path/'mine.py').write_text(OWN, encoding='utf-8'); path = f'{str(tmp_path)!r}'
    train = f"""
import sys; sys.path.insert(0, {path})
import mine, torch
from miniai.core import set_seed
from miniai.datasets import DataLoaders
from miniai.recipes import *
set_seed(0); b = [(torch.rand(8,1,8,8)*2-1,)]*2; learn = diffusion_learner(DataLoaders(b, b[:1]), mine.quartic(2., predicts='half'), bf16=False)
learn.fit(1); form = learn.model.form
save_denoiser(learn.model, {path}+'/w', Card(config=learn.model.config, form=form.card(), size=[1,8,8], data='noise', n_train=16, recipe='test', epochs=1, lr=2e-3, bs=8, ema=0., seed=0, cpu_seconds=0., history=learn.metrics.history))
"""
    draw = f"""
import sys; sys.path.insert(0, {path})
import torch
from miniai.recipes import load_denoiser
from miniai.diffusion import as_form
from miniai.solvers import sample
for n,p in (('ddpm', 'v'), ('cosine', 'x0'), ('edm', 'edm'), ('flow', 'flow')): as_form(dict(name=n, predicts=p))     # who loads knows ours
try: load_denoiser({path}+'/w')
except ValueError as e: print(e)
import mine
den = load_denoiser({path}+'/w', dtype=None); print(den.form)
a,b = (sample(den, 3, s, steps=4, device='cpu') for s in ('twice', 'ddim'))
assert a.shape == (3,1,8,8) and a.isfinite().all() and torch.allclose(a, b, atol=1e-4), (a-b).abs().max()
"""
    p = run_python(train); assert p.returncode == 0, p.stderr[-2000:]
    p = run_python(draw); assert p.returncode == 0, p.stderr[-2000:]
    refused,form = p.stdout.splitlines()
    assert "no form 'quartic': there are ddpm, " in refused and 'known once its module is imported' in refused and form == "quartic(predicts='half', speed=2.0)"

OURS = dict(flow_logit=flow_logit(mean=.2), table=table(values=(.9, .5, .1)), edm_minus=edm_minus(.7), cosine_v=cosine(predicts='v'), edm=edm(.7), flow=flow(1000.), ddpm=ddpm(50))

def test_cards_of_every_form_of_ours_in_another_process(tmp_path):
    "Who loads a card need not know which module its form is in"
    kinds = {f.__name__ for f in FORMS.values() if f.__module__.startswith('miniai.')}
    assert {type(f).__name__ for f in OURS.values()} == kinds
    for nm,form in OURS.items(): net = small_unet(); save(net, tmp_path/nm, config=net.config, form=form.card(), size=[1,8,8])
    p = run_python(f"""
from miniai.recipes import load_denoiser
for nm in {list(OURS)}: print(load_denoiser({str(tmp_path)!r}+'/'+nm, 'cpu').form)
""")
    assert p.returncode == 0 and p.stdout.splitlines() == [str(f) for f in OURS.values()], p.stderr[-2000:]

def test_our_forms_are_known_by_name_wherever_one_begins():
    p = run_python("""
from miniai.diffusion import *
print(*(type(NoiseCB(nm).form).__name__ for nm in ['cosine', 'edm', 'flow', 'flow_logit', 'edm_minus']), *(ddpm(predicts=nm).predicts for nm in ('x0', 'v', 'flow')))
""")
    assert p.stdout.split() == ['cosine', 'edm', 'flow', 'flow_logit', 'edm_minus', 'x0', 'v', 'flow'], p.stderr[-2000:]

def test_a_form_without_a_path():
    @dataclass(frozen=True)
    class nowhere(Form): pass
    try:
        with pytest.raises(NotImplementedError, match=r'nowhere needs a method `path\(t\)`'): noisify(torch.zeros(2,1,4,4), nowhere())
    finally: FORMS.pop('nowhere')

def test_a_card_without_a_form(tmp_path):
    net = small_unet(); save(net, tmp_path/'w', config=net.config)
    with pytest.raises(ValueError, match='lacks `form`'): load_denoiser(tmp_path/'w')

def test_the_package_s_own_weights_load():
    for nm in ('fashion_edm', 'fashion_ddpm'): assert load_denoiser(nm, 'cpu').size == [1,28,28]

# --- who trains

class Net(nn.Module):
    def __init__(self): super().__init__(); torch.manual_seed(3); self.conv = nn.Conv2d(2, 1, 3, padding=1)
    def forward(self, x, t): return self.conv(torch.cat([x, t[:,None,None,None].expand_as(x)/1000], 1))

def dls(n=3, bs=16):
    xs = torch.randn(n, bs,1,8,8, generator=gen()).clamp(-1, 1)
    return DataLoaders([(x,) for x in xs], [(xs[0],)])

def losses(form, verbs=None, **kw): torch.manual_seed(4); return [h['loss'] for h in fit(form, Net(), dls(), verbs=verbs, **kw)]

class FlagCB(TrainCB):
    "bfloat16 as an option of the callback that noises once did it: the model alone under autocast, what it says in float32"
    def predict(self, learn):
        with torch.autocast('cpu', torch.bfloat16): learn.preds = learn.model(*learn.batch[:2])
        learn.preds = learn.preds.float()

@FORM
def test_half_precision_goes_with_every_form(form):
    a,b = losses(form, MixedPrecision(n_inp=2, device='cpu')), losses(form, FlagCB(n_inp=2))
    assert a == b and a != losses(form)

@FORM
def test_accelerate_goes_with_every_form(form):
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(True)
    assert losses(form, AccelerateCB(n_inp=2, cpu=True)) == losses(form)

def test_lessons_callback_is_both():
    torch.manual_seed(4); net,m = Net(), MetricsCB(); m._log = lambda d: None
    Learner(net, dls(), nn.functional.mse_loss, lr=.05, cbs=[DDPMCB(vrange=None), m], opt_func=torch.optim.Adam).fit(2)
    assert [h['loss'] for h in m.history] == losses(ddpm()) and net.form == ddpm()

def test_the_recipe_trains_every_form():
    for form in ('ddpm', 'cosine', 'edm', dict(name='flow')):
        learn = diffusion_learner(dls(), form, Net()); learn.fit(1)
        got,want = as_denoiser(learn.model).form, as_form(form)
        if form == 'edm': want = edm(sigma_data=round(dls().train[0][0].std().item(), 4))     # measured
        assert got == want and sample(learn.model, 2, steps=2, size=(1,8,8)).isfinite().all()

# --- images that are none

GOOD = torch.randn(4,1,16,16, generator=gen()).clamp(-1, 1)
@pytest.mark.parametrize('x,says', [((GOOD+1)/2, r'pixels lie in 0…1, but -1…1 is expected'), ((GOOD+1)*127.5, r'pixels lie in 0…255'), (GOOD.permute(0,2,3,1), r'use x.permute\(0,3,1,2\)'),
                                    (GOOD[:,0], r'float images N×C×H×W, got \(4, 16, 16\)'), (GOOD.byte(), 'torch.uint8'), ([1], 'got list')], ids=['unit', 'bytes', 'hwc', 'nhw', 'uint8', 'list'])
def test_images_out_of_shape_or_range(x, says):
    with pytest.raises(ValueError, match=says): check_images(x)

def test_a_fit_looks_at_its_images():
    b = [((GOOD+1)/2,)]
    with pytest.raises(ValueError, match='pixels lie in'): Learner(Net(), DataLoaders(b, b), nn.functional.mse_loss, cbs=[NoiseCB(cosine()), TrainCB(n_inp=2)]).fit(1)
    check_images(GOOD); check_images((GOOD+1)/2, vrange=(0,1)); check_images((GOOD+1)/2, vrange=None)

@pytest.mark.parametrize('shape', [(1,3,32,32), (4,1,8,8)], ids=['one image', 'few pixels'])
def test_bright_images_are_no_fault(shape):
    "Their first batch does not say in which range the others are"
    check_images(torch.rand(shape, generator=gen())*.49 + .4)

# --- labels

class Labelled(nn.Module):
    n_classes = 3
    def __init__(self): super().__init__(); self.emb = nn.Embedding(4, 1); self.seen = []; torch.manual_seed(2); nn.init.normal_(self.emb.weight)
    def forward(self, x, t, y=None):
        y = torch.full((len(x),), -1) if y is None else y; self.seen.append(y)
        return .1*x + self.emb(y % 4)[:,:,None,None]

def labelled_dls(): b = [(GOOD[...,:8,:8], torch.tensor([0,1,2,0]))]*50; return DataLoaders(b, b[:2])

@pytest.mark.parametrize('drop', [0., .3])
@pytest.mark.parametrize('verbs', [TrainCB, MixedPrecision])
def test_labels_are_inputs_and_dropped(drop, verbs):
    net,m = Labelled(), MetricsCB(); m._log = lambda d: None
    kw = dict(device='cpu') if verbs is MixedPrecision else {}
    Learner(net, labelled_dls(), nn.functional.mse_loss, lr=.05, cbs=[NoiseCB(cosine(), drop), verbs(n_inp=3, **kw), m], opt_func=torch.optim.Adam).fit(1)
    train,valid = torch.cat(net.seen[:50]), torch.cat(net.seen[50:])
    share = (train == -1).double().mean()
    assert abs(share-drop) <= 4*(drop*(1-drop)/200)**.5 and valid.tolist() == [0,1,2,0]*2

def test_labels_where_none_are():
    with pytest.raises(ValueError, match='`drop` needs labels, but these batches hold none'): fit(cosine(), Labelled(), dls(), drop=.1, verbs=TrainCB(n_inp=3))
    with pytest.raises(ValueError, match=r'`drop` is a probability, got 1.5'): NoiseCB(cosine(), 1.5)

def test_labels_for_a_network_that_knows_none():
    net = Net(); net.form = cosine()
    with pytest.raises(ValueError, match='trained without labels: leave `y` out'): sample(net, 2, y=1, size=(1,8,8), device='cpu')

def test_no_labels_for_a_network_that_needs_them():
    den = Denoiser(Labelled(), cosine(), card=dict(drop=0))
    with pytest.raises(ValueError, match='trained with labels: give `y`'): sample(den, 2, size=(1,8,8), device='cpu')
    assert sample(den, 2, y=1, steps=2, size=(1,8,8), device='cpu').isfinite().all()

def test_what_training_left_of_the_labels():
    "A network from the recipe, without a card: trained with labels alone, with some left out, and again without any"
    x = torch.rand(8,1,8,8)*2-1; b = [(x, torch.arange(8)%3)]; kw = dict(size=(1,8,8), steps=2, device='cpu')
    learn = diffusion_learner((b, b), edm(.6), drop=0., n_classes=3, bf16=False); learn.fit(1)
    with pytest.raises(ValueError, match='trained with labels: give `y`'): sample(learn.model, 2, **kw)
    with pytest.raises(ValueError, match=r'never saw an image without one \(drop=0\)'): guided(Denoiser(learn.model), 2.)
    assert sample(learn.model, 2, y=1, **kw).isfinite().all() and sample(Denoiser(learn.model, card=dict(drop=.1)), 2, **kw).isfinite().all()
    diffusion_learner((b, b), edm(.6), learn.model, drop=.1, bf16=False).fit(1)
    assert sample(learn.model, 2, **kw).isfinite().all()

def test_batches_that_are_dicts_and_a_pair_of_loaders():
    "The same losses as from tuples in `DataLoaders`"
    x = torch.rand(16,1,8,8)*2-1; y = torch.arange(16)%3; tuples,dicts = [(x, y)]*2, [dict(image=x, label=y)]*2
    def losses(dls, **kw):
        torch.manual_seed(0); learn = diffusion_learner(dls, 'edm', bf16=False, **kw); learn.fit(1)
        return [h['loss'] for h in learn.metrics.history]
    a = losses(DataLoaders(tuples, tuples), drop=.5, n_classes=3)
    assert a == losses((tuples, tuples), drop=.5, n_classes=3) == losses((dicts, dicts), drop=.5, n_classes=3) and len(a) == 2
    assert losses((dicts, dicts)) == losses(DataLoaders([(x,)]*2, [(x,)]*2))

@pytest.mark.parametrize('y', [[0,1], [0,1,2,0]])
def test_one_label_for_each_image(y):
    with pytest.raises(ValueError, match=f'`y` is one label, or one for each of 3 images; got {len(y)}'): sample(Denoiser(Labelled(), cosine()), 3, y=y, size=(1,8,8), device='cpu')

# --- batches

class Towards(WrappedDenoiser):
    "Keeps what is known of each image: a denoiser that holds a measurement for each of them"
    def __init__(self, den, known): super().__init__(den); self.known = known
    def __call__(self, x, level, y=None):
        x0 = .5*super().__call__(x, level, y)[0] + .5*self.known
        return x0, (x-level.alpha*x0)/level.sigma
    def for_images(self, images): new = super().for_images(images); new.known = self.known[images]; return new

@pytest.mark.parametrize('name', ['dpmpp_2m', 'ancestral'])
def test_labels_and_measurements_survive_any_batch_size(name):
    den = clip_x0(Towards(Denoiser(Labelled(), cosine()), noise(7,1,4,4, seed=5).float())); y = torch.tensor([0,1,2,0,1,2,0])
    kw = dict(steps=5, y=y, size=(1,4,4), device='cpu'); a = sample(den, 7, name, **kw)
    for bs in (1, 2, 3, 7): torch.testing.assert_close(sample(den, 7, name, bs=bs, **kw), a, rtol=0, atol=1e-6)
    assert (sample(den, 7, name, **kw | dict(y=y.flip(0))) - a).abs().max() > 1e-2

def test_a_denoiser_round_a_denoiser_has_its_names():
    den = Denoiser(Labelled(), edm(), card=dict(size=[1,4,4])); round_ = clip_x0(clip_x0(den))
    assert round_.size == [1,4,4] and round_.form == edm() and round_.n_classes == 3 and sample(round_, 2, steps=2, device='cpu').shape == (2,1,4,4)
    with pytest.raises(AttributeError): round_.nothing

def test_a_size_nobody_said():
    with pytest.raises(ValueError, match='of which size are the images'): sample(Gaussian(), 2)

def of_card(size=(1,8,8), **card): return Denoiser(Net(), cosine(), card=dict(size=list(size)) | card)

@pytest.mark.parametrize('n,kw,says', [
    (2, dict(size=(3,8,8)), r'draws images of 1 channels \(its card says 1×8×8\), not 3×8×8'), ((2,3,8,8), {}, 'draws images of 1 channels'), (2, dict(x=noise(2,3,8,8)), 'draws images of 1 channels'),
    (2, dict(x=noise(2,1,4,4)), r'draws images 1×8×8, but these are 1×4×4: resize them, or say `size=\(1, 4, 4\)`'),
    (3, dict(x=noise(2,1,8,8)), 'x holds 2 images 1×8×8, but 3 of 1×8×8 are asked for'), (2, dict(x=noise(2,1,8,8), size=(1,4,4)), 'x holds 2 images 1×8×8, but 2 of 1×4×4 are asked for')], ids=str)
def test_images_that_the_network_does_not_draw(n, kw, says):
    "Channels never; another size where it was not said"
    with pytest.raises(ValueError, match=says) as e: sample(clip_x0(of_card()), n, steps=2, device='cpu', **kw)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('n,kw', [(2, dict(size=(1,4,4))), ((2,1,4,4), {}), (2, dict(size=(1,4,4), x=noise(2,1,4,4)))], ids=str)
def test_another_size_that_is_meant(n, kw): assert sample(of_card(), n, steps=2, device='cpu', **kw).shape == (2,1,4,4)

def test_as_many_as_there_is_noise(): assert sample(of_card(), None, x=noise(3,1,8,8), steps=2, device='cpu').shape == (3,1,8,8)

def test_inversion_of_another_size():
    with pytest.raises(ValueError, match='draws images 1×8×8'): invert(of_card(), noise(2,1,4,4), steps=2, device='cpu')

RISE = levels(cosine(), [.9, .5, .1])[::-1]         # from the clean image up
@pytest.mark.parametrize('ls', [RISE, [], RISE[:1], [RISE[2], RISE[1], RISE[2], RISE[0]]], ids=['rising', 'none', 'one', 'down and up'])
@pytest.mark.parametrize('own', [False, True])
def test_grids_of_the_wrong_direction(ls, own):
    "A grid may rise where it begins with images, as inversion's does; up and down is refused there too"
    kw = dict(x=noise(2,1,8,8)) if own else {}
    if own and ls is RISE: assert sample(of_card(), 2, 'ddim', levels=ls[1:], device='cpu', **kw).isfinite().all(); return
    with pytest.raises(ValueError, match='two levels or more must fall from noise to image'): sample(of_card(), 2, 'ddim', levels=ls, device='cpu', **kw)

def test_on_step_hears_of_every_step():
    heard = []; sample(Gaussian(), 5, 'ddim', steps=4, size=(1,2,2), bs=2, device='cpu', on_step=lambda i, now: heard.append((i, now.nfe)))
    assert heard == [(i,k) for i in (0, 2, 4) for k in (1, 2, 3, 4)]

# --- where sampling begins

KW = dict(device='cpu', dtype=torch.float64)

def test_noise_of_one_s_own():
    z = image_noise(0, 0, (3,1,4,4), 'cpu', torch.float64)()
    a = sample(TwoValues(), 3, steps=8, size=(1,4,4), **KW)
    torch.testing.assert_close(sample(TwoValues(), 3, steps=8, x=z, **KW), a, rtol=0, atol=1e-12)

def test_img2img_begins_at_its_level():
    "The images with noise of that level on them; from a little noise they come back, from much the data's distribution is left"
    x = .6*torch.ones(2000,1,1,1, **f64); first = []
    little = sample(TwoValues(s=.1), 2000, x=x, start=.05, steps=10, on_step=lambda i, now: first.append(now), **KW)
    assert (little-x).abs().max() < .5 and (little > 0).all()
    much = sample(TwoValues(s=.1), 2000, x=x, start=80., steps=20, **KW)
    assert abs((much > 0).double().mean()-.5) < 5*.5/2000**.5 and abs(much.std() - (.6**2+.1**2)**.5) < .03

def test_img2img_adds_the_noise_of_its_level():
    class Nothing(Gaussian):
        def __call__(self, x, level, y=None): self.x,self.level = getattr(self, 'x', x), getattr(self, 'level', level); return super().__call__(x, level)
    den,x = Nothing(), noise(5000,1,1,1); sample(den, 5000, x=x, start=3., steps=5, bs=5000, **KW)
    assert den.level.sigma == pytest.approx(3.) and abs((den.x-x).std()/3-1) < 5/10_000**.5

@pytest.mark.parametrize('kw,says', [(dict(start=1.), '`start` needs the images to begin with'), (dict(x=noise(2,1,2,2), start=-1.), 'a noise level σ/α above 0, got -1'), (dict(x=noise(2,1,2,2), start=0.), 'above 0, got 0'),
                                     (dict(x=noise(2,1,2,2), start=math.nan), 'above 0, got nan'), (dict(dtype=torch.bfloat16), 'images are float32 or float64, not torch.bfloat16')], ids=str)
def test_starts_that_are_none(kw, says):
    with pytest.raises(ValueError, match=says): sample(Gaussian(), 2, size=(1,2,2), device='cpu', **kw)

def test_inversion_on_a_gaussian():
    "A pixel at z standard deviations of the data becomes noise at z standard deviations, and comes back"
    den,z = Gaussian(.3, .5), noise(50,1,1,1); x = den.at(level(ve, .01), z)
    up = invert(den, x, steps=100, **KW)
    want = (den.at(level(ve, 80.), z))/80
    torch.testing.assert_close(up, want, rtol=0, atol=5e-3)
    torch.testing.assert_close(sample(den, 50, 'heun', steps=100, x=up, **KW), x, rtol=0, atol=5e-3)

def test_inversion_s_error_falls():
    "There and back again, to the level at which it began"
    den,x,errors = TwoValues(), .6*noise(200,1,1,1), []
    for n in (20, 40, 80):
        kept = []; sample(den, 200, 'heun', steps=n, x=invert(den, x, steps=n, **KW), on_step=lambda i, now: kept.append(now.x), bs=200, **KW)
        errors.append((kept[-2]-x).abs().mean().item())
    assert errors[0] > 2.5*errors[1] > 6*errors[2], errors

# --- NaN

class Breaks(nn.Module):
    "A network that is good for so many calls"
    n_classes = None
    def __init__(self, n, bad): super().__init__(); self.n,self.bad = n, bad
    def forward(self, x, t): self.n -= 1; return .9*x if self.n >= 0 else self.bad*x

def breaking(n, bad, form): net = Breaks(n, bad); net.form = form; return net

SAMPLERS = dict(
    ddpm=lambda n, b: sample_ddpm(breaking(n, b, ddpm(n_steps=10)), (2,1,4,4), ddpm(n_steps=10), device='cpu'),
    ddim=lambda n, b: sample_ddim(breaking(n, b, ddpm()), (2,1,4,4), 10, device='cpu'),
    grid=lambda n, b: sample_grid(breaking(n, b, cosine()), (2,1,4,4), 10, device='cpu'),
    karras=lambda n, b: karras.sample(karras.sample_euler, breaking(n, b, edm()), (2,1,4,4), 10, device='cpu'),
    invert=lambda n, b: invert(breaking(n, b, edm()), torch.zeros(2,1,4,4)+.1, 'ddim', 10, device='cpu'),
    loop=lambda n, b: walk(Denoiser(breaking(n, b, flow())), torch.randn(2,1,4,4), levels(flow(), torch.linspace(.9, .1, 10)), step_ddim),
    **{f'sample_{s}': lambda n, b, s=s: sample(breaking(n, b, edm()), 2, s, 10, size=(1,4,4), device='cpu') for s in SOLVERS})

@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('name', SAMPLERS)
def test_nan_is_the_same_error_everywhere(name, bad):
    for calls in (0, 4):
        with pytest.raises(FloatingPointError, match=rf'^the denoiser returned NaN or infinity in call {calls+1}, at σ/α=[\d.e+]+: look for it in the weights') as e: SAMPLERS[name](calls, bad)
        assert '\n' not in str(e.value)

def test_nan_in_one_pixel_of_one_image():
    def den(x, l, y=None): x0,ε = Gaussian()(x, l); x0[1,0,2,2] = math.nan; return x0, ε
    with pytest.raises(FloatingPointError, match='in call 1'): sample(den, 3, size=(1,4,4), device='cpu')

def test_nan_in_the_noise_of_the_last_call():
    def den(x, l, y=None): x0,ε = Gaussian()(x, l); return x0, ε*(math.nan if ratio(l) < .02 else 1)
    with pytest.raises(FloatingPointError, match=r'^the step returned NaN or infinity in call 5, at σ/α=0\.01: look'): sample(den, 3, 'ddim', 5, size=(1,4,4), device='cpu')

@pytest.mark.parametrize('at,said', [(1, 'the denoiser returned NaN or infinity in call 2'), (4, 'the denoiser returned NaN or infinity in call 5'), (5, 'the step returned NaN or infinity in call 5')])
def test_nan_that_a_step_makes(at, said):
    "The next call sees it; after the last one the loop looks itself"
    def step(run, x, l, m): y = step_ddim(run, x, l, m); return y/0 if run.nfe == at else y
    with pytest.raises(FloatingPointError, match=rf'^{said}, at σ/α=[\d.e+]+: look for it in '): sample(Gaussian(), 3, step, 5, size=(1,4,4), device='cpu')

def test_nan_on_the_way_to_noise():
    "A path that does not end in an image is looked at as well"
    def step(run, x, l, m): run(x, l); return x/0
    with pytest.raises(FloatingPointError, match='^the step returned NaN'): list(sample_loop(Gaussian(), torch.zeros(2,1,4,4), levels(flow(), [.5, .2])[1::-1], step))

def test_a_step_is_not_a_name():
    ls = levels(flow(), [.9, .5])
    for f in (lambda: list(sample_loop(Gaussian(), torch.randn(2,1,4,4), ls, 'ddim')), lambda: karras.sample('dpmpp_2m', Gaussian(), (2,1,4,4), device='cpu')):
        with pytest.raises(TypeError, match=r"^a step is a function, got '\w+': `miniai.solvers.sample` takes names$"): f()

# --- grids

@pytest.mark.parametrize('kw', [dict(sigma_min=1., sigma_max=.5), dict(sigma_min=0.), dict(sigma_max=math.inf), dict(rho=0.), dict(steps=0), dict(steps=2.5)], ids=str)
@pytest.mark.parametrize('f', [lambda **kw: sample(Gaussian(), 2, size=(1,2,2), device='cpu', **kw), lambda **kw: karras.sample(step_ddim, Gaussian(), (2,1,2,2), device='cpu', **kw),
                               lambda **kw: invert(Gaussian(), torch.zeros(2,1,2,2), device='cpu', **kw)], ids=['sample', 'karras', 'invert'])
def test_grids_that_are_none(f, kw):
    with pytest.raises(ValueError, match='expected: got|must be above 0|whole number of steps') as e: f(**kw)
    assert '\n' not in str(e.value)

def test_a_grid_of_nothing():
    with pytest.raises(ValueError, match='at least one time'): levels(ve, [])

# --- the loop itself

def test_a_denoiser_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r'the denoiser must return the shape it was given: \(2, 1, 4, 4\), not \(1, 1, 4, 4\)'):
        sample(lambda x, l: (x[:1], x[:1]), 2, size=(1,4,4), device='cpu')

def test_a_bar_changes_nothing(capsys):
    a,b = (sample_ddpm(lambda x, t: .9*x, (2,1,4,4), ddpm(n_steps=10), device='cpu', generator=gen(), progress=p) for p in (False, True))
    assert torch.equal(a, b)
    a,b = (sample(Gaussian(), 3, steps=4, size=(1,2,2), bs=2, device='cpu', progress=p) for p in (False, True))
    assert torch.equal(a, b)

def test_without_a_generator_torch_s_own():
    ls = levels(ve, [5., 1.]); torch.manual_seed(1); a = walk(Gaussian(), torch.ones(2,1,2,2), ls, step_ddim, eta=1.).x
    torch.manual_seed(1); assert torch.equal(walk(Gaussian(), torch.ones(2,1,2,2), ls, step_ddim, lambda: torch.randn(2,1,2,2), eta=1.).x, a)

def test_posterior_variance_is_ddim_s():
    "DDPM's step with β̃ is DDIM's with η = 1"
    x,z = noise(4,1,2,2), noise(4,1,2,2, seed=2); ls = levels(ddpm(), [500, 499])
    a,b = (next(sample_loop(Gaussian(), x, ls, step, lambda: z, **kw)).x for step,kw in ((step_ddpm, dict(posterior=True)), (step_ddim, dict(eta=1.))))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)

# --- diffusers, both ways

def test_ours_in_a_pipeline_of_theirs():
    "DDPMPipeline runs with our network and the scheduler of its form, from the card alone"
    from diffusers import DDPMPipeline
    form = ddpm(n_steps=5, beta_max=.5); unet,sch = to_diffusers(small_unet(), dict(form=form.card(), size=[1,8,8]))
    x = torch.randn(2,1,8,8, generator=gen()); t = torch.tensor(3)
    assert torch.equal(unet(x, t).sample, unet(x, t, return_dict=False)[0]) and torch.equal(unet(x, 3).sample, unet.net(x, torch.full((2,), 3.)))
    im = DDPMPipeline(unet, sch)(batch_size=2, num_inference_steps=5, output_type='np', generator=gen()).images
    assert im.shape == (2,8,8,1) and 0 <= im.min() and im.max() <= 1

def test_there_and_back():
    net = small_unet()
    for form in (ddpm(), ddpm(predicts='v'), ddpm(n_steps=50, beta_max=.3, predicts='x0')):
        unet,sch = to_diffusers(net, form, (1,8,8)); den = from_diffusers(unet, sch)
        assert den.form.predicts == form.predicts; torch.testing.assert_close(den.form.abar, form.abar, rtol=1e-4, atol=1e-6)
    for form in (edm(.7), flow(1000.)): assert from_diffusers(*to_diffusers(net, form, (1,8,8))).form == form
    with pytest.raises(ValueError, match='diffusers has no scheduler for'): to_diffusers(net, cosine(), (1,8,8))
    with pytest.raises(ValueError, match='of which size are the images'): to_diffusers(net, ddpm())

class Bent(nn.Module):
    "A network as diffusers has them: a time for all images, and an answer with a `sample`"
    def forward(self, x, t):
        out = lambda: None; out.sample = torch.tanh(x.roll(1, -1) + torch.as_tensor(t).float().reshape(-1,1,1,1).sin())
        return out

@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
def test_networks_of_edm_schedulers(kind):
    from diffusers import EDMEulerScheduler
    sch = EDMEulerScheduler(sigma_min=.01, sigma_max=80., sigma_data=.7, prediction_type=kind); sch.set_timesteps(10); x = start = 80*torch.randn(2,1,4,4, generator=gen())
    for t in sch.timesteps: x = sch.step(Bent()(sch.scale_model_input(x, t), t).sample, t, x).prev_sample
    ours = walk(from_diffusers(Bent(), sch), start, levels(ve, sch.sigmas[:-1].double()), step_ddim).x
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)

def test_networks_of_flow_matching_schedulers():
    from diffusers import FlowMatchEulerDiscreteScheduler
    sch = FlowMatchEulerDiscreteScheduler(); sch.set_timesteps(10); x = start = torch.randn(2,1,4,4, generator=gen())
    for t in sch.timesteps: x = sch.step(Bent()(x, t).sample, t, x).prev_sample
    ours = walk(from_diffusers(Bent(), sch), start, levels(flow(), sch.sigmas[:-1].double()), step_ddim).x
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)

def test_a_scheduler_that_ends_in_pure_noise():
    "Zero terminal SNR: a network that predicts v starts there"
    from diffusers import DDIMScheduler
    sch = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type='v_prediction'); form = from_diffusers(nn.Identity(), sch).form
    ls = levels(form, [999, 500, 10]); assert ls[0].alpha == 0 and ls[0].sigma == 1
    den = Denoiser(lambda x, t: .1*x, form); x = torch.randn(2,1,4,4)
    for step in (step_ddim, karras.step_heun, karras.step_lms, karras.step_dpmpp_2m): assert walk(den, x, ls, step).x.isfinite().all()

@pytest.mark.parametrize('bad', [(), (.5,), (.1, .5), (.9, .9), (1., .5), ((.9,.5),)], ids=str)
def test_tables_that_are_none(bad):
    with pytest.raises((ValueError, TypeError)): table(values=bad)

def test_a_table_is_ddpm_s():
    form = table(values=tuple(ddpm().abar.tolist())); t = torch.arange(1000)
    for a,b in zip(form.path(t), ddpm().path(t)): torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(form.beta, ddpm().beta, rtol=1e-9, atol=1e-12); assert as_form(json.loads(json.dumps(form.card()))) == form
