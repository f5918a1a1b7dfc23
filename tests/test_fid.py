"FID and KID: closed forms, other packages' numbers on the same features, awkward features, and what is said to bad input"
import json, math, os, warnings
from fractions import Fraction
import miniai.core as core     # first: it declares the operators that a torchvision without its library asks for
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy.linalg import eigh, eigvalsh, sqrtm as scipy_sqrtm
from torch import nn

from common import ROOT, run_python
from miniai.core import read_records
from miniai.datasets import DataLoaders, TensorLoader
from miniai.extractors import Extractor, ToInception, extractor_from, fid_inception, inception_extractor
from miniai.features import data_hash
from miniai.fid import ImageEval, YARDSTICKS
from miniai.scores import bootstrap_fid, fid_infinity, inception_score, kid
from miniai.stats import Stats, check_feats, frechet
from miniai.learner import Callback, DeviceCB, TrainCB

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

def rng(seed=0): return torch.Generator().manual_seed(seed)
def normal(*shape, seed=0): return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))
def rotation(d, seed=0): return torch.linalg.qr(normal(d, d, seed=seed))[0]
def says(words, f):
    with pytest.raises(ValueError) as e: f()
    assert words in str(e.value)
    assert '\n' not in str(e.value)

def exact(mean, cov, n=10**6):
    "`Stats` with just this mean and covariance"
    s = Stats(); s.n, s.mean, s._M2 = n, mean, cov*(n-1)
    return s

def features(n, d, seed):
    "Correlated, skewed, with variances that fall: as a network's are"
    mix = normal(d, d, seed=99)/d**0.5 * torch.logspace(0, -1.5, d, dtype=torch.float64)
    return (normal(n, d, seed=seed)@mix + 0.1*normal(n, d, seed=seed+50)).clamp(min=0) + 0.02*seed

# --- closed forms

@pytest.mark.parametrize('d', [1, 2, 16, 300])
def test_gaussians_that_commute(d):
    Q, a, b, m = rotation(d), *(normal(2, d, seed=1).abs()+0.1), normal(d, seed=2)
    got = frechet(exact(0*m, Q*a@Q.T), exact(m, Q*b@Q.T))
    assert got == pytest.approx((m.square() + (a.sqrt()-b.sqrt()).square()).sum().item(), rel=1e-8)

@pytest.mark.parametrize('d', [2, 16, 300])
def test_gaussians_that_do_not_commute(d):
    # x → T·x is the best way to move N(0,A) to N(0,TAT) if T is symmetric and positive: the distance is Tr (1-T)A(1-T)
    A, X = (o@o.T/d + 0.1*torch.eye(d) for o in normal(2, d, d, seed=3)); T = X; one = torch.eye(d)
    assert (A@(T@A@T) - (T@A@T)@A).norm() > 1e-3
    m = normal(d, seed=4)
    assert frechet(exact(m, A), exact(0*m, T@A@T)) == pytest.approx((m.square().sum() + ((one-T)@A@(one-T)).trace()).item(), rel=1e-8)

def test_one_dimension_by_hand():
    a, b = torch.tensor([[0.],[2.]]), torch.tensor([[10.],[14.]])     # means 1 and 12, variances 2 and 8
    assert frechet(a, b) == pytest.approx(11**2 + (8**.5-2**.5)**2, rel=1e-12)

@pytest.mark.parametrize('n,d', [(2,5), (40,64), (64,64), (65,64), (500,64)])
def test_same_set_is_zero(n, d):
    x = features(n, d, 1)
    assert frechet(x, x) <= 1e-6
    assert frechet(x, x.flip(0)) <= 1e-6
    assert frechet(Stats(x[:1]).merge(Stats(x[1:])), x) <= 1e-6

@pytest.mark.parametrize('n,m', [(500,700), (30,700), (30,20), (700,30)])
def test_symmetric_and_rotation_invariant(n, m):
    x, y, Q = features(n, 64, 1), features(m, 64, 2), rotation(64)
    d2 = frechet(x, y)
    assert frechet(y, x) == pytest.approx(d2, rel=1e-9)
    assert frechet(x@Q, y@Q) == pytest.approx(d2, rel=1e-8)
    assert frechet(x+7, y+7) == pytest.approx(d2, rel=1e-8)
    assert frechet(3*x, 3*y) == pytest.approx(9*d2, rel=1e-9)

@few
@given(cuts=st.lists(st.integers(1, 299), max_size=12), d=st.integers(1, 40), merge=st.booleans())
def test_parts_make_the_whole(cuts, d, merge):
    x = features(300, d, 3) + 100; s = Stats()
    for c in x.tensor_split(sorted(set(cuts))): s.merge(Stats(c)) if merge else s.add(c)
    assert s.n == 300
    assert torch.allclose(s.mean, x.mean(0), rtol=1e-12)
    assert (s.cov - torch.cov(x.T)).norm() <= 1e-10*torch.cov(x.T).norm()
    assert torch.allclose(s.factor.T@s.factor, s.cov, atol=1e-10)

def test_merging_leaves_the_other_alone():
    a, b = Stats(features(50, 8, 1)), Stats(features(60, 8, 2)); before = b.cov.clone()
    a.merge(b).add(features(70, 8, 3))
    assert b.n == 60 and torch.equal(Stats(features(60, 8, 2)).cov, before) and torch.equal(b.cov, before)

# --- other packages on the same features

def sqrtm(a, disp=True):
    "SciPy's, taking `disp` also where SciPy no longer does: pytorch-fid asks for it"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); root = scipy_sqrtm(a)
    return root if disp else (root, None)

@pytest.mark.parametrize('d', [64, 512])     # at 2048: bench/fid.py
def test_pytorch_fid_and_torch_fidelity(d, monkeypatch):
    from pytorch_fid import fid_score
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    monkeypatch.setattr(fid_score.linalg, 'sqrtm', sqrtm)
    x, y = features(2*d+100, d, 1), features(3*d, d, 2); ours = frechet(x, y)
    a, b = fid_features_to_statistics(x), fid_features_to_statistics(y)
    assert fid_score.calculate_frechet_distance(a['mu'], a['sigma'], b['mu'], b['sigma']) == pytest.approx(ours, rel=1e-6)
    assert fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID] == pytest.approx(ours, rel=1e-6)

def test_no_scipy_is_needed():
    done = run_python("import sys; sys.modules['scipy'] = None\nimport torch\nfrom miniai.fid import frechet, kid\n"
                      "x = torch.rand(99,7); print(frechet(x, x), kid(x, x, 50, 5))")
    assert done.returncode == 0, done.stderr

def test_kid_is_torch_fidelitys():
    from torch_fidelity.metric_kid import kid_features_to_metric
    x, y, k, seed = features(600, 32, 1), features(500, 32, 2), 100, 2020
    r = np.random.RandomState(seed); draws = torch.zeros(20, len(x)), torch.zeros(20, len(y))
    for pair in zip(*draws):
        for row in pair: row[torch.as_tensor(r.choice(len(row), k, replace=False))] = 1
    theirs = kid_features_to_metric(x, y, kid_subsets=20, kid_subset_size=k, rng_seed=seed, verbose=False,
                                    kid_kernel='poly', kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1)
    ours = kid(x, y, draws=tuple(o.double() for o in draws))
    assert ours.mean == pytest.approx(theirs['kernel_inception_distance_mean'], rel=1e-6)
    assert ours.std == pytest.approx(theirs['kernel_inception_distance_std'], rel=1e-6)

def test_inception_score_is_torch_fidelitys():
    from torch_fidelity.metric_isc import isc_features_to_metric
    logits = 3*normal(1000, 10)
    theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
    assert inception_score(logits) == pytest.approx(tuple(theirs.values()), rel=1e-9)

# --- awkward features

awkward = {
    'plain': lambda x: x,
    'rank-deficient': lambda x: x[:,:1]*torch.ones_like(x) + x[:,:1]**2,
    'dead': lambda x: torch.where(torch.arange(x.shape[1]) < 1, x, torch.zeros_like(x)),
    'constant': lambda x: torch.full_like(x, 0.1),
    'outlier': lambda x: torch.where(torch.arange(len(x))[:,None] == 0, torch.full_like(x, 1e6), x),
    'repeated': lambda x: x[torch.arange(len(x))//2],
    'far': lambda x: x + 1e6,
    'tiny': lambda x: x*1e-30}

def by_singular_values(x, y):
    "The distance without any square: singular values of centred features. Slow, and as exact as can be"
    a, b = ((o-o.mean(0))/math.sqrt(len(o)-1) for o in (x, y))
    return ((x.mean(0)-y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2*torch.linalg.svdvals(a@b.T).sum()).item(), (a.square().sum()+b.square().sum()).item()

@settings(few, max_examples=150)
@given(kx=st.sampled_from(list(awkward)), ky=st.sampled_from(list(awkward)), n=st.integers(2, 40), m=st.integers(2, 40), d=st.integers(1, 30),
       seed=st.integers(0, 99), half=st.booleans(), chunks=st.booleans())
def test_awkward_features(kx, ky, n, m, d, seed, half, chunks):
    x, y = awkward[kx](normal(n, d, seed=seed)), awkward[ky](normal(m, d, seed=seed+1000))
    if half:
        x, y = x.half(), y.half()
        if not (x.isfinite().all() and y.isfinite().all()): return says('infinite', lambda: frechet(x, y))
    a, b = (Stats(o) if not chunks else Stats(o[:1]).add(o[1:]) for o in (x, y))
    got = frechet(a, b); want, scale = by_singular_values(x.double(), y.double())
    assert isinstance(got, float) and math.isfinite(got) and got >= 0
    assert got == pytest.approx(max(want, 0), rel=1e-6, abs=2e-8*scale + 1e-9*(x.double().mean(0)-y.double().mean(0)).square().sum().item() + 1e-20)

@few
@given(kx=st.sampled_from(list(awkward)), n=st.integers(2, 30), d=st.integers(1, 20), seed=st.integers(0, 99))
def test_awkward_features_against_themselves(kx, n, d, seed):
    x = awkward[kx](normal(n, d, seed=seed)); scale = Stats(x).trace.item()
    assert frechet(x, x) <= 1e-6*max(1, scale*1e-3)
    k = kid(x, x, n, 3)
    assert math.isfinite(k.mean) and math.isfinite(k.std)

@pytest.mark.parametrize('r', [3, 50])
def test_more_dimensions_add_nothing(r):
    "Features of r dimensions, turned into a space of 80: the same distance, though all covariances there are singular"
    x, y, Q = features(300, r, 1), features(200, r, 2), rotation(80)[:r]
    assert frechet(x@Q, y@Q) == pytest.approx(frechet(x, y), rel=1e-6)

def test_float64_is_used_throughout():
    x, y = features(3000, 64, 1).float(), features(3000, 64, 2).float()
    assert frechet(x, y) == pytest.approx(frechet(x.double(), y.double()), rel=1e-12)

# --- the metrics under hypothesis: right, or a sentence; MINIAI_EXAMPLES=10000 for a night's worth

many = settings(few, max_examples=int(os.environ.get('MINIAI_EXAMPLES', 60)))
SCALES = (1e-100, 1e-30, 1e-6, 1., 1e6, 1e20, 1e38)
SHAPES = dict(kx=st.sampled_from(list(awkward)), ky=st.sampled_from(list(awkward)), n=st.integers(1, 40), m=st.integers(1, 40), d=st.integers(1, 24),
              seed=st.integers(0, 999), scale=st.sampled_from(SCALES), offset=st.sampled_from((0, 1, 1e3, 1e6)))

def cloud(kind, n, d, seed, scale, offset): return (awkward[kind](normal(n, d, seed=seed)) + offset)*scale

def right_or_said(f, refused):
    "What `f()` gives; None where it says in one line why not, which only happens where `refused`"
    try: got = f()
    except ValueError as e:
        assert refused and str(e) and '\n' not in str(e), e
        return None
    assert not refused
    return got

@many
@given(**SHAPES)
def test_frechet_is_scipys(kx, ky, n, m, d, seed, scale, offset):
    "Against means, covariances and the root by SciPy in float64, of the same features at a scale where SciPy is safe"
    x,y = cloud(kx, n, d, seed, scale, offset), cloud(ky, m, d, seed+1000, scale, offset)
    got = right_or_said(lambda: frechet(x, y), min(n, m) < 2 or max(x.abs().max(), y.abs().max()) >= 1e40)
    if got is None: return
    a,b = x/scale, y/scale; A,B = torch.cov(a.T).reshape(d, d), torch.cov(b.T).reshape(d, d)
    w,V = eigh(A.numpy()); half = V*np.sqrt(w.clip(0))@V.T; root = np.sqrt(eigvalsh(half@B.numpy()@half).clip(0)).sum()     # (sqrtm itself may give NaN here)
    variances = (A.trace()+B.trace()).item(); apart = (a.mean(0)-b.mean(0)).square().sum().item()
    want = apart + variances - 2*float(root)
    assert math.isfinite(got) and got >= 0
    rounding = 1e-6*variances + 1e-9*apart + 1e-14*max(a.abs().max(), b.abs().max()).item()**2        # of SciPy's root, and of the means
    assert got/scale**2 == pytest.approx(max(want, 0), rel=1e-6, abs=rounding)

def exact_mmd2(x, y):
    "MMD² in rational numbers: no rounding at all"
    X,Y = ([[Fraction(v) for v in row] for row in o.tolist()] for o in (x, y)); d,m = len(X[0]), len(X)
    k = lambda a, b: (sum(p*q for p,q in zip(a, b))/d + 1)**3
    same = lambda Z: sum(k(Z[i], Z[j]) for i in range(m) for j in range(m) if i != j)/(m*(m-1))
    return same(X) + same(Y) - 2*sum(k(a, b) for a in X for b in Y)/Fraction(m*m)

@many
@given(kx=SHAPES['kx'], ky=SHAPES['ky'], m=st.integers(1, 6), d=st.integers(1, 5), seed=SHAPES['seed'], scale=SHAPES['scale'], offset=SHAPES['offset'])
def test_kid_is_exact(kx, ky, m, d, seed, scale, offset):
    x,y = cloud(kx, m, d, seed, scale, offset), cloud(ky, m, d, seed+1000, scale, offset)
    got = right_or_said(lambda: kid(x, y, m, 2), m < 2 or max(x.abs().max(), y.abs().max()) >= 1e40)
    if got is None: return
    mu = y.mean(0); u,v = x-mu, y-mu; size = max(u.square().sum(1).max(), v.square().sum(1).max()).item()/d; c = (mu@mu).item()/d+1
    biggest = 3*c*c*size + (3*c + size + 2*(c*size)**.5)*(size + 2*(c*size)**.5)**2                    # no term of the sums is larger
    assert math.isfinite(got.mean) and math.isfinite(got.std) and got.std <= 1e-9*biggest
    assert got.mean == pytest.approx(float(exact_mmd2(x, y)), rel=1e-6, abs=1e-8*biggest)

@many
@given(n=st.integers(1, 60), c=st.integers(1, 12), seed=SHAPES['seed'], scale=SHAPES['scale'], offset=SHAPES['offset'], splits=st.integers(0, 12))
def test_inception_score_is_scipys(n, c, seed, scale, offset, splits):
    from scipy.special import log_softmax, rel_entr
    l = (normal(n, c, seed=seed) + offset)*scale
    got = right_or_said(lambda: inception_score(l, splits), not 1 <= splits <= n or l.abs().max() >= 1e40)
    if got is None: return
    parts = [np.exp(log_softmax(o.numpy(), 1)) for o in l.tensor_split(splits)]
    want = [np.exp(rel_entr(p, p.mean(0)).sum(1).mean()) for p in parts]
    assert got == pytest.approx((np.mean(want), np.std(want)), rel=1e-6, abs=1e-6) and 1-1e-9 <= got[0] <= c+1e-9

@few
@given(n=st.integers(1, 60), d=st.integers(1, 8), seed=SHAPES['seed'], scale=SHAPES['scale'], boot=st.integers(-1, 6), level=st.sampled_from((-1, 0, .5, .95, 1, 2)))
def test_bootstrap_right_or_said(n, d, seed, scale, boot, level):
    x,ref = normal(n, d, seed=seed)*scale, Stats(normal(50, d, seed=5)*scale)
    got = right_or_said(lambda: bootstrap_fid(x, ref, boot, level), n < 2 or boot < 2 or not 0 < level < 1)
    if got: assert 0 <= got[0] <= frechet(x, ref)*(1+1e-9)+1e-12*scale**2 and math.isfinite(got[1])

# --- statistics of statistics

def test_kid_is_unbiased_and_fid_is_not():
    small, large = ([(frechet(x, y), kid(x, y, n, 1).mean) for i in range(20) for x,y in [(normal(n, 16, seed=i), normal(n, 16, seed=100+i))]] for n in (40, 400))
    (fs, ks), (fl, kl) = (np.mean(o, 0) for o in (small, large))
    assert fs > 5*fl and abs(ks) < 0.2 and abs(kl) < 0.02

def test_fid_infinity_takes_the_bias_away():
    ref = exact(torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64))
    x = normal(4000, 16, seed=5); inf,sizes,fids = fid_infinity(x, ref)
    assert sizes[0] == 800 and sizes[-1] == 4000 and fids[-1] == pytest.approx(frechet(x, ref))
    assert abs(inf) < fids[-1]/2 < fids[0]/4

def test_bootstrap_interval_covers():
    "Nine of ten 90% intervals or so hold the mean FID at this n"
    ref = exact(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    sets = [normal(200, 4, seed=i)*1.2 + 0.1 for i in range(40)]; mean = np.mean([frechet(x, ref) for x in sets])
    hit = [lo <= mean <= hi for lo,hi in (bootstrap_fid(x, ref, 40, level=0.9) for x in sets)]
    assert 0.78 <= np.mean(hit) <= 0.99

# --- bad input, one sentence each

def test_bad_features():
    x = features(50, 8, 1); bad = x.clone(); bad[7,2] = math.nan; bad[20,0] = math.inf
    says('2 of 50 rows of features are NaN, infinite or beyond 1e40 (rows 7, 20)', lambda: frechet(bad, x))
    says('2 of 50 rows', lambda: kid(x, bad, 10))
    says('n=1: a covariance needs the features of at least 2 images', lambda: frechet(x[:1], x))
    says('n=0', lambda: frechet(Stats(), x))
    says('N×d; got (0, 8)', lambda: Stats(x[:0]))
    says('d=8 and of d=7 cannot be compared', lambda: frechet(x, x[:,:7]))
    says('d=7 cannot join those of d=8', lambda: Stats(x).add(x[:,:7]))
    says('d=8 and of d=7 cannot be compared', lambda: kid(x, x[:,:7], 10))
    says('N×d; got (50, 8, 1)', lambda: Stats(x[...,None]))
    says('real numbers', lambda: Stats(x+1j))
    says('beyond 1e40', lambda: Stats(x*1e60))
    says('subsets of 51 cannot be drawn from n=50 features: choose 2 ≤ subset ≤ 50', lambda: kid(x, x, 51))
    says('subsets of 1 cannot', lambda: kid(x, x, 1))
    says('n=9 cannot be cut into 10 parts', lambda: inception_score(x[:9]))
    says('n=50 cannot be cut into 0 parts', lambda: inception_score(x, 0))
    says('n_subsets=0', lambda: kid(x, x, 10, 0))
    says('between 0 and 1', lambda: bootstrap_fid(x, Stats(x), level=-1)); says('between 0 and 1', lambda: bootstrap_fid(x, Stats(x), level=1.))
    says('n_boot=0', lambda: bootstrap_fid(x, Stats(x), 0)); says('n_points ≥ 2', lambda: fid_infinity(x, Stats(x), 1)); says('n=2 is too few', lambda: fid_infinity(x[:2], Stats(x)))
    says('expected `Stats`, got Tensor', lambda: Stats(x).merge(x))

def test_kinds_of_features():
    "Right, or refused with a sentence; never something else"
    x = (features(50, 8, 1)*20).round()
    for dt in (np.uint8, np.uint16, np.uint32, np.int64, np.float16, np.float32, np.longdouble):
        assert frechet(x.numpy().astype(dt), x) <= 1e-9 and math.isfinite(kid(x.numpy().astype(dt), x, 20, 5).mean)
    for dt in (torch.uint8, torch.uint16, torch.int32, torch.float16, torch.bfloat16): assert frechet(x.to(dt), x) == pytest.approx(frechet(x.to(dt).double(), x))
    assert check_feats(x.numpy()[:,::-1]).shape == (50, 8) and check_feats(x.tolist()).dtype == torch.float64
    for bad in (x > 0, x.numpy() > 0, np.array([['a','b']]), np.array([[object()]])): says('real numbers, N×d', lambda: frechet(bad, x))

def test_statistics_files(tmp_path):
    x = features(50, 8, 1); s = Stats(x, extractor='aaa'); p = s.save(tmp_path/'s')
    t = Stats.load(p, 'aaa')
    assert torch.equal(t.cov, s.cov) and t.card == {'extractor': 'aaa'} and frechet(t, s) <= 1e-12
    assert frechet(t, features(40, 8, 2)) == pytest.approx(frechet(s, features(40, 8, 2)), rel=1e-12)
    says('s.safetensors is of extractor aaa, not bbb', lambda: Stats.load(p, 'bbb'))
    says('two extractors (aaa and bbb)', lambda: frechet(s, Stats(x, extractor='bbb')))
    says('two extractors (aaa and bbb)', lambda: s.merge(Stats(x, extractor='bbb')))
    core.save({'w': torch.ones(3)}, tmp_path/'w')
    says('w.safetensors holds no statistics', lambda: Stats.load(tmp_path/'w'))

def broken(name, change, tmp_path, n=50, card=None):
    "`Stats` of n×8 features on disk, with one thing changed"
    s = Stats(features(n, 8, 1), extractor='aaa'); p = s.save(tmp_path/name); t,c = core.load(p)
    t = {k: v for k,v in (t | change(t)).items() if v is not None}
    return core.save(t, p, **(c | (card or {})))

BROKEN = {
    'random M2': (50, lambda t: dict(M2=normal(36)), 'no images can have'),
    'uniform M2': (50, lambda t: dict(M2=torch.rand(36, dtype=torch.float64, generator=rng())), 'no images can have'),
    'negative M2': (50, lambda t: dict(M2=-t['M2']), 'no images can have'),
    'NaN M2': (50, lambda t: dict(M2=t['M2']*math.nan), 'NaN or infinite'),
    'M2 of one element': (50, lambda t: dict(M2=t['M2'][:1]), 'shape (1,)'),
    'M2 of another d': (50, lambda t: dict(M2=normal(45).abs()), 'shape (45,)'),
    'NaN mean': (50, lambda t: dict(mean=t['mean']*math.nan), 'NaN or infinite'),
    'short mean': (50, lambda t: dict(mean=t['mean'][:7]), 'mean of shape (7,)'),
    'square mean': (50, lambda t: dict(mean=t['mean'][None]), 'mean of shape (1, 8)'),
    'whole numbers for a mean': (50, lambda t: dict(mean=t['mean'].long()), 'NaN or infinite'),
    'n of 1': (50, lambda t: dict(n=torch.tensor(1)), 'cannot be: 1'),
    'negative n': (50, lambda t: dict(n=torch.tensor(-50)), 'cannot be: -50'),
    'half an n': (50, lambda t: dict(n=torch.tensor(50.5)), 'cannot be: 50.5'),
    'two n': (50, lambda t: dict(n=torch.tensor([50, 50])), 'cannot be: [50, 50]'),
    'n unlike its card': (50, lambda t: dict(n=torch.tensor(49)), 'its card says 50'),
    'no scatter': (50, lambda t: dict(M2=None), 'holds no statistics'),
    'no n': (50, lambda t: dict(n=None), 'holds no statistics'),
    'infinite rows': (5, lambda t: dict(rows=t['rows']+math.inf), 'NaN or infinite'),
    'narrow rows': (5, lambda t: dict(rows=t['rows'][:,:3]), 'rows of shape (5, 3)'),
    'one row': (5, lambda t: dict(rows=t['rows'][0]), 'rows of shape (8,)'),
    'too many rows': (5, lambda t: dict(rows=t['rows'].repeat(9, 1)), 'rows of shape (45, 8)')}

@pytest.mark.parametrize('name', BROKEN)
def test_broken_statistics_files(name, tmp_path):
    n,change,words = BROKEN[name]
    says(words, lambda: Stats.load(broken('s', change, tmp_path, n)))

@few
@given(n=st.integers(2, 60), d=st.integers(1, 20), kind=st.sampled_from(list(awkward)), seed=st.integers(0, 99), scale=st.sampled_from((1e-100, 1e-9, 1., 1e20)))
def test_what_is_saved_is_not_taken_for_broken(n, d, kind, seed, scale, tmp_path):
    s = Stats(awkward[kind](normal(n, d, seed=seed))*scale); t = Stats.load(s.save(tmp_path/'s'))
    assert torch.allclose(t.cov, s.cov, rtol=1e-9, atol=1e-14*s.cov.abs().max().item()) and torch.equal(t.mean, s.mean) and t.n == n

def images(n=200, seed=0, size=12, channels=1):
    x = F.interpolate(torch.rand(n, channels, 5, 5, generator=rng(seed)), size)
    return (x*255).byte()

@pytest.fixture
def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1))

@pytest.fixture
def dls(): return DataLoaders(TensorLoader(images(300, 1), torch.zeros(300).long(), 32, shuffle=True), TensorLoader(images(200, 2), torch.zeros(200).long(), 64))

def unit(x): return x.float()/127.5-1

def test_bad_images(net):
    ex = Extractor(net, 1, 12, name='net'); x = unit(images())
    says('in [0, 1], but net expects [-1, 1]: rescale with x*2-1', lambda: ex((x-x.min())/(x.max()-x.min())))
    says('rescale with x/127.5-1', lambda: ex(images()))
    says('rescale with (x+1)/2', lambda: Extractor(net, 1, 12, (0,1))(x))
    says('rescale with x/255', lambda: Extractor(net, 1, 12, (0,1))(images()))
    says('takes images N×1×12×12; got 200×1×16×16', lambda: ex(F.pad(x, (2,)*4)))
    says('N×1×12×12; got 200×3×12×12', lambda: ex(x.expand(-1,3,-1,-1)))
    says('got 200×12×12', lambda: ex(x[:,0]))
    says('NaN', lambda: ex(x*math.nan))
    says('rescale with x*255', lambda: Extractor(net, 1, 12, (0,255))((x+1)/2))
    says('rescale with (x+1)*127.5', lambda: Extractor(net, 1, 12, (0,255))(x))
    assert ex((x[:3])).shape == (3,12)

@pytest.mark.parametrize('spread', (1.01, 1.2, 5.))
def test_overshoot_is_clamped_and_said_once(net, capsys, spread):
    "Samples overshoot: no mistake, whatever the amount; the score is that of what an image file would hold"
    ex,x = Extractor(net, 1, 12, name='net').eval(), unit(images())*spread
    share = (x.abs() > 1+1/255).float().mean().item()
    for _ in range(2): assert torch.equal(ex(x), ex(x.clamp(-1, 1)))
    said = capsys.readouterr().out
    assert said.count('clamped') == 1 and f'{share:.2%} of the pixels are outside [-1, 1]' in said

def test_overshoot_does_not_reach_the_score(net, dls, capsys):
    ie,x = ImageEval(net, dls), unit(images(100, 5))*1.3
    assert ie.fid(x) == ie.fid(x.clamp(-1, 1)) == ie.fid([(o,) for o in x.split(30)]) and capsys.readouterr().out.count('clamped') == 1
    assert not Extractor(net, 1, 12).told and capsys.readouterr().out == ''

# --- whatever maps images to features

class Wrapper(nn.Module):
    "As lesson readers write one round Inception: it changes the images before the network sees them"
    def __init__(self, m):
        super().__init__()
        self.m = m
    def forward(self, x): return self.m(F.pad(x, (2,)*4).repeat(1, 1, 1, 1))

def means(x): return F.avg_pool2d(x, 4)
def build(): return Wrapper(nn.Conv2d(1, 3, 5))
def other(x): return F.max_pool2d(x, 4)

def test_wrappers_and_functions(net, dls):
    x = unit(images(100, 5))
    for f,d in ((Wrapper(net), 12), (means, 9), (lambda o: o.flatten(1)[:,:7], 7), (Extractor(means, 1, 12), 9), (nn.AvgPool2d(3), 16)):
        ie = ImageEval(f, dls, cbs=[DeviceCB('cpu')])
        assert ie.get_feats(x).shape == (100, d) and math.isfinite(ie.fid(x)) and ie.fid(x).floor is not None
    hashes = {Extractor(f).hash for f in (means, other, lambda x: x, lambda x: x+1, nn.AvgPool2d(3), nn.AvgPool2d(4))}
    assert len(hashes) == 6 and Extractor(means).hash == Extractor(means).hash
    says("takes a network or a function, not a int: `extractor_from('module:name')`", lambda: Extractor(3))

def test_extractors_by_name(dls, monkeypatch, tmp_path):
    (tmp_path/'my_nets.py').write_text('import torch\nfrom torch import nn\nfrom miniai.fid import Extractor\n'
        'def means(x): return x.mean((2,3))\nclass Net(nn.Flatten): pass\ndef build(seed=0): return Extractor(Net(), 1, 12)\nnet = Net()\n')
    monkeypatch.chdir(tmp_path); monkeypatch.syspath_prepend(tmp_path); x = unit(images(5))
    for nm,d in (('means', 1), ('Net', 144), ('build', 144), ('net', 144)): assert extractor_from(f'my_nets:{nm}')(x).shape == (5, d)
    assert ImageEval('my_nets:net', dls).fid(unit(images(50, 5))) > 0
    says("no module 'not_there'", lambda: extractor_from('not_there:f')); says("my_nets has no 'f'", lambda: extractor_from('my_nets:f'))
    says("not of the form 'module:name'", lambda: extractor_from('my_nets'))
    says('needs the path of its weights', lambda: extractor_from('torchvision:resnet18'))

@pytest.mark.parametrize('arch,d', [('resnet18', 512), ('mobilenet_v3_small', 1024), ('regnet_y_400mf', 440)])
def test_named_architectures(arch, d, tmp_path):
    from torchvision.models import get_model
    torch.manual_seed(0); net = get_model(arch, weights=None, num_classes=7).eval(); p = core.save(net, tmp_path/'w')
    ex = extractor_from(f'torchvision:{arch}', p, num_classes=7, size=64); grey,rgb = unit(images(2, size=28)), unit(images(2, channels=3, size=40))
    assert ex(grey).shape == ex(rgb).shape == (2, d)
    mean,std = torch.tensor([.485,.456,.406])[:,None,None], torch.tensor([.229,.224,.225])[:,None,None]
    seen = ((F.interpolate(rgb, (64,64), mode='bilinear', antialias=True)+1)/2 - mean)/std
    with torch.no_grad(): assert torch.allclose(ex.head(ex(rgb)), net(seen), atol=1e-4)          # its classes, as without us
    torch.save(net.state_dict(), tmp_path/'w.pth'); assert torch.equal(extractor_from(f'torchvision:{arch}', tmp_path/'w.pth', num_classes=7, size=64)(rgb), ex(rgb))
    says('holds weights of another network', lambda: extractor_from(f'torchvision:{arch}', p, num_classes=8))
    with pytest.raises(FileNotFoundError, match='give the path of the weights'): extractor_from('torchvision:resnet18', tmp_path/'none.safetensors')

# --- ImageEval

def test_lesson_calls(net, dls):
    ie = ImageEval(net, dls, cbs=[DeviceCB()]); x = unit(images(100, 5))
    f, k = ie.fid(x), ie.kid(x)
    feats = net.eval()(x).flatten(1).detach(); ref = net(unit(images(200, 2))).flatten(1).detach()
    assert torch.allclose(ie.get_feats(x), feats, atol=1e-5)
    assert f == pytest.approx(frechet(feats, ref), rel=1e-4) == pytest.approx(ie.fid(feats), rel=1e-4)
    assert isinstance(f, float) and f.n == 100 and f.floor == ie.floor(100)
    assert 'n=100' in repr(f) and 'floor' in repr(f) and f'{f:.1f}' == f'{float(f):.1f} (n=100, floor {f.floor:.1f})'
    assert '±' in str(k) and k.n == 100
    assert json.loads(json.dumps(f)) == float(f)
    assert ie.get_feats(TensorLoader(images(100, 5), bs=7)).shape == (100,12)
    assert torch.allclose(ie.get_feats([(x[:50], 0), (x[50:], 0)]), feats, atol=1e-5)

def test_floor(net, dls):
    ie = ImageEval(net, dls); torch.manual_seed(0); before = torch.get_rng_state()
    a = ie.floor(50)
    assert torch.equal(before, torch.get_rng_state())
    assert ImageEval(net, dls).floor(50) == a == ie.floor(50) and ImageEval(net, dls, seed=1).floor(50) != a
    assert torch.equal(ie.train_images(20), ie.train_images(90)[:20])
    says('301 training images are asked for, but there are 300', lambda: ie.floor(301))
    assert 'floor unknown' in repr(ie.fid(unit(images(301, 5)))) and ie.fid(unit(images(301, 5))).floor is None
    assert ImageEval(net, DataLoaders([], dls.valid)).fid(unit(images(20, 5))).floor is None

def test_report(net, dls, tmp_path):
    ex = Extractor(net, 1, 12, head=nn.Linear(12, 10), name='net'); ie = ImageEval(ex, dls)
    rec = ie.report(unit(images(100, 5)), seed=7, boot=10, model='none')
    p = tmp_path/'r.jsonl'; core.log_record(p, **rec)
    assert read_records(p, model='none', seed=7)[0]['fid'] == rec['fid']
    assert set('n seed fid floor kid kid_std kid_subset extractor extractor_hash data_hash split n_ref fid_low fid_high inception_score'.split()) <= rec.keys()
    assert rec['fid_low'] <= rec['fid'] <= rec['fid_high'] and rec['n_ref'] == 200 and 1 <= rec['inception_score'] <= 10
    says('has no classes', lambda: ImageEval(net, dls).inception_score(unit(images(100, 5))))

class CountCB(Callback):
    def before_fit(self, learn): self.fits = getattr(self, 'fits', 0)+1

def test_cache(net, dls, tmp_path):
    x = unit(images(60, 5)); fits = []
    for folder in (None, tmp_path/'c', tmp_path/'c'):
        ie = ImageEval(net, dls, cbs=(c := CountCB()), cache=folder); fits.append((float(ie.fid(x)), ie.kid(x), c.fits))
    assert fits[0] == (*fits[1][:2], fits[0][2]) and fits[1][:2] == fits[2][:2] and fits[2][2] == fits[1][2]-1
    assert len(list((tmp_path/'c').glob('*.safetensors'))) == 2
    with torch.no_grad(): net[0].weight.mul_(1.5)                    # another network: nothing of the cache is used
    other = ImageEval(net, dls, cache=tmp_path/'c'); other.fid(x)
    assert len(list((tmp_path/'c').glob('*.safetensors'))) == 4

def test_hashes(net, dls):
    a = Extractor(net, 1, 12).hash
    assert Extractor(net, 1, 12, (-1.,1.)).hash == a != Extractor(net, 1, 12, (0,1)).hash and len(a) == 12
    with torch.no_grad(): net[0].bias[0] += 1e-3
    assert Extractor(net, 1, 12).hash != a
    x = images(50); h = data_hash(TensorLoader(x, bs=7))
    assert h == data_hash(TensorLoader(x, bs=50, shuffle=True)) != data_hash(TensorLoader(x[:49], bs=7))

def test_a_callback_may_bring_the_verbs(net, dls):
    assert torch.allclose(ImageEval(net, dls, cbs=[TrainCB()]).get_feats(unit(images(9))), ImageEval(net, dls).get_feats(unit(images(9))))

def test_half_precision_features(net, dls):
    class Half(nn.Module):
        def __init__(self): super().__init__(); self.net = net
        def forward(self, x): return self.net(x).bfloat16()
    ie = ImageEval(Half(), dls)
    assert ie.get_feats(unit(images(9))).dtype == torch.float32 and math.isfinite(ie.fid(unit(images(50, 5))))

def test_yardsticks(net, dls):
    ie = ImageEval(net, dls); sticks = ie.yardsticks(100)
    assert list(sticks) == ['floor', *YARDSTICKS] and sticks['floor'] == ie.floor(100)
    assert sticks['noise 0.05'] >= sticks['noise 0.02']*0.9
    x = unit(images(8, channels=3))
    for f in YARDSTICKS.values():
        y = f(x); assert y.shape == x.shape and y.min() >= -1 and y.max() <= 1 and not torch.equal(y, x) and torch.equal(f(x), y)

# --- Inception

def random_inception():
    torch.manual_seed(0); net = fid_inception()
    for p in net.parameters(): nn.init.normal_(p, 0.02, 1/math.sqrt(max(1, p[0].numel())))
    return net

def test_inception_is_pytorch_fids(monkeypatch, tmp_path):
    "The same random weights in both: the same features, from grey images of another size"
    from pytorch_fid import inception
    sd = random_inception().state_dict(); torch.save(sd, tmp_path/'w.pth')
    monkeypatch.setattr(inception, 'load_state_dict_from_url', lambda *a, **k: sd)
    theirs = inception.InceptionV3().eval(); x = unit(images(3, size=28))
    ours = inception_extractor(tmp_path/'w.pth', sha256='')
    with torch.no_grad(): a, b = ours(x), theirs((x.expand(-1,3,-1,-1)+1)/2)[0].flatten(1)
    assert a.shape == (3,2048) and a.std() > 1e-3
    assert torch.allclose(a, b, rtol=1e-3, atol=1e-4*a.abs().max().item())
    assert ours.head(a).shape == (3,1008)
    says('but FID Inception expects [-1, 1]: rescale with x*2-1', lambda: ours((x+1)/2))
    says('takes images N×1 or 3×H×W; got 3×2×28×28', lambda: ours(x.expand(-1,2,-1,-1)))

def test_inception_preprocessing():
    x = unit(images(2, size=28)); y = ToInception()(x)
    assert y.shape == (2,3,299,299) and torch.equal(y[:,0], y[:,2]) and y.min() >= -1 and y.max() <= 1 and y.min() < -0.5
    assert torch.allclose(y.mean((2,3))[:,:1], x.mean((2,3)), atol=1e-3)

def test_inception_weights_are_looked_at(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='is not there: fetch https://github.com/mseitzer'): inception_extractor(tmp_path/'none.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='hub/checkpoints/pt_inception'): inception_extractor()
    (tmp_path/'bad.pth').write_bytes(b'nothing')
    says('not 6726825d…: it is damaged or another file', lambda: inception_extractor(tmp_path/'bad.pth'))
    torch.save({'w': torch.ones(2)}, tmp_path/'other.pth')
    says('holds weights of another network', lambda: inception_extractor(tmp_path/'other.pth', sha256=''))

# --- what it costs

def test_memory_of_a_stream():
    done = run_python("""
import resource, torch
from miniai.fid import Stats
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
x = torch.randn(10_000, 512); Stats(x[:600]).cov; before = peak(); s = Stats()
for _ in range(5): s.add(x)
print(peak()-before)""")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100

def test_records_of_the_benchmark():
    recs = [r for r in read_records(ROOT/'results'/'bench.jsonl') if r.get('what', '').startswith('fid: ')]
    stream = [r for r in recs if r['what'] == 'fid: streaming statistics'][-1]; full = [r for r in recs if r['what'] == 'fid: distance' and r['n'] > r['d']][-1]
    assert (stream['n'], stream['d']) == (1_000_000, 512) and stream['mb_beyond_chunk'] < 100
    assert full['d'] == 2048 and full['ratio']['pytorch-fid'] >= 6 and full['ratio']['torch-fidelity'] >= 2 and full['relative_difference'] <= 1e-6
