"Weights of the right size, activations in order, and what is refused"
import math, sys
from functools import partial
import fastcore.all as fc
import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from miniai.init import BatchTransformCB, GeneralRelu, clean_mem, get_model, init_weights, lsuv_init, plot_func

close = partial(torch.testing.assert_close, rtol=0)

@pytest.mark.parametrize('m,n', [(nn.Conv2d(64, 32, 3), 64*9), (nn.Linear(500, 200), 500)], ids=('conv', 'linear'))
@pytest.mark.parametrize('a', (0., .1, 1.))
def test_variance_of_weights(m, n, a):
    init_weights(m, leaky=a)
    assert m.weight.std().item() == pytest.approx((2/((1+a*a)*n))**.5, abs=2e-3)

def test_other_modules_are_left_alone():
    b = nn.BatchNorm2d(4)
    w = b.weight.clone()
    init_weights(b)
    assert torch.equal(b.weight, w)

def test_general_relu():
    x = torch.randn(100_000)
    assert torch.equal(GeneralRelu()(x), F.relu(x))
    assert torch.equal(GeneralRelu(leak=.1, sub=.4)(x), F.leaky_relu(x, .1) - .4)
    assert GeneralRelu(0.1, 0.4, 1.)(x).max() == 1
    assert F.relu(x).mean().item() == pytest.approx(1/math.sqrt(2*math.pi), abs=.01)

def test_get_model():
    assert get_model()(torch.zeros(2,1,28,28)).shape == (2, 10)
    m = get_model(GeneralRelu, nfs=[1,4,8], norm=nn.BatchNorm2d)
    assert [o.out_channels for o in m.modules() if isinstance(o, nn.Conv2d)] == [4, 8, 10]
    assert [o.bias is not None for o in m.modules() if isinstance(o, nn.Conv2d)] == [False, False, True]

@pytest.mark.parametrize('on_train,on_val,want', [(True, False, [2., 1.]), (False, True, [1., 2.]), (True, True, [2., 2.])])
def test_batch_transform(on_train, on_val, want):
    cb, seen = BatchTransformCB(lambda b: tuple(2*o for o in b), on_train, on_val), []
    for training in (True, False):
        learn = fc.NS(training=training, batch=(torch.ones(1),))
        cb.before_batch(learn)
        seen.append(learn.batch[0].item())
    assert seen == want

def test_lsuv_reaches_0_and_1():
    net, x = get_model(partial(GeneralRelu, leak=.1, sub=.4)), torch.randn(64,1,28,28)
    for layer in list(net)[:4]: assert lsuv_init(net, layer[1], layer[0], x) == pytest.approx((0, 1), abs=1e-3)
    assert (net.training, sum(len(m._forward_hooks) for m in net.modules())) == (True, 0)

def test_lsuv_of_the_layer_itself():
    net, x = get_model(), torch.randn(64,1,28,28)
    assert lsuv_init(net, net[0][0], net[0][0], x) == pytest.approx((0, 1), abs=1e-3)

def test_lsuv_that_cannot_changes_nothing():
    net, x = get_model(), torch.randn(64,1,28,28)
    before = net[0][0].weight.detach().clone()
    with pytest.raises(ValueError, match='A plain ReLU never has mean 0'): lsuv_init(net, net[0][1], net[0][0], x)
    assert torch.equal(net[0][0].weight, before) and net.training and not net[0][1]._forward_hooks
    lin = nn.Linear(4, 4, bias=False)
    with pytest.raises(ValueError, match='cannot be made 0 and 1'): lsuv_init(lin, lin, lin, torch.ones(2,4))

def test_lsuv_restores_the_mode_when_the_batch_does_not_fit():
    net = get_model()
    with pytest.raises(RuntimeError): lsuv_init(net, net[0][0], net[0][0], torch.randn(2,3,28,28))
    assert net.training and not net[0][0]._forward_hooks

def test_plot_func():
    plot_func(torch.square, -1, 1, 3)
    assert plt.gca().lines[0].get_ydata().tolist() == [1, 0, 1]

def test_clean_mem_forgets_the_last_error():
    sys.last_value = sys.last_traceback = 'kept'
    clean_mem()
    assert not hasattr(sys, 'last_value') and not hasattr(sys, 'last_traceback')

def test_star_import():
    names = {}
    exec('from miniai.init import *', names)
    assert {'conv', 'clean_mem', 'plot_func', 'get_model'} <= names.keys()
