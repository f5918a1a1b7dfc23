"`suggest_sigmas`: known for Gaussian images, and it scales as its two arguments say; `diffusion_learner` measures for the form's name alone"
import math
import pytest
import torch
from miniai.datasets import DataLoaders, TensorLoader
from miniai.karras import edm
from miniai.recipes import diffusion_learner, measured_form, suggest_sigmas

def images(n=400, c=3, h=16, w=16): return .4*torch.randn(n,c,h,w, generator=torch.Generator().manual_seed(0))

def test_gaussian_images():
    "White noise of deviation 0.4: two of them are near 0.4·√(2D) apart, D numbers each"
    s = suggest_sigmas(images()); far = .4*math.sqrt(2*768)
    assert abs(s['sigma_data']-.4) < .005 and far < s['sigma_max'] < 1.2*far and s['P_std'] == 1.2

def test_what_karras_et_al_found_is_found():
    s = suggest_sigmas(images(h=32, w=32)*1.25); assert abs(s['P_mean']+1.2) < .02 and abs(s['sigma_data']-.5) < .005

def test_half_the_values_half_the_levels():
    a,b = suggest_sigmas(images()), suggest_sigmas(images()/2)
    assert abs(b['sigma_data']-a['sigma_data']/2) < 1e-4 and abs(b['sigma_max']-a['sigma_max']/2) < .1 and abs(b['P_mean']-a['P_mean']+math.log(2)) < .011

@pytest.mark.parametrize('k', [(2,2), (1,4)], ids=str)
def test_pixels_four_times_as_many(k):
    "Each pixel four times: the same images, whose noise averages to half"
    x = images(); a,b = suggest_sigmas(x), suggest_sigmas(x.repeat_interleave(k[0], 2).repeat_interleave(k[1], 3))
    assert b['sigma_data'] == pytest.approx(a['sigma_data'], abs=1e-4) and abs(b['sigma_max']-2*a['sigma_max']) < .2 and abs(b['P_mean']-a['P_mean']-math.log(2)) < .011

@pytest.mark.parametrize('x', [torch.zeros(5,1,4,4), torch.randn(1,1,4,4), torch.randn(5,4,4), torch.full((3,1,4,4), math.nan)], ids=['one colour', 'one image', 'three axes', 'nan'])
def test_no_images(x):
    with pytest.raises(ValueError, match='two images N×C×H×W or more'): suggest_sigmas(x)

def test_only_the_name_is_measured():
    u = torch.randint(100, 150, (64,1,8,8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)); dls = DataLoaders(TensorLoader(u, bs=16), TensorLoader(u))
    sd = (u/127.5-1).std().item(); assert abs(measured_form('edm', dls).sigma_data-sd) < 1e-4
    assert diffusion_learner(dls, 'edm', bf16=False).cbs[1].form.sigma_data == measured_form('edm', dls).sigma_data
    assert measured_form(edm(.5), dls) == edm(.5) and measured_form({'name': 'edm'}, dls) == edm() and measured_form('flow', dls).card()['name'] == 'flow'
    batches = DataLoaders([(dls.train.x[:32]/127.5-1,)], []); assert abs(measured_form('edm', batches).sigma_data-sd) < .01
