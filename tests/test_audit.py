"Audit: other packages' precision, recall, density and coverage, ties included; the Inception Score; attacks that stay within bounds; the memorisation test under its null and on copies"
import contextlib, io, math, os
import miniai.core as core     # first: it declares the operators that a torchvision without its library asks for
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from common import ROOT
from miniai.audit import (FILTERS, MANIPULATIONS, attack, attack_fid, contrast, density_coverage, fid_gradient, floor_z, inception_gradient, knn_radii,
                          memorisation_test, nearest, precision_recall, quantise, resized, shifted)
from miniai.core import read_records
from miniai.datasets import DataLoaders, TensorLoader
from miniai.fid import Extractor, ImageEval, Stats, frechet, inception_score

def rng(seed=0): return torch.Generator().manual_seed(seed)
def normal(*shape, seed=0): return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))
def grid(*shape, seed=0): return torch.randint(0, 3, shape, generator=rng(seed)).double()      # many equal distances
def images(n, channels=1, size=12, seed=0): return torch.randint(0, 256, (n,channels,size,size), dtype=torch.uint8, generator=rng(seed))
def unit(x): return x/127.5-1
def says(words, f):
    with pytest.raises(ValueError) as e: f()
    assert words in str(e.value) and '\n' not in str(e.value)

def net(channels=1, d=5):
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(channels, d, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

PAIRS = [(normal(80, 6), normal(100, 6, seed=1)*1.2), (normal(60, 40), normal(60, 40, seed=1)+.3), (grid(90, 3), grid(70, 3, seed=1)), (grid(50, 4), grid(50, 4)),
         (torch.cat([normal(20, 4)]*3), normal(50, 4, seed=2)), (grid(40, 2), grid(60, 2, seed=5)+1)]

@pytest.mark.parametrize('x,ref', PAIRS)
def test_precision_recall_is_torch_fidelitys(x, ref):
    from torch_fidelity.metric_prc import calculate_precision_recall_full
    for k in (1, 3, 5): assert precision_recall(x, ref, k)[:2] == pytest.approx(calculate_precision_recall_full(x, ref, k), abs=1e-6)

@pytest.mark.parametrize('x,ref', PAIRS)
def test_all_four_are_the_prdc_packages(x, ref):
    from prdc import compute_prdc
    for k in (1, 3, 5):
        with contextlib.redirect_stdout(io.StringIO()): theirs = compute_prdc(ref.numpy(), x.numpy(), k)
        ours = (*precision_recall(x, ref, k, closed=False)[:2], *density_coverage(x, ref, k)[:2])
        assert ours == pytest.approx([float(theirs[m]) for m in ('precision', 'recall', 'density', 'coverage')], abs=1e-6)

def test_by_definition():
    x,ref,k = grid(12, 2), grid(9, 2, seed=1), 2
    nnd = [sorted(math.dist(a, b) for j,b in enumerate(ref.tolist()) if j != i)[k-1] for i,a in enumerate(ref.tolist())]
    assert knn_radii(ref, k).tolist() == pytest.approx(nnd)
    inside = [[math.dist(a, b) <= r for b,r in zip(ref.tolist(), nnd)] for a in x.tolist()]
    assert precision_recall(x, ref, k).precision == pytest.approx(np.mean([any(o) for o in inside]))
    dc = density_coverage(x, ref, k, closed=True)
    assert dc.density == pytest.approx(np.sum(inside)/(k*len(x))) and dc.coverage == pytest.approx(np.mean(np.any(inside, 0)))

def test_what_precision_and_recall_mean():
    a,b = normal(300, 2), normal(300, 2, seed=1); far = torch.tensor([100., 0]).double()
    both = torch.cat([a, a+far]); pr = precision_recall(b, both); assert pr.precision > .9 and pr.recall < .6            # a mode is missing
    pr = precision_recall(torch.cat([b, b-far]), a); assert pr.precision < .6 and pr.recall > .9                        # half is nowhere
    assert density_coverage(b, a).coverage > .8 and density_coverage(b, both).coverage < .55
    assert density_coverage(a[:1].repeat(300,1), a).coverage < .2

def test_inception_score_is_torch_fidelitys():
    from torch_fidelity.metric_isc import isc_features_to_metric
    for n,c in ((200, 10), (1000, 1008)):
        l = 3*normal(n, c); assert inception_score(l) == pytest.approx(tuple(isc_features_to_metric(l, 10, shuffle=False).values()), abs=1e-6)

# --- pictures

@pytest.mark.parametrize('name', MANIPULATIONS)
@pytest.mark.parametrize('channels', (1, 3))
def test_manipulations(name, channels):
    x = unit(images(4, channels, 28)); y = MANIPULATIONS[name](x)
    assert y.shape == x.shape and y.dtype == x.dtype and y.abs().max() <= 1+1e-6 and torch.equal(MANIPULATIONS[name](x), y)
    if name == '8 bits': assert torch.allclose(x, y, atol=1e-6)
    else: assert not torch.allclose(x, y, atol=1e-3)

def test_pillows_filters_are_pillows_on_bytes():
    from PIL import Image
    x = images(1, 1, 28)
    for f in FILTERS:
        theirs = Image.fromarray(x[0,0].numpy()).resize((20,20), Image.Resampling[f.upper()]).resize((28,28), Image.Resampling[f.upper()])
        assert ((resized(unit(x), 20, f)+1)*127.5 - torch.as_tensor(np.array(theirs)).float()).abs().max() < 6                       # theirs is rounded twice
    says('got \'cubic\'', lambda: resized(unit(x), 20, 'cubic'))

def test_small_manipulations():
    x = unit(images(3)); assert torch.equal(shifted(shifted(x, 1), -1)[...,1:-1], x[...,1:-1]) and torch.equal(shifted(x, 0, 0), x)
    assert torch.equal(shifted(x, 0, 2)[...,2:,:], x[...,:-2,:]); assert torch.equal(contrast(x, 1.), x); assert contrast(x, 9.).abs().max() == 1
    assert torch.allclose(quantise((x+1)/2, vrange=(0,1)), (x+1)/2, atol=1e-6) and len(quantise(x, 4).unique()) == 4

# --- attack

def test_gradient():
    x,ref = normal(40, 6), Stats(normal(60, 6, seed=1)*2+1); d2,g = fid_gradient(x, ref); assert d2 == pytest.approx(frechet(x, ref), rel=1e-8)
    for s in range(3):
        v = normal(40, 6, seed=s); assert (g*v).sum().item() == pytest.approx((frechet(x+1e-5*v, ref)-frechet(x-1e-5*v, ref))/2e-5, rel=1e-4)
    few = fid_gradient(normal(4, 6), ref); assert few[0] == pytest.approx(frechet(normal(4, 6), ref), rel=1e-6) and few[1].isfinite().all()      # n < d
    same = fid_gradient(x, Stats(x)); assert same[0] == pytest.approx(0, abs=1e-8) and same[1].abs().max() < 1e-6
    says('features of at least 2 images', lambda: fid_gradient(normal(1, 6), ref))

@pytest.mark.parametrize('vrange,channels', [((-1,1), 1), ((0,1), 3)])
@pytest.mark.parametrize('eps', (1, 4))
def test_attack_stays_within_bounds_and_bytes(vrange, channels, eps):
    lo,hi = vrange; x = images(50, channels).float()/255*(hi-lo)+lo; ex = Extractor(net(channels), channels, 12, vrange); ref = Stats(ex(x.flip(0)[:40]*.5).detach())
    params = [p.clone() for p in ex.parameters()]
    for lower in (True, False):
        y,fids = attack_fid(ex, x, ref, eps, 3, lower, bs=16)
        assert (y-x).abs().max() <= eps*(hi-lo)/255 + 1e-6 and lo <= y.min() and y.max() <= hi and torch.allclose(quantise(y, vrange=vrange), y, atol=1e-6)
        assert len(fids) == 4 and (fids[-1] < fids[0]) == lower and not y.requires_grad
        assert fids[-1] == pytest.approx(frechet(ex(y).detach(), ref), rel=1e-6, abs=1e-9)
        assert torch.allclose(attack_fid(ex, x, ref, eps, 3, lower, bs=50)[0], y, atol=hi/100)
    assert all(torch.equal(a, b) and b.grad is None for a,b in zip(params, ex.parameters()))

def test_attack_says():
    ex = Extractor(net(), 1, 12); x = unit(images(9)); ref = Stats(ex(x).detach())
    says('takes images N×1×12×12; got 9×1×28×28', lambda: attack_fid(ex, unit(images(9, 1, 28)), ref)); says('expects [-1, 1]', lambda: attack_fid(ex, images(9).float(), ref))
    says('steps ≥ 1', lambda: attack_fid(ex, x, ref, steps=0)); says('d=5 and of d=3 cannot be compared', lambda: attack_fid(ex, x, Stats(normal(20, 3))))

def test_inception_gradient_and_attack():
    head = nn.Linear(5, 7).double(); f = normal(40, 5); score,g = inception_gradient(f, head)
    with torch.no_grad():
        assert score == pytest.approx(inception_score(head(f), 1)[0], rel=1e-9)
        for s in range(3):
            v = normal(40, 5, seed=s); up,down = (inception_score(head(f+e*v), 1)[0] for e in (1e-5, -1e-5))
            assert (g*v).sum().item() == pytest.approx((math.log(up)-math.log(down))/2e-5, rel=1e-4)
    ex = Extractor(net(), 1, 12, head=nn.Linear(5, 7)); x = unit(images(30))
    y,path = attack(ex, x, lambda f: inception_gradient(f, ex.head), eps=8, steps=3)
    assert path[-1] > path[0] and len(path) == 4 and (y-x).abs().max() <= 8/127.5+1e-6 and torch.allclose(quantise(y), y, atol=1e-6)
    assert all(p.grad is None for p in ex.parameters())

# --- copies

def test_memorisation_is_fair():
    "Under the null, p is (about) uniform: as many small ones as there should be"
    ps = torch.tensor([memorisation_test(normal(60, 4, seed=s), normal(150, 4, seed=s+1000), normal(100, 4, seed=s+2000), n_perm=100).p for s in range(100)])
    assert (ps <= .05).float().mean() <= .12 and .4 < ps.mean() < .62

def test_memorisation_finds_copies():
    T,H = normal(200, 4), normal(200, 4, seed=1); new = normal(100, 4, seed=2)
    all_,half = memorisation_test(T[:100]+1e-3, T, H), memorisation_test(torch.cat([T[:50], new[:50]]), T, H)
    assert all_.rate == 1 and all_.p < .002 and half.p < .01 and '100.0% are nearest to a training image, 50.0% expected' in str(all_)
    assert memorisation_test(H[:100]+1e-3, T, H).p == 1
    assert memorisation_test(T[:1].repeat(100,1), T, H).p > .3
    assert memorisation_test(new, T[:50], H).expected == .2

def test_nearest():
    x,pool = unit(images(7)), unit(images(90)); i,d = nearest(x, pool, bs=2); assert i.tolist() == list(range(7)) and not d.any()
    i,d = nearest(normal(30, 5), normal(40, 5, seed=1)); full = torch.cdist(normal(30, 5), normal(40, 5, seed=1)); assert torch.equal(i, full.argmin(1)) and torch.allclose(d.double(), full.min(1).values, atol=1e-5)
    says('use one extractor for both', lambda: nearest(normal(3, 4), normal(3, 5))); says('are they the same images?', lambda: memorisation_test(normal(9, 3), normal(5, 3), normal(5, 3)))
    says('n_perm=0', lambda: memorisation_test(normal(9, 3), normal(5, 3), normal(6, 3), n_perm=0))

@pytest.mark.parametrize('offset,scale', [(0, 1), (1e3, 1), (1e6, 1), (1e6, 1e3), (1e9, 1e4), (0, 1e-20), (0, 1e20)])
@pytest.mark.parametrize('dtype', (torch.float32, torch.float64))
def test_copies_far_from_zero_are_found(offset, scale, dtype):
    pool = (normal(400, 64)*scale + offset).to(dtype); copies = pool[:200].clone()
    assert len(pool.unique(dim=0)) == 400 or pytest.skip('float32 itself cannot tell these rows apart')
    i,d = nearest(copies, pool, bs=64); assert i.tolist() == list(range(200)) and not d.any()
    m = memorisation_test(copies, pool[:200], pool[200:], n_perm=200); assert m.rate == 1 and m.n == 200 and m.p < .01

def test_nearest_where_products_would_lose():
    "Two groups far apart, so that centring does not help; rows that repeat; distances below the rounding of products"
    a = normal(300, 8); pool = torch.cat([a*1e-7 + 1e5, a*1e-7 - 1e5, a[:50]*1e-7 + 1e5]); x = torch.cat([pool[:40], pool[:40] + 1e-9, pool[300:340]])
    full = torch.cdist(x, pool, compute_mode='donot_use_mm_for_euclid_dist').min(1); i,d = nearest(x, pool, bs=50)
    assert torch.allclose(d, full.values, rtol=1e-6, atol=1e-15) and not d[:40].any() and torch.equal((pool[i]-x).norm(dim=1) <= full.values+1e-15, torch.ones(len(x), dtype=torch.bool))

@settings(max_examples=int(os.environ.get('MINIAI_EXAMPLES', 60)), deadline=None, derandomize=True)
@given(n=st.integers(1, 30), m=st.integers(1, 60), d=st.integers(1, 12), seed=st.integers(0, 999), scale=st.sampled_from((1e-30, 1e-6, 1., 1e20)),
       offset=st.sampled_from((0, 1, 1e3, 1e7)), ties=st.booleans(), k=st.integers(0, 6))
def test_neighbours_right_or_said(n, m, d, seed, scale, offset, ties, k):
    make = grid if ties else normal; x,pool = (make(n, d, seed=seed)+offset)*scale, (make(m, d, seed=seed+1)+offset)*scale
    full = torch.cdist(x, pool, compute_mode='donot_use_mm_for_euclid_dist').min(1).values; i,dist = nearest(x, pool, bs=7)
    chosen = (x-pool[i]).norm(dim=1); assert torch.allclose(chosen, full, rtol=1e-9, atol=1e-12*scale*(1+offset)) and torch.allclose(dist, chosen, rtol=1e-6, atol=1e-12*scale*(1+offset))
    if not 1 <= k < min(n, m): return says('choose 1 ≤ k < n', lambda: precision_recall(x, pool, k))
    assert all(0 <= v <= 1 for v in precision_recall(x, pool, k)[:2]) and math.isfinite(density_coverage(x, pool, k).density)

# --- through an ImageEval, and the rule

@pytest.mark.parametrize('channels', (1, 3))
def test_any_extractor(channels):
    x = images(120, channels); ie = ImageEval(net(channels), DataLoaders(TensorLoader(x, device='cpu'), TensorLoader(images(150, channels, seed=1), device='cpu')))
    d = ie.prdc(unit(x[:60])); assert d['n_ref_prdc'] == 60 and 0 <= d['precision'] <= 1 and (d['k_pr'], d['k_dc']) == (3, 5) and d == ie.prdc(ie.get_feats(unit(x[:60])))
    assert ie.prdc(unit(images(150, channels, seed=1)))['precision'] == 1.            # the reference itself
    says('takes images', lambda: ie.prdc(unit(images(20, channels, 28)))); says('rescale with x*2-1', lambda: ie.prdc(images(20, channels)/255))
    says('k=3 neighbours cannot be found among n=3', lambda: ie.prdc(unit(x[:3])))

def test_bad_features():
    bad = normal(20, 3); bad[2,1] = math.nan
    for f in (precision_recall, density_coverage): says('NaN, infinite', lambda: f(bad, normal(20, 3))); says('d=3 and of d=4', lambda: f(normal(20, 3), normal(20, 4)))
    says('choose 1 ≤ k < n', lambda: knn_radii(normal(5, 2), 0))

def test_floor_z():
    assert floor_z(10, [1., 2., 3.]) == 8 and floor_z(2, [2, 2, 2]) == 0 and floor_z(1, [2, 2, 2]) == -math.inf
    says('at least 3 sets', lambda: floor_z(1., [1., 2.]))

# --- the record

def test_records_carry_what_they_must():
    recs = read_records(ROOT/'results'/'eval.jsonl', experiment='audit'); assert recs
    need = {'floor': 'part', 'changed': 'name part', 'attack': 'of eps goal fid2 floor2'}
    for r in recs:
        assert r['n'] and 'seed' in r, r
        if r['what'] in need: assert {*need[r['what']].split(), 'fid', 'floor', 'kid', 'kid_std', 'precision', 'recall', 'density', 'coverage', 'extractor_hash', 'n_ref'} <= r.keys(), r
