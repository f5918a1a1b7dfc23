"The names that the tests of diffusion use: those of the new modules where they are there, else today's functions in the same shape"
import math
from functools import partial
import torch
import torch.nn.functional as F
from miniai.learner import DeviceCB, Learner, MetricsCB, TrainCB

try:
    from miniai.diffusion import (Denoiser, Level, NoiseCB, clip_x0, ddpm, eps_pred, image_noise, levels, noisify, sample_ddpm,
                                  sample_loop, step_ddpm, unmix)
    from miniai.ddim import sample_ddim, step_ddim, subsequence
    from miniai.schedules import (T_MAX, abar, chen, cosine, cosine_gamma, inv_abar, linear_gamma, log_snr, sample_grid,
                                  sigmoid_gamma, uniform_grid, v_pred, x0_pred)
    from miniai.karras import (draw_sigmas, edm, scalings, sigmas_karras, step_churn, step_dpmpp_2m, step_heun, step_lms, ve)
    from miniai.solvers import SOLVERS, flow, flow_pred, get_solver, logsnr_grid, sample, step_dpmpp_3m, step_unipc
    NEW = True
    def generate(den, shape, ls, step, **kw): return sample(den, shape, step, levels=ls, device='cpu', **kw)
    def training(form, **kw): return [NoiseCB(form, **kw), TrainCB(n_inp=2)]
    def edm_pred(alpha, sigma, sigma_data=.5): return edm(sigma_data).pred(alpha, sigma)
except ImportError:
    from miniai import diffusion as d
    from miniai import ddim as _ddim, ddpm as _ddpm, schedules as s
    from miniai.ddim import subsequence
    from miniai.diffusion import *
    from miniai.diffusion import noisify_form as noisify, one_loop as sample_loop, solver as get_solver
    from miniai.karras import draw_sigmas, scalings, sigmas_karras
    from miniai.schedules import T_MAX, abar, cosine_gamma, inv_abar, linear_gamma, log_snr, sigmoid_gamma
    NEW = False
    PREDS = dict(eps=d.eps_pred, x0=d.x0_pred, v=d.v_pred)
    class _Form(d.Formulation): pass
    def ddpm(n_steps=1000, beta_min=1e-4, beta_max=.02, predicts='eps'):
        sch = _ddpm.ddpm_schedule(n_steps, beta_min, beta_max)
        a = (1-torch.linspace(beta_min, beta_max, n_steps, dtype=torch.float64)).cumprod(0)
        f = _Form(*d.ddpm_form(a, PREDS[predicts])); f.abar,f.n_steps,f.schedule = a, n_steps, sch
        return f
    def cosine(predicts='eps'): return _Form(*d.cosine_form(PREDS[predicts]))
    def edm(*args, **kw): return _Form(*d.edm_form(*args, **kw))
    def flow(): return _Form(*d.flow_form())
    def chen(family='cosine', start=0., end=1., tau=1., b=1., data_std=1.):
        γ = s.linear_gamma if family == 'linear' else partial(getattr(s, f'{family}_gamma'), start=start, end=end, tau=tau)
        f = _Form(*d.cosine_form())._replace(name='chen', path=lambda t: s.alpha_sigma(γ(t), b), scale=lambda α,σ: 1/(α**2*data_std**2+σ**2)**.5)
        f.gamma = γ
        return f
    def levels(path, ts): return d.levels(getattr(path, 'path', path), [t if isinstance(t, int) else float(t) for t in ts])
    def generate(den, shape, ls, step, **kw): return d.generate(den, shape, ls, step, device='cpu', **kw).x
    def training(form): return [d.DiffusionCB(form)]
    def sample_ddpm(net, shape, form=None, **kw):
        return _ddpm.sample_ddpm(net, shape, form and form.schedule, **kw)
    def sample_ddim(net, shape, n_steps=100, eta=0., form=None, **kw):
        return _ddim.sample_ddim(net, shape, n_steps, eta, form and form.schedule.abar, **kw)
    def sample_grid(net, shape, n_steps=100, form=None, eta=0., t_max=T_MAX, **kw):
        if form is None: return s.sample_grid(net, shape, n_steps, eta=eta, t_max=t_max, **kw)
        γ = lambda t: form.path(t)[0]**2
        told = lambda x, t: net(x, form.time(*(o.float() for o in form.path(t.double()))))
        return s.sample_grid(told, shape, n_steps, γ, eta, t_max, **kw)
    def uniform_grid(n, t_max=T_MAX, t_min=0.): return d.uniform_grid(n, t_max, t_min)
    def logsnr_grid(n, sigma_min=.01, sigma_max=80.): return d.logsnr_grid(n, sigma_max, sigma_min)

def level(path, t):
    "The `Level` of a path or form at time t"
    return levels(path, [t])[0]

def walk(den, x, ls, step, randn=None, **kw):
    "Where a loop is at its end, a `Now`"
    for now in sample_loop(den, x, ls, step, randn, **kw): pass
    return now

def one_step(step, den, x, l, m, randn=None, **kw):
    "x after one step from level l to level m"
    return walk(den, x, [l, m], step, randn, **kw).x

def fit(form, net, dls, epochs=2, lr=.05, cbs=()):
    "The history of a short training"
    m = MetricsCB()
    m._log = lambda d: None
    Learner(net, dls, F.mse_loss, lr=lr, cbs=[DeviceCB('cpu'), *training(form), m, *cbs], opt_func=torch.optim.Adam).fit(epochs)
    return m.history
