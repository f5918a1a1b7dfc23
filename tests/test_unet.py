"Our U-Net: sizes, labels and memory formats that it takes, what it refuses, derivatives, export, and weights by name"
import pytest
import torch
from torch import nn
from miniai.core import load, save
from miniai.unet import SelfAttention, UNet, load_unet, timestep_embedding, weights_names

def awake(**kw):
    "A small network with random weights everywhere: one that starts at zero would pass many a test"
    torch.manual_seed(42)
    net = UNet(**dict(widths=(16,32), n_blocks=1, patch=2) | kw)
    for p in net.parameters(): nn.init.normal_(p, std=0.05)
    return net.requires_grad_(False).eval()

# --- what it computes

@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [28, 32, 64])
@pytest.mark.parametrize('patch', [1, 2])
@pytest.mark.parametrize('attn', [0, 1, 2])
def test_sizes_channels_attention(channels, size, patch, attn):
    net = awake(channels=channels, patch=patch, attn=attn, widths=(32,32))
    x = torch.randn(2, channels, size, size)
    y = net(x, torch.tensor([3,700]))
    assert y.shape == x.shape and y.std() > 0 and torch.allclose(net(x[1:], 700), y[1:], atol=1e-5)
    assert any(isinstance(m, SelfAttention) for m in net.modules()) == (attn > 0)

def test_sides_may_differ_and_three_sizes():
    net = awake(widths=(16,16,32), patch=1)
    assert net(torch.randn(1,1,16,24), 3).shape == (1,1,16,24)

def test_attention_is_torchs():
    torch.manual_seed(0)
    att = SelfAttention(64)
    nn.init.normal_(att.out.weight)
    x = torch.randn(2,64,6,8)
    q,k,v = att.qkv(att.norm(x)).reshape(2, 3, 2, 32, 48).transpose(-1,-2).unbind(1)
    o = nn.functional.scaled_dot_product_attention(q, k, v).transpose(-1,-2).reshape(x.shape)
    assert torch.allclose(att(x), x + att.out(o), atol=1e-4)

def test_starts_at_zero_and_wakes_up():
    torch.manual_seed(0)
    net = UNet(widths=(16,32), n_blocks=1, patch=2, n_classes=3)
    opt = torch.optim.Adam(net.parameters(), 1e-3)
    x,targ,y = torch.randn(8,1,28,28), torch.randn(8,1,28,28), torch.arange(8) % 3
    assert not net(x, 3).any()
    for _ in range(3):
        opt.zero_grad()
        nn.functional.mse_loss(net(x, torch.arange(8)*100, y), targ).backward()
        opt.step()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())

def test_forward_derivative_is_the_limit_of_differences():
    net = awake(channels=3).double()
    torch.manual_seed(1)
    x,v = torch.randn(2,1,3,16,16, dtype=torch.float64)
    t = torch.tensor([500.], dtype=torch.float64)
    y,dy = torch.func.jvp(lambda x: net(x, t), (x,), (v,))
    h = 1e-5
    assert torch.allclose(dy, (net(x+h*v, t)-net(x-h*v, t))/(2*h), atol=1e-7) and torch.equal(y, net(x, t))

def test_channels_last_all_the_way():
    last = dict(memory_format=torch.channels_last)
    net = awake(channels=3)
    x = torch.randn(2,3,32,32)
    y = net(x, 500)
    kept = []
    def _hook(m, inp, out): kept.append(inp[0].is_contiguous(**last) and out.is_contiguous(**last))
    for m in net.modules():
        if isinstance(m, nn.Conv2d): m.register_forward_hook(_hook)
    out = net.to(**last)(x.to(**last), 500)
    assert torch.allclose(out, y, atol=1e-4) and out.is_contiguous(**last) and all(kept) and len(kept) > 20

def test_bfloat16():
    net = awake(channels=3)
    x,t = torch.randn(2,3,32,32), torch.tensor([743,744])
    with torch.autocast('cpu', torch.bfloat16): half = net(x, t)
    y = net(x, t)
    assert half.dtype == torch.bfloat16 and (half.float()-y).std() < 0.03*y.std()

# --- labels

def test_labels():
    net = awake(n_classes=10)
    nn.init.normal_(net.labels.weight, std=10)
    x,t = torch.randn(3,1,28,28), torch.tensor([3,500,900])
    none,y = net(x, t), net(x, t, torch.tensor([4,-1,4]))
    assert torch.allclose(none[1], y[1], atol=1e-6) and not torch.allclose(none[0], y[0], atol=1e-3)
    assert torch.allclose(none, net(x, t, torch.tensor([-1,-1,-1])), atol=1e-6)

def test_labels_change_nothing_at_the_start():
    torch.manual_seed(0)
    net = UNet(widths=(16,32), n_blocks=1, patch=2, n_classes=10)
    for m in (net.out[2], *[m.conv2 for m in net.modules() if hasattr(m, 'conv2')]): nn.init.normal_(m.weight)
    x = torch.randn(2,1,28,28)
    assert net(x, 3).any() and torch.equal(net(x, 3), net(x, 3, torch.tensor([4,9])))

@pytest.mark.parametrize('kw,y,says', [
    (dict(), [0,1], 'labels were given to a U-Net that was built without them'),
    (dict(n_classes=10), [0,1,2], r'labels must be one whole number for each of the 2 images, got torch.int64 of shape \(3,\)'),
    (dict(n_classes=10), [0.,1.], 'labels must be one whole number for each of the 2 images, got torch.float32'),
    (dict(n_classes=10), [0,10], 'labels must lie in 0…9, or be -1 for no label: got 0 to 10'),
    (dict(n_classes=10), [-2,1], 'labels must lie in 0…9, or be -1 for no label: got -2 to 1')])
def test_labels_that_cannot_be(kw, y, says):
    with pytest.raises(ValueError, match=says): awake(**kw)(torch.zeros(2,1,28,28), 3, torch.tensor(y))

# --- other runtimes

def test_one_graph():
    torch._dynamo.reset()
    net = awake(n_classes=10)
    x,t,y = torch.randn(2,1,28,28), torch.tensor([3,700]), torch.tensor([-1,4])
    assert torch.allclose(torch.compile(net, backend='eager', fullgraph=True)(x, t, y), net(x, t, y), atol=1e-5)

def dynamic(side):
    "Names for what may vary: the batch, and sides in multiples of `side`"
    n,h,w = (torch.export.Dim(o, min=2, max=512) for o in ('n', 'h', 'w'))
    return dict(x={0: n, 2: side*h, 3: side*w}, t={0: n})

def test_exported_graph_takes_any_batch_and_size():
    net = awake()
    got = torch.export.export(net, (torch.randn(3,1,28,24), torch.rand(3)), dynamic_shapes=dynamic(net.side))
    for shape in ((5,1,32,40), (2,1,16,12)):
        x,t = torch.randn(shape), torch.rand(shape[0])*900
        assert torch.allclose(got.module()(x, t), net(x, t), atol=1e-5)

def test_onnx_takes_any_batch_and_size(tmp_path):
    pytest.importorskip('onnxscript'); ort = pytest.importorskip('onnxruntime')
    net = awake()
    prog = torch.onnx.export(net, (torch.randn(3,1,28,24), torch.rand(3)), dynamo=True, verbose=False,
                             input_names=['x','t'], dynamic_shapes=dynamic(net.side))
    prog.save(tmp_path/'u.onnx')
    run = ort.InferenceSession(str(tmp_path/'u.onnx'))
    x,t = torch.randn(5,1,32,40), torch.rand(5)*900
    out = run.run(None, dict(zip((i.name for i in run.get_inputs()), (x.numpy(), t.numpy()))))[0]
    assert torch.allclose(torch.from_numpy(out), net(x, t), atol=1e-4)

# --- what it refuses

@pytest.mark.parametrize('shape,says', [
    ((1,3,30,28), 'images of 30×28 cannot be halved as often as this U-Net does: both sides must be multiples of 4; pad them, or use fewer widths'),
    ((1,1,28,28), 'images of 1 channels, but this U-Net was built for 3: make one with `channels=1`'),
    ((3,28,28), r'a U-Net takes images N×C×H×W, got a tensor of shape \(3, 28, 28\)')])
def test_images_it_was_not_built_for(shape, says):
    with pytest.raises(ValueError, match=says): awake(channels=3)(torch.zeros(shape), 3)

def test_widths_that_attention_cannot_divide():
    with pytest.raises(ValueError, match='attention needs channels in multiples of 32, got 48: choose such a width at its size, or fewer sizes with attention'):
        UNet(widths=(32,48))
    UNet(widths=(32,48), attn=0, n_blocks=1)(torch.zeros(1,1,28,28), 3)
    with pytest.raises(ValueError, match='must be even: got 15'): timestep_embedding(torch.zeros(1), 15)

# --- weights

def test_shipped_weights_by_name():
    names = weights_names()
    assert 'fashion_ddpm' in names and 'fashion_classifier' not in names and names == sorted(names)
    for nm in names:
        net,card = load_unet(nm, 'cpu')
        assert not net.training and card['config'].items() <= net.config.items()
    assert load_unet(device='cpu')[1] == load_unet('fashion_ddpm', 'cpu')[1]

def test_weights_that_are_not_there():
    with pytest.raises(FileNotFoundError, match="there are no weights 'fashion_dpm': give a path that `core.save` returned, or one of the package's own: .*fashion_ddpm"):
        load_unet('fashion_dpm')

def test_weights_of_no_unet(tmp_path):
    save(nn.Linear(1,1), tmp_path/'w')
    with pytest.raises(ValueError, match='does not say how to make its U-Net: save it with'): load_unet(tmp_path/'w')
    net = awake(n_classes=10)
    save(net, tmp_path/'u', config=net.config)
    x,y = torch.randn(1,1,28,28), torch.tensor([3])
    assert torch.equal(load_unet(tmp_path/'u', 'cpu')[0](x, 3, y), net(x, 3, y))
