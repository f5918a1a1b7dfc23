"DDIM (Song et al. 2020): diffusers' step and times, DDPM as η = 1, the exact way of a Gaussian, diffusers' networks"
import math
import pytest
import torch
from miniai.diffusion import ddpm, levels
from miniai.denoiser import clip_x0, Denoiser
from miniai.ddim import sample_ddim, step_ddim, subsequence
from miniai.bridge import from_diffusers
from oracles import f64, Gaussian, gen, Knows, level, Network, noise, one_step, order, walk

COUNTS = 1000, 333, 200, 100, 50, 25, 13, 7       # some divide 1000, some do not
ALL = ddpm()

def scheduler(**kw):
    from diffusers import DDIMScheduler
    return DDIMScheduler(beta_end=.02, **kw)

@pytest.mark.parametrize('spacing', ['leading', 'trailing'])
@pytest.mark.parametrize('n', COUNTS)
def test_the_times_are_diffusers(n, spacing):
    sch = scheduler(timestep_spacing=spacing); sch.set_timesteps(n)
    assert subsequence(n, 1000, spacing) == sch.timesteps.tolist()

@pytest.mark.parametrize('clip', [False, True])
@pytest.mark.parametrize('eta', [0., .5, 1.])
def test_the_step_is_diffusers(eta, clip):
    for n in COUNTS:
        sch = scheduler(clip_sample=clip); sch.set_timesteps(n)
        for t in sch.timesteps[::max(1, n//7)]:
            x,ε,z = torch.randn(3, 2,1,4,4, generator=gen(int(t))).unbind(0)
            theirs = sch.step(ε, t, x, eta=eta, variance_noise=z, use_clipped_model_output=clip).prev_sample
            l = level(ALL, int(t)); prev = int(t) - 1000//n
            m = level(ALL, prev) if prev >= 0 else levels(ALL, [0])[-1]          # the clean image
            den = Denoiser(lambda x, t: ε, ALL)
            ours = one_step(step_ddim, clip_x0(den) if clip else den, x, l, m, lambda: z, eta=eta)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)       # their table of ᾱ is float32

def test_a_whole_run_is_diffusers():
    "20 calls, x̂0 kept in ±1, the same noise to start from"
    net = lambda x, t: .9*x + .1*x.tanh()
    sch = scheduler(); sch.set_timesteps(20)
    x = torch.randn((2,1,8,8), generator=gen())
    for t in sch.timesteps: x = sch.step(net(x, t), t, x, use_clipped_model_output=True).prev_sample
    ours = sample_ddim(net, (2,1,8,8), 20, clip=True, device='cpu', generator=gen())
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4)

def test_eta_of_1_is_ddpm_s_posterior():
    "Mean and variance of q(x_{t-1}|x_t, x0) (Ho et al. 2020, eq. 6 and 7)"
    x,x0 = noise(2,5,1,2,2).unbind(0)
    for t in (1, 10, 300, 999):
        (α,_),(α_p,_) = (ALL.path(torch.tensor(i)) for i in (t, t-1))
        ᾱ,ᾱ_p = α**2,α_p**2; β = 1-ᾱ/ᾱ_p
        step = lambda z: one_step(step_ddim, Knows(x0), x, level(ALL, t), level(ALL, t-1), lambda: z, eta=1.)
        mean,one = step(torch.zeros_like(x)), step(torch.ones_like(x))
        torch.testing.assert_close(mean, (ᾱ_p.sqrt()*β*x0 + (1-β).sqrt()*(1-ᾱ_p)*x)/(1-ᾱ), rtol=0, atol=1e-10)
        torch.testing.assert_close((one-mean)**2, ((1-ᾱ_p)/(1-ᾱ)*β).expand_as(x), rtol=0, atol=1e-10)

def test_between_no_noise_and_ddpm_s():
    "Whatever η, an image noised to one level is, after the step, the image noised to the next: the variance adds up"
    x0 = noise(200_000, seed=2); l,m = level(ALL, 600), level(ALL, 400)
    x = float(l.alpha)*x0 + float(l.sigma)*noise(200_000, seed=3)
    for η in (0., .3, 1.):
        y = one_step(step_ddim, Knows(x0), x, l, m, lambda: noise(200_000, seed=4), eta=η)
        assert abs((y-float(m.alpha)*x0).std()/float(m.sigma)-1) < 5/(2*200_000)**.5, η

def test_without_eta_nothing_is_drawn():
    def never(): raise AssertionError('noise was drawn')
    walk(Gaussian(), noise(2,1,2,2), levels(ALL, subsequence(10)), step_ddim, never)
    with pytest.raises(AssertionError): walk(Gaussian(), noise(2,1,2,2), levels(ALL, subsequence(10)), step_ddim, never, eta=1.)

def test_a_gaussian_comes_out_as_it_is():
    den = Gaussian(.3, .5); net = Network(den, ALL)
    x = sample_ddim(net, (20,1,40,40), 1000, device='cpu', generator=gen(7))
    assert abs(x.mean()-.3) < .01 and abs(x.std()-.5) < .01

def test_the_order_is_1():
    "Twice the calls, half the error, on the exact way of a Gaussian"
    den,z,ns = Gaussian(.3, .5), noise(100), [10, 20, 50, 100, 200]
    errors = []
    for n in ns:
        ls = levels(ALL, subsequence(n, 1000, 'trailing'))
        errors.append((walk(den, den.at(ls[0], z), ls, step_ddim).x - den.at(ls[-1], z)).abs().mean().item())
    assert abs(order(errors, ns) - 1) < .15, errors

def test_one_call_is_one_guess():
    "A single step to the clean image returns x̂0 of the noise"
    x = noise(3,1,4,4); l = level(ALL, 999)
    for η in (0., 1.):
        y = one_step(step_ddim, Gaussian(), x, *levels(ALL, [999]), lambda: noise(3,1,4,4, seed=9), eta=η)
        torch.testing.assert_close(y, Gaussian()(x, l)[0], rtol=0, atol=1e-12)

@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction', 'sample'])
def test_networks_of_diffusers(kind):
    "A U-Net and a scheduler of diffusers, in our loop and in theirs"
    from diffusers import UNet2DModel
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16,32), norm_num_groups=8,
                       down_block_types=('DownBlock2D',)*2, up_block_types=('UpBlock2D',)*2).eval()
    sch = scheduler(prediction_type=kind, clip_sample=False); sch.set_timesteps(10)
    x = start = torch.randn(2,1,8,8, generator=gen())
    with torch.no_grad():
        for t in sch.timesteps: x = sch.step(unet(x, t).sample, t, x).prev_sample
    den = from_diffusers(unet, sch)
    ours = walk(den, start, levels(den.form, sch.timesteps.tolist()), step_ddim).x
    assert (ours-x).abs().max() < 2e-3*x.abs().max()

def test_a_scheduler_of_an_unknown_kind():
    sch = scheduler(prediction_type='epsilon'); sch.register_to_config(prediction_type='score')
    with pytest.raises(ValueError, match=r"predicts 'score'; known are"): from_diffusers(torch.nn.Identity(), sch)

# --- bad input

def test_times_that_rise():
    with pytest.raises(ValueError, match='must fall from noise to image'): levels(ALL, [10, 20])

@pytest.mark.parametrize('n', [0, -1, 1001])
def test_how_many_times(n):
    with pytest.raises(ValueError, match=f'between 1 and T=1000, got {n}'): subsequence(n)

def test_another_spacing():
    with pytest.raises(ValueError, match="'leading' or 'trailing', got 'middle'"): subsequence(10, spacing='middle')

@pytest.mark.parametrize('eta', [-1, math.nan, math.inf])
def test_eta(eta):
    with pytest.raises(ValueError, match=r'must be 0.* or more, and finite; got'): sample_ddim(lambda x, t: x, (2,1,4,4), 3, eta=eta, device='cpu')

def test_a_network_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r'was given \(2, 1, 4, 4\) and returned \(1, 1, 4, 4\)'): sample_ddim(lambda x, t: x[:1], (2,1,4,4), 3, device='cpu')
