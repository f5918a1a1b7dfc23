"Hooks come and go, and what they note is what there was"
import math
import fastcore.all as fc
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from miniai.activations import (ActivationStats, Hook, Hooks, HooksCallback, append_stats, dead_share, first_tensor,
                                get_hist, get_min)
from miniai.conv import conv
from miniai.datasets import DataLoaders
from miniai.learner import Callback, CancelFitException, DeviceCB, SingleBatchCB, TrainLearner

def keep_std(hook, mod, inp, outp): hook.stds = getattr(hook, 'stds', []) + [outp.detach().std()]
def n_hooks(model): return sum(len(m._forward_hooks) for m in model.modules())
def net(): return nn.Sequential(conv(1, 4), conv(4, 8), nn.Flatten(), nn.Linear(32, 10))

@pytest.fixture
def learn():
    def batches(n): return [(torch.randn(4,1,8,8), torch.randint(0, 10, (4,))) for _ in range(n)]
    return TrainLearner(net(), DataLoaders(batches(3), batches(2)), F.cross_entropy, lr=0.1, cbs=[DeviceCB()])

def test_a_hook_hears_until_it_is_removed():
    model, x = net(), torch.randn(4,1,8,8)
    with Hook(model[0], keep_std) as h:
        model(x)
        model(x)
    model(x)
    assert len(h.stds) == 2 and h.name == 'Sequential'
    torch.testing.assert_close(h.stds[0], model[0](x).detach().std())

def test_what_a_hook_returns_is_ignored():
    model, x = net(), torch.randn(4,1,8,8)
    y = model(x)
    with Hook(model[0], lambda hook, mod, inp, outp: outp*0): assert torch.equal(model(x), y)

def test_hooks_are_removed_one_by_one_and_however_the_block_ends():
    model = net()
    with Hooks([model[0], model[3]], keep_std) as hooks:
        assert n_hooks(model) == 2
        del hooks[0]
        assert (len(hooks), n_hooks(model)) == (1, 1)
    with pytest.raises(KeyboardInterrupt), Hooks(model, keep_std):
        assert n_hooks(model) == 4
        raise KeyboardInterrupt
    assert n_hooks(model) == 0

def test_which_modules_and_which_batches(learn):
    relus = HooksCallback(keep_std, mod_filter=fc.risinstance(nn.ReLU))
    learn.fit(1, cbs=relus)
    assert [h.name for h in relus.hooks] == ['0.1 ReLU', '1.1 ReLU'] and [len(h.stds) for h in relus.hooks] == [3, 3]
    valid = HooksCallback(keep_std, mods=[learn.model[1]], on_train=False, on_valid=True)
    learn.fit(1, cbs=valid)
    assert len(valid.hooks[0].stds) == 2
    every = HooksCallback(keep_std, on_valid=True)
    learn.fit(1, train=False, cbs=[every, SingleBatchCB()])
    assert len(every.hooks) == len(list(learn.model.modules()))

@pytest.mark.parametrize('how', (RuntimeError, KeyboardInterrupt, CancelFitException))
def test_a_model_is_clean_however_its_fit_ends(learn, how):
    class EndCB(Callback):
        def after_batch(self, learn): raise how('enough')
    hc = HooksCallback(keep_std)
    try: learn.fit(1, cbs=[hc, EndCB()])
    except how: pass
    assert (n_hooks(learn.model), len(hc.hooks[0].stds)) == (0, 1)

def test_nothing_to_listen_to(learn):
    with pytest.raises(ValueError, match='no module of this Sequential to listen to'):
        learn.fit(1, cbs=HooksCallback(keep_std, fc.risinstance(nn.LSTM)))
    with pytest.raises(ValueError, match='no activations recorded yet'): ActivationStats().color_dim()

def test_first_tensor():
    o = {'sample': (None, [torch.full((2,), 3, dtype=torch.bfloat16, requires_grad=True)])}
    t = first_tensor(o)
    assert t.tolist() == [3, 3] and t.dtype == torch.float32 and not t.requires_grad
    assert first_tensor(('a', 3)) is None

def test_dead_is_zero_everywhere():
    a = torch.zeros(2, 4, 3, 3)
    a[0,1,2,2], a[1,2] = 1e-9, -5.
    assert dead_share(a) == 0.5
    assert dead_share(torch.tensor([[0., 1.], [0., 0.]])) == 0.5 and dead_share(torch.tensor([0., 1.])) == 0.5

def test_statistics_of_a_batch():
    h, a = fc.NS(), torch.tensor([[0., -.3, .2, 9.]], requires_grad=True)
    append_stats(h, None, None, a)
    append_stats(h, None, None, 'no tensor')
    means, stds, hists, zeros, dead = (o[0] for o in h.stats)
    torch.testing.assert_close(means, a.detach().mean())
    torch.testing.assert_close(stds, a.detach().std(correction=0))
    assert (hists[0], hists[1], hists[36], hists.sum()) == (2, 1, 1, 4)
    assert (zeros, dead, len(h.stats[0]), means.requires_grad) == (0.25, 0.25, 1, False)

def test_what_is_too_large_or_no_number_is_counted_at_the_top():
    h = fc.NS()
    append_stats(h, None, None, torch.tensor([math.nan, math.inf, 99., -11.]))
    assert h.stats[2][0][-1] == 4

def test_get_hist_and_get_min():
    h = fc.NS()
    for a in (torch.zeros(1, 8), torch.tensor([[0., 1., 2., 3.]])): append_stats(h, None, None, a)
    assert get_hist(h).shape == (40, 2) and get_min(h).tolist() == [1, 0.25]
    torch.testing.assert_close(get_hist(h).expm1().sum(0), torch.tensor([8., 4.]))

def test_stats_are_one_row_a_module_and_one_entry_a_batch(learn):
    st = ActivationStats(fc.risinstance(nn.ReLU), bins=20)
    learn.fit(2, cbs=st)
    for s in st.stats():
        assert s.hist.shape == (6, 20) and {len(o) for o in (s.mean, s.std, s.zero, s.dead)} == {6}
        assert (s.dead <= s.zero + 1e-6).all() and s.hist.device.type == 'cpu'
    st.color_dim()
    st.dead_chart()
    st.plot_stats()

def test_star_import_brings_set_seed():
    names = {}
    exec('from miniai.activations import *', names)
    assert {'set_seed', 'get_hist', 'get_min', 'ActivationStats'} <= names.keys()
