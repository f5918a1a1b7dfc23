"Residual blocks, the classifier, its shipped weights and the summary of a model: shapes, identities, and what is refused"
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from miniai.datasets import DataLoaders
from miniai.learner import DeviceCB, ProgressCB, TrainLearner
from miniai.resnet import WEIGHTS, ResBlock, act_gr, cut_classifier, fashion_classifier, resnet_model, shape_of, shortcut

CLASSIFIERS = sorted(p.stem for p in WEIGHTS.glob('fashion_classifier*.safetensors'))

@pytest.mark.parametrize('norm', [None, nn.BatchNorm2d])
@pytest.mark.parametrize('ni,nf,stride,ks', [(3,3,1,3), (3,8,1,3), (3,3,2,3), (3,8,2,5)])
def test_shape_of_a_block(ni, nf, stride, ks, norm):
    x = torch.randn(2, 3, 7, 9)      # a size that cannot be halved exactly
    assert ResBlock(ni, nf, stride, ks, norm=norm)(x).shape == (2, nf, -(-7//stride), -(-9//stride))

def test_a_new_block_is_its_shortcut():
    x = torch.randn(2, 3, 7, 9)
    b = ResBlock(3, 8, 2, norm=nn.BatchNorm2d)
    assert torch.allclose(b(x), b.act(b.shortcut(x)))
    assert torch.equal(ResBlock(3, 3, act=None, norm=nn.BatchNorm2d)(x), x)

def test_a_block_is_equation_1():
    x = torch.randn(2, 3, 7, 9); b = ResBlock(3, 3)
    assert torch.allclose(b(x), act_gr()(x + b.convs(x))) and not torch.allclose(b(x), act_gr()(x))

def test_shortcut_averages_and_widens():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(shortcut(3, 3)(x), x)
    assert torch.allclose(shortcut(3, 3, 2)(x), F.avg_pool2d(x, 2))
    assert shortcut(3, 8, 2)(x).shape == (2, 8, 4, 4)

def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match='side 4 .* give an odd `ks`'): ResBlock(3, 3, ks=4)

@pytest.mark.parametrize('size', [28, 32, 45])
@pytest.mark.parametrize('stride', [1, 2])
def test_any_size(size, stride):
    model = resnet_model(stride=stride); x = torch.randn(2, 1, size, size)
    assert model(x).shape == (2, 10) and model[:-2](x).shape == (2, 512)

def test_other_classifiers():
    assert resnet_model(n_in=3, n_out=4, nfs=(8, 16), n_feat=32)(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    few, many = (sum(p.numel() for p in resnet_model(stride=s).parameters()) for s in (1, 2))
    assert few == many                                        # halving at once takes away no weight

# --- shipped weights

@pytest.mark.parametrize('name', CLASSIFIERS)
def test_a_shipped_classifier(name):
    model = fashion_classifier('cpu', name); cut = cut_classifier(model, 'cpu'); x = torch.rand(3, 1, 28, 28)*2-1
    assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())
    assert cut(x).shape == (3, 512) and torch.equal(model[-2:](cut(x)), model(x))
    assert (WEIGHTS/f'{name}.safetensors').stat().st_size <= 4_000_000

def test_the_reference_is_the_default():
    x = torch.rand(3, 1, 28, 28)*2-1
    assert torch.equal(fashion_classifier('cpu')(x), fashion_classifier('cpu', 'fashion_classifier')(x))
    assert torch.equal(cut_classifier(device='cpu')(x), cut_classifier(fashion_classifier('cpu'), 'cpu')(x))

def test_an_unknown_classifier():
    with pytest.raises(FileNotFoundError, match="no classifier 'nobody' is shipped; there are: fashion_classifier"): fashion_classifier('cpu', 'nobody')

# --- the summary

def loaders(*shape): return DataLoaders([(torch.randn(shape), torch.zeros(shape[0], dtype=torch.long))], [])

def test_summary_learns_nothing():
    model = resnet_model(nfs=(4, 8), n_feat=16)
    before = {k: v.clone() for k,v in model.state_dict().items()}
    learn = TrainLearner(model, loaders(4, 1, 28, 28), F.cross_entropy, cbs=[DeviceCB(), ProgressCB()])
    learn.summary()
    assert all(torch.equal(v.cpu(), before[k]) for k,v in model.state_dict().items())
    assert not [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert len(learn.cbs) == 2

def test_summary_counts_what_torch_counts():
    model = resnet_model(nfs=(4, 8), n_feat=16); x = torch.randn(4, 1, 28, 28)
    with FlopCounterMode(display=False) as counter: model.eval()(x)
    total = TrainLearner(model, loaders(4, 1, 28, 28), F.cross_entropy, cbs=DeviceCB()).summary().rows[-1]
    assert total[-1] == f'{counter.get_total_flops()/4/1e6:,.1f}' and total[-2] == f'{sum(p.numel() for p in model.parameters()):,}'

def test_summary_by_hand():
    c = nn.Conv2d(16, 32, 3, stride=2, padding=1)
    row = TrainLearner(nn.Sequential(c, nn.Flatten()), loaders(5, 16, 14, 14), F.cross_entropy, cbs=DeviceCB()).summary().rows[0]
    assert row == ['0', 'Conv2d', '5×16×14×14', '5×32×7×7', f'{32*16*9+32:,}', f'{2*32*7*7*16*9/1e6:.1f}']

def test_summary_goes_deeper():
    learn = TrainLearner(resnet_model(nfs=(4, 8), n_feat=16), loaders(4, 1, 28, 28), F.cross_entropy, cbs=DeviceCB())
    assert 'block1.convs.1' in str(learn.summary(depth=3)) and 'block1.convs.1' not in str(learn.summary())

def test_summary_of_one_layer_and_of_lists():
    learn = TrainLearner(nn.Linear(4, 3), DataLoaders([(torch.ones(2,4),)], []), F.mse_loss)
    assert learn.summary().rows[0] == ['Linear', 'Linear', '2×4', '2×3', '15', '0.0']
    class Two(nn.Module):
        def __init__(self):
            super().__init__(); self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)])
        def forward(self, x): return self.parts[1](self.parts[0](x))
    names = [r[0] for r in TrainLearner(Two(), DataLoaders([(torch.ones(2,4),)], []), F.mse_loss).summary().rows]
    assert names == ['parts.0', 'parts.1', 'total']

def test_shape_of():
    assert shape_of(((torch.zeros(5,1,2,2), torch.zeros(5)), {'t': torch.tensor(1.)})) == '5×1×2×2, 5, scalar'
