"Our U-Net: sizes, channels and memory formats that it takes, what it refuses, and the weights that it finds by name"
import pytest
import torch
from torch import nn
from miniai.core import save
from miniai.unet import UNet, load_unet, timestep_embedding, weights_names

def awake(**kw):
    "A small network with random weights everywhere: one that starts at zero would pass many a test"
    torch.manual_seed(42); net = UNet(**dict(widths=(16,32), n_blocks=1, patch=2) | kw)
    for p in net.parameters(): nn.init.normal_(p, std=0.05)
    return net.requires_grad_(False).eval()

@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [28, 32, 64])
@pytest.mark.parametrize('patch', [1, 2])
def test_sizes_and_channels(channels, size, patch):
    net = awake(channels=channels, patch=patch); x = torch.randn(2, channels, size, size); y = net(x, torch.tensor([3,700]))
    assert y.shape == x.shape and y.std() > 0 and torch.allclose(net(x[1:], 700), y[1:], atol=1e-5)

def test_channels_last_all_the_way():
    last = dict(memory_format=torch.channels_last); net = awake(channels=3); x = torch.randn(2,3,32,32); y = net(x, 500); kept = []
    for m in net.modules():
        if isinstance(m, nn.Conv2d): m.register_forward_hook(lambda m, inp, out: kept.append(inp[0].is_contiguous(**last) and out.is_contiguous(**last)))
    out = net.to(**last)(x.to(**last), 500)
    assert torch.allclose(out, y, atol=1e-4) and out.is_contiguous(**last) and all(kept) and len(kept) > 20

def test_bfloat16():
    net = awake(channels=3); x,t = torch.randn(2,3,32,32), torch.tensor([743,744])
    with torch.autocast('cpu', torch.bfloat16): half = net(x, t)
    y = net(x, t); assert half.dtype == torch.bfloat16 and (half.float()-y).std() < 0.03*y.std()

def test_one_graph():
    torch._dynamo.reset(); net = awake(); x,t = torch.randn(2,1,28,28), torch.tensor([3,700])
    assert torch.allclose(torch.compile(net, backend='eager', fullgraph=True)(x, t), net(x, t), atol=1e-5)

@pytest.mark.parametrize('shape,says', [
    ((1,3,30,28), 'images of 30×28 cannot be halved as often as this U-Net does: both sides must be multiples of 4; pad them, or use fewer widths'),
    ((1,1,28,28), 'images of 1 channels, but this U-Net was built for 3: make one with `channels=1`'),
    ((3,28,28), r'a U-Net takes images N×C×H×W, got a tensor of shape \(3, 28, 28\)')])
def test_images_it_was_not_built_for(shape, says):
    with pytest.raises(ValueError, match=says): awake(channels=3)(torch.zeros(shape), 3)

def test_widths_that_attention_cannot_divide():
    with pytest.raises(ValueError, match='attention needs channels in multiples of 32, got 48: choose such a width at its size, or fewer sizes with attention'): UNet(widths=(32,48))
    UNet(widths=(32,48), attn=0, n_blocks=1)(torch.zeros(1,1,28,28), 3)
    with pytest.raises(ValueError, match='must be even: got 15'): timestep_embedding(torch.zeros(1), 15)

# --- weights

def test_shipped_weights_by_name():
    names = weights_names(); assert 'fashion_ddpm' in names and 'fashion_classifier' not in names and names == sorted(names)
    for nm in names: net,card = load_unet(nm, 'cpu'); assert not net.training and net.config == card['config']
    assert load_unet(device='cpu')[1] == load_unet('fashion_ddpm', 'cpu')[1]

def test_weights_that_are_not_there():
    with pytest.raises(FileNotFoundError, match="there are no weights 'fashion_dpm': give a path that `core.save` returned, or one of the package's own: .*fashion_ddpm"): load_unet('fashion_dpm')

def test_weights_of_no_unet(tmp_path):
    save(nn.Linear(1,1), tmp_path/'w')
    with pytest.raises(ValueError, match='does not say how to make its U-Net: save it with'): load_unet(tmp_path/'w')
    net = awake(); save(net, tmp_path/'u', config=net.config); x = torch.randn(1,1,28,28)
    assert torch.equal(load_unet(tmp_path/'u', 'cpu')[0](x, 3), net(x, 3))
