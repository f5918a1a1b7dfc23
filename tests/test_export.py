"Denoisers as ONNX: the same answers as torch for any form, batch and size, with labels and without; what the file says of itself"
import numpy as np, pytest, torch
from torch import nn
from miniai.denoiser import Denoiser
from miniai.diffusion import Level, ddpm
from miniai.export import Graph, OnnxDenoiser, example, export, to_onnx
from miniai.karras import edm
from miniai.solvers import flow, sample
from miniai.unet import UNet

class Plain(nn.Module):
    "A network of one convolution that hears its time and its labels"
    side,n_classes = 2,10
    def __init__(self):
        super().__init__()
        self.conv,self.lab = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(10, 1)
    def forward(self, x, t, y):
        return self.conv(x)*(t/500).cos().view(-1,1,1,1) + (self.lab(y.clamp(min=0))*(y >= 0)[:,None])[...,None,None]

def batch(n, h, w): return 2*torch.randn(n,1,h,w), torch.linspace(0.02, 50, n), torch.arange(n) % 11 - 1
def close(got, want): return all(torch.allclose(g, w, rtol=1e-4, atol=1e-4*w.abs().max().item()) for g,w in zip(got, want, strict=True))

@pytest.mark.parametrize('form', [ddpm(), edm(), flow()], ids=lambda f: type(f).__name__)
def test_a_traced_denoiser_is_the_denoiser(form):
    g = Graph(Denoiser(Plain(), form, card=dict(size=[1,28,28]))).eval()
    args,varies = example(g.den)
    got = torch.export.export(g, args, dynamic_shapes=varies).module()
    for shape in ((1,28,28), (7,28,28), (4,16,40)):
        b = batch(*shape)
        with torch.no_grad(): assert close(got(*b), g(*b))
    each = [g.den(b[0][i:i+1], Level(s, 1., s), b[2][i:i+1]) for i,s in enumerate(b[1].tolist())]     # as samplers call it
    assert close(g(*b), [torch.cat(o) for o in zip(*each)])

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    for p in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(p, reason=f"{p} is missing, so ONNX is not tested: pip install 'miniai[onnx]'")
    torch.manual_seed(0)
    net = UNet(widths=(32,), n_blocks=1, patch=2, n_classes=10).eval()
    for p in net.parameters(): p.data = (p + 0.1*torch.randn_like(p)).half().float()
    den = Denoiser(net, edm(), card=dict(size=[1,28,28], classes=list('abcdefghij')))
    return den, to_onnx(den, tmp_path_factory.mktemp('onnx')/'d.onnx')

def test_onnx_is_the_denoiser_at_any_batch_and_size(made):
    den,path = made
    run = OnnxDenoiser(path, 1).session
    for shape in ((1,28,28), (7,28,28), (4,16,40)):
        b = batch(*shape)
        got = run.run(None, dict(zip(('x','sigma','y'), (o.numpy() for o in b))))
        with torch.no_grad(): assert close(map(torch.from_numpy, got), Graph(den)(*b))

def test_every_solver_takes_it(made):
    den,path = made
    onnx = OnnxDenoiser(path, 1)
    assert onnx.size == den.size and onnx.n_classes == 10 and onnx.card['classes'] == den.card['classes']
    for solver,y in (('ddim', None), ('heun', 3), ('dpmpp_2m', torch.tensor([0,9]))):
        a,b = (sample(d, 2, solver, 4, y, device='cpu') for d in (den, onnx))
        assert torch.allclose(a, b, atol=1e-3*a.abs().max().item())

def test_labels_out_of_range(made):
    with pytest.raises(ValueError, match='labels from 3 to 10: 0 to 9 were expected'): OnnxDenoiser(made[1], 1)(torch.randn(2,1,28,28), Level(1., 1., 1.), torch.tensor([3,10]))

def test_the_file_holds_half_weights_and_no_paths(made):
    import onnx
    den,path = made
    assert not [t.name for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 16]
    assert b'.py' not in path.read_bytes()

def test_what_it_refuses(tmp_path):
    with pytest.raises(ValueError, match='must end in .onnx, got .*net.bin'): export('fashion_edm', tmp_path/'net.bin')
    (tmp_path/'net.onnx').touch()
    with pytest.raises(ValueError, match='exists, and nothing is overwritten'): export('fashion_edm', tmp_path/'net.onnx')
    pytest.importorskip('onnxscript')
    with pytest.raises(ValueError, match='of which size does this denoiser draw'): to_onnx(Denoiser(Plain(), edm()), tmp_path/'n.onnx')
