"Denoisers that are known exactly: what they return, and where the ODE carries a point; and the loop in one line"
import re
import math
import torch
import torch.nn.functional as F
from miniai.diffusion import Level, NoiseCB, levels, sample_loop
from miniai.karras import edm
from miniai.learner import DeviceCB, Learner, MetricsCB, TrainCB
from miniai.solvers import sample

f64 = dict(dtype=torch.float64)

def gen(seed=1): return torch.Generator().manual_seed(seed)

def noise(*shape, seed=1): return torch.randn(shape, generator=gen(seed), **f64)

def beside(o, x):
    "A level's number as it multiplies images: one for all, or one for each"
    o = torch.as_tensor(o, **f64)
    return o.reshape(-1, *[1]*(x.ndim-1)) if o.ndim else o

class Exact:
    "A denoiser `den(x, level) → (x̂0, ε̂)` of a distribution whose posterior mean is `x0(x, α, σ)`"
    def __call__(self, x, level, y=None):
        α,σ = beside(level.alpha, x), beside(level.sigma, x)
        x0 = self.x0(x.double(), α, σ)
        return x0.to(x.dtype), ((x-α*x0)/σ).to(x.dtype)

class Gaussian(Exact):
    "Pixels N(mean, std²)"
    def __init__(self, mean=.3, std=.5): self.mean,self.std = mean, std
    def x0(self, x, α, σ): return self.mean + α*self.std**2/(α**2*self.std**2+σ**2)*(x-α*self.mean)
    def at(self, level, z):
        "The ODE's way: at each level the point is as many standard deviations from the mean as at the start"
        α,σ = float(level.alpha), float(level.sigma)
        return α*self.mean + (α**2*self.std**2+σ**2)**.5*z

class TwoValues(Exact):
    "Pixels that are -m or m, give or take s"
    def __init__(self, m=.6, s=.3): self.m,self.s = m, s
    def x0(self, x, α, σ):
        v = α**2*self.s**2 + σ**2
        return (α*self.s**2*x + σ**2*self.m*(α*self.m*x/v).tanh())/v
    def cdf(self, level, x):
        "The share of all points at this level that are below x. In one dimension the ODE leaves it as it is"
        α,σ = float(level.alpha), float(level.sigma)
        v = (α**2*self.s**2 + σ**2)**.5
        return sum(.5*torch.special.ndtr((x-α*m)/v) for m in (-self.m, self.m))

class Bells(Exact):
    "Three bells in the plane; points N×2"
    centre = torch.tensor([[-1.,-.5], [.2,.9], [1.,-.6]], **f64)
    weight = torch.tensor([.5,.3,.2], **f64)
    std = .2
    def log_p(self, x, α, σ):
        "For points N×2 the log-density of each bell, N×3"
        v = α**2*self.std**2 + σ**2
        return self.weight.log() - (x[:,None]-α*self.centre).pow(2).sum(-1)/(2*v) - math.log(2*math.pi*v)
    def x0(self, x, α, σ):
        guess = self.centre + (x[:,None]-α*self.centre)*α*self.std**2/(α**2*self.std**2 + σ**2)
        return (self.log_p(x, float(α), float(σ)).softmax(-1)[...,None]*guess).sum(1)
    def truth(self, x, hi, lo):
        "Where the ODE carries points x from σ = hi to σ = lo (α = 1), by an integrator of order 8"
        from scipy.integrate import solve_ivp
        one = torch.tensor(1., **f64)
        def slope(l, y):                                                           # dx/d(log σ) = x - x̂0
            y = torch.tensor(y).view(-1, 2)
            return (y - self.x0(y, one, torch.tensor(math.exp(l), **f64))).ravel().numpy()
        way = solve_ivp(slope, (math.log(hi), math.log(lo)), x.ravel().numpy(), method='DOP853', rtol=1e-10, atol=1e-10)
        return torch.tensor(way.y[:,-1]).view(-1, 2)

class Knows:
    "A denoiser for one image and one noise that it knows"
    def __init__(self, x0, eps=None): self.true_x0,self.eps = x0, eps
    def __call__(self, x, level, y=None):
        return self.true_x0, (x-beside(level.alpha, x)*self.true_x0)/beside(level.sigma, x) if self.eps is None else self.eps

class Wavy(Exact):
    "A smooth denoiser of nobody's"
    def x0(self, x, α, σ): return torch.tanh(x/(1+σ)) + .3*(3*x/(α**2+σ**2)**.5).sin()

def ratio_of(form, t):
    "σ/α of a time that a network of this form is told"
    name = type(form).__name__
    if name == 'edm': return (4*t).exp()
    if name == 'flow': return t/(1-t)
    if name != 'ddpm': return (t*math.pi/2).tan()
    log_r = ((1-form.abar)/form.abar).log()/2
    i = t.floor().long().clamp(0, len(log_r)-2)
    return (log_r[i] + (t-i)*(log_r[i+1]-log_r[i])).exp()

class Network(torch.nn.Module):
    "The network that training in `form` would give in the end, if `den` is the exact denoiser of the data"
    def __init__(self, den, form): super().__init__(); self.den,self.to_be = den, form
    def forward(self, x, t):
        r = ratio_of(self.to_be, t.double())
        one = torch.ones_like(r); k = beside(self.to_be.scale(one, r), x)
        x0,ε = self.den(x.double()/k, Level(None, one, r))
        a,b = (beside(o, x) for o in self.to_be.pred(beside(one, x)*k, beside(r, x)*k))
        return (a*x0 + b*ε).to(x.dtype)

def order(errors, ns):
    "The slope of errors over numbers of steps, both logarithmic: 2 means that twice the steps leave a quarter of the error"
    n,e = torch.tensor(ns, **f64).log(), torch.tensor(errors, **f64).log()
    n,e = n-n.mean(), e-e.mean()
    return -(n@e/(n@n)).item()

# --- the package in one line

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

def generate(den, shape, ls, step, **kw):
    "Images of that shape on the levels"
    return sample(den, shape, step, levels=ls, device='cpu', **kw)

def edm_pred(alpha, sigma, sigma_data=.5): return edm(sigma_data).pred(alpha, sigma)

def fit(form, net, dls, epochs=2, lr=.05, cbs=(), verbs=None, **kw):
    "The history of a short training; `verbs`: who trains, in place of `TrainCB`"
    m = MetricsCB()
    m._log = lambda d: None
    cbs = [DeviceCB('cpu'), NoiseCB(form, vrange=None, **kw), verbs or TrainCB(n_inp=2), m, *cbs]
    Learner(net, dls, F.mse_loss, lr=lr, cbs=cbs, opt_func=torch.optim.Adam).fit(epochs)
    return m.history

def plain(o):
    "A name for a parameter without addresses: two processes must call a test alike"
    return re.sub(' at 0x[0-9a-f]+', '', str(o))
