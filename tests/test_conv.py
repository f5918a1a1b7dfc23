"The layer that every network is made of, and the collate function beside it"
from functools import partial
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from miniai.conv import collate_device, conv
from miniai.core import def_device

@pytest.mark.parametrize('ks', (1, 3, 5))
@pytest.mark.parametrize('stride', (1, 2))
def test_sides_are_divided_by_the_stride_rounding_up(ks, stride):
    assert conv(3, 8, ks, stride)(torch.randn(2, 3, 9, 14)).shape == (2, 8, -(-9//stride), -(-14//stride))

def test_what_follows_the_convolution():
    kinds = lambda m: [type(o).__name__ for o in m]
    assert kinds(conv(3, 8)) == ['Conv2d', 'ReLU']
    assert kinds(conv(3, 8, act=None)) == ['Conv2d']
    assert kinds(conv(3, 8, norm=nn.BatchNorm2d, act=nn.SiLU)) == ['Conv2d', 'BatchNorm2d', 'SiLU']

@pytest.mark.parametrize('kw,bias', [({}, True), (dict(norm=nn.BatchNorm2d), False), (dict(norm=partial(nn.BatchNorm2d, eps=1e-3)), False),
    (dict(norm=nn.InstanceNorm2d), False), (dict(norm=partial(nn.GroupNorm, 4)), True), (dict(bias=False), False), (dict(norm=nn.BatchNorm2d, bias=True), True)])
def test_a_bias_unless_a_norm_undoes_it(kw, bias):
    assert (conv(3, 8, **kw)[0].bias is not None) == bias

def test_batch_norm_undoes_a_bias():
    layer, x = conv(3, 8, norm=nn.BatchNorm2d, bias=True), torch.randn(2, 3, 9, 14)
    before = layer(x)
    layer[0].bias.data += 5
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=0)

@pytest.mark.parametrize('stride', (1, 2))
def test_equivariant_to_moves_by_its_stride(stride):
    layer, x = conv(1, 4, stride=stride, bias=False), torch.zeros(1, 1, 16, 16)
    x[..., 4:8, 4:8] = torch.randn(4, 4)
    torch.testing.assert_close(layer(x.roll(stride, -1)), layer(x).roll(1, -1))

def test_collate_device():
    ds = TensorDataset(torch.randn(6, 1, 4, 4), torch.arange(6))
    x,y = next(iter(DataLoader(ds, batch_size=4, collate_fn=collate_device)))
    assert (x.shape, y.tolist(), x.device.type) == ((4, 1, 4, 4), [0, 1, 2, 3], torch.device(def_device).type)

def test_star_import_brings_the_device_helpers():
    names = {}
    exec('from miniai.conv import *', names)
    assert {'conv', 'collate_device', 'def_device', 'to_device'} <= names.keys()
