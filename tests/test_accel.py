"What makes training quicker or steadier, each against its definition: half precision, clipping, averaged weights, initialisation, Accelerate"
import math
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from miniai.accel import AccelerateCB, ClipGradCB, EMACB, MixedPrecision, init_ddpm
from miniai.datasets import DataLoaders
from miniai.learner import Callback, CancelBatchException, DeviceCB, Learner, MetricsCB, TrainCB, TrainLearner
from miniai.unet import UNet

def data(n=3):
    g = torch.Generator().manual_seed(0); x = torch.randn(n, 8,3, generator=g)
    return DataLoaders([(o, o.sum(1, keepdim=True)) for o in x], [(x[0], x[0].sum(1, keepdim=True))])

def learner(*cbs, model=None, dls=None, lr=.05, **kw):
    torch.manual_seed(1); m = MetricsCB(); m._log = lambda d: None
    return Learner(model or nn.Linear(3,1), dls or data(), F.mse_loss, lr=lr, cbs=[*cbs, m], **kw)

def trained(*cbs, epochs=2, **kw):
    l = learner(*cbs, **kw); l.fit(epochs)
    return l.model.weight.detach().clone(), [h['loss'] for h in l.metrics.history]

# --- half precision

def test_the_model_and_the_loss_run_in_bfloat16():
    class LookCB(Callback):
        def after_predict(self, learn): self.preds = learn.preds.dtype
        def after_loss(self, learn): self.loss = learn.loss.dtype
        def after_backward(self, learn): self.grad = learn.model.weight.grad.dtype
    look = LookCB(); l = learner(MixedPrecision(device='cpu'), look); l.fit(1)
    assert (look.preds, look.loss, look.grad) == (torch.bfloat16, torch.float32, torch.float32)
    assert l.model.weight.dtype == torch.float32

def test_half_precision_learns_the_same_but_for_rounding():
    a,b = trained(TrainCB()), trained(MixedPrecision(device='cpu'))
    torch.testing.assert_close(a[0], b[0], rtol=.02, atol=.01)
    assert a[1] == pytest.approx(b[1], rel=.05) and a[1] != b[1]

def test_autocast_ends_with_the_batch():
    "However the batch ends"
    class CancelCB(Callback):
        def after_predict(self, learn): raise CancelBatchException()
    class FailCB(Callback):
        def after_predict(self, learn): raise RuntimeError('in the middle')
    learner(MixedPrecision(device='cpu'), CancelCB()).fit(1)
    assert not torch.is_autocast_enabled('cpu')
    with pytest.raises(RuntimeError, match='in the middle'): learner(MixedPrecision(device='cpu'), FailCB()).fit(1)
    assert not torch.is_autocast_enabled('cpu')

def test_several_inputs():
    class Add(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(3, 1)
        def forward(self, a, b): return self.l(a+b)
    x = torch.randn(4,3); batch = x, 2*x, torch.zeros(4,1); l = learner(MixedPrecision(n_inp=2, device='cpu'), model=Add(), dls=DataLoaders([batch]*5, [batch]))
    l.fit(3); losses = [h['loss'] for h in l.metrics.history]
    assert losses[-1] < losses[0]

@pytest.mark.parametrize('kw,says', [(dict(dtype=torch.float16, device='cpu'), r"float16 training needs CUDA \(for its loss scaling\); on 'cpu' use torch.bfloat16"), (dict(dtype=torch.float64), 'not torch.float64')], ids=str)
def test_precisions_that_are_none(kw, says):
    with pytest.raises(ValueError, match=says): MixedPrecision(**kw)

def test_one_provider_of_each_verb():
    with pytest.raises(ValueError, match='TrainLearner and MixedPrecision both provide `predict`'):
        TrainLearner(nn.Linear(3,1), data(), F.mse_loss, cbs=[MixedPrecision(device='cpu')]).fit(1)

def test_its_state_comes_back():
    cb = MixedPrecision(device='cpu'); learner(cb).fit(1)
    cb.load_state_dict(cb.state_dict())

# --- clipping

class NormCB(Callback):
    order = ClipGradCB.order+1
    def after_backward(self, learn): self.norm = torch.stack([p.grad.norm() for p in learn.model.parameters()]).norm().item()

@pytest.mark.parametrize('limit', [.5, 1e6])
def test_gradients_are_scaled_down_to_a_norm(limit):
    batch = torch.ones(4,1), torch.full((4,1), 100.)
    clip,norm = ClipGradCB(limit), NormCB(); learner(TrainCB(), clip, norm, model=nn.Linear(1,1), dls=DataLoaders([batch], []), lr=0.).fit(1, valid=False)
    assert norm.norm == pytest.approx(min(limit, clip.norms[0].item()), abs=1e-3) and clip.norms[0] > .5

def test_clipping_keeps_the_direction():
    class GradCB(Callback):
        order = ClipGradCB.order+1
        def after_backward(self, learn): self.grad = learn.model.weight.grad.flatten().clone()
    a,b = GradCB(), GradCB(); learner(TrainCB(), a, lr=0.).fit(1); learner(TrainCB(), ClipGradCB(1e-3), b, lr=0.).fit(1)
    assert F.cosine_similarity(a.grad, b.grad, dim=0) > 1-1e-5 and b.grad.norm() < a.grad.norm()

# --- averaged weights

class RecordCB(Callback):
    "Weights after each step, and what validation sees"
    def before_fit(self, learn): self.ws, self.seen = [learn.model.weight.item()], []
    def after_step(self, learn): self.ws.append(learn.model.weight.item())
    def after_predict(self, learn):
        if not learn.training: self.seen.append(learn.model.weight.item())

LINE = [(torch.ones(4,1), 3*torch.ones(4,1))]*5
def on_a_line(*cbs):
    torch.manual_seed(1)
    return learner(TrainCB(), *cbs, model=nn.Linear(1,1,bias=False), dls=DataLoaders(LINE, LINE[:1]), lr=.1)

def test_the_average_by_hand():
    "μ = min(decay, (1+n)/(10+n)) after n steps: in for validation, out again for training"
    r = RecordCB(); l = on_a_line(EMACB(.5), r); l.fit(1); avg = r.ws[0]
    for n,w in enumerate(r.ws[1:], 1): μ = min(.5, (1+n)/(10+n)); avg = μ*avg + (1-μ)*w
    assert r.seen[0] == pytest.approx(avg, abs=1e-5) and l.model.weight.item() == pytest.approx(r.ws[-1])

def test_the_average_does_not_change_training():
    with_,without = RecordCB(), RecordCB(); on_a_line(EMACB(.9), with_).fit(2); on_a_line(without).fit(2)
    assert with_.ws == without.ws and with_.seen != without.seen

def test_without_decay_the_average_is_the_last_weight():
    e,r = EMACB(0.), RecordCB(); on_a_line(e, r).fit(1)
    assert e.ema['weight'].item() == pytest.approx(r.ws[-1])

def test_an_error_in_validation_leaves_the_weights_of_training():
    class FailCB(Callback):
        def after_predict(self, learn):
            if not learn.training: raise RuntimeError('in the middle of validation')
    l = on_a_line(EMACB(.5)); l.fit(1); w = l.model.weight.item()
    with pytest.raises(RuntimeError, match='in the middle'): l.fit(1, train=False, cbs=FailCB())
    assert l.model.weight.item() == w

def test_applied_is_a_context():
    e = EMACB(.5); l = on_a_line(e); l.fit(1); w = l.model.weight.item()
    with e.applied(l.model) as m: assert m.weight.item() == pytest.approx(e.ema['weight'].item()) != w
    assert l.model.weight.item() == w
    with pytest.raises(KeyError):
        with e.applied(l.model): raise KeyError
    assert l.model.weight.item() == w

def test_counters_are_copied_not_averaged():
    net = nn.Sequential(nn.Linear(3,2), nn.BatchNorm1d(2), nn.Linear(2,1)); e = EMACB(.9); learner(TrainCB(), e, model=net).fit(2)
    assert e.ema['1.num_batches_tracked'] == net[1].num_batches_tracked == 6

def test_the_average_goes_on_from_its_state():
    e = EMACB(.9); l = on_a_line(e); l.fit(2); again = EMACB(.9)
    half = EMACB(.9); l2 = on_a_line(half); l2.fit(1); state = {k: ({a: b.clone() for a,b in v.items()} if isinstance(v, dict) else v) for k,v in half.state_dict().items()}
    class ResumeCB(Callback):
        order = EMACB.order+1
        def before_fit(self, learn): again.load_state_dict(state)
    on = Learner(l2.model, l2.dls, F.mse_loss, lr=.1, cbs=[TrainCB(), again, ResumeCB()]); on.fit(1)
    assert again.n == e.n and again.ema['weight'].item() == pytest.approx(e.ema['weight'].item())

@pytest.mark.parametrize('decay', [1., -.1, 1.5, math.nan])
def test_decays_that_are_none(decay):
    with pytest.raises(ValueError, match=rf'in \[0,1\), got {decay}'): EMACB(decay)

# --- initialisation

def test_initialised_networks_begin_with_nothing():
    net = init_ddpm(UNet(widths=(16,32), n_blocks=1, patch=2))
    assert net(torch.randn(2,1,16,16), torch.tensor([3, 4])).abs().max() == 0
    down = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.stride[0] > 1]; assert down
    for m in down: w = m.weight.detach().flatten(1); torch.testing.assert_close(w @ w.T, torch.eye(len(w)), rtol=0, atol=1e-4)
    second = [m for nm,m in net.named_modules() if nm.endswith('conv2')]; assert second and all(m.weight.abs().max() == 0 for m in second)

def test_networks_of_diffusers_too():
    from diffusers import UNet2DModel
    net = init_ddpm(UNet2DModel(in_channels=1, out_channels=1, block_out_channels=(8,16), layers_per_block=1, norm_num_groups=8, down_block_types=('DownBlock2D',)*2, up_block_types=('UpBlock2D',)*2))
    assert net(torch.randn(1,1,16,16), 3).sample.abs().max() == 0 and sum(nm.endswith('conv2') for nm,_ in net.named_modules()) > 4

def test_nothing_to_initialise():
    with pytest.raises(ValueError, match='Linear has no convolutions'): init_ddpm(nn.Linear(1,1))

# --- Accelerate

def accelerated(**kw):
    "A training through Accelerate, whose state is one for the whole process and cannot be set twice: it is forgotten first"
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(True)
    return trained(AccelerateCB(cpu=True, **kw))

def test_through_accelerate_the_same_losses():
    a,b = trained(TrainCB()), accelerated()
    assert torch.equal(a[0], b[0]) and a[1] == b[1]

def test_accelerate_is_not_asked_to_accumulate(monkeypatch):
    "It would divide the loss, and leave the steps to a loop that is not its own"
    with pytest.raises(ValueError, match=r'gradient_accumulation_steps=4, use AccumulateCB\(4\)'): accelerated(gradient_accumulation_steps=4)
    a = accelerated()
    assert torch.equal(a[0], trained(TrainCB())[0])
    monkeypatch.setenv('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', '3')
    with pytest.raises(ValueError, match=r'use AccumulateCB\(3\)'): accelerated()

def test_accelerate_gives_the_model_back():
    net = nn.Linear(3,1); l = learner(AccelerateCB(cpu=True), model=net); l.fit(1)
    assert l.model is net
    l.fit(1)                                            # and once more

def test_accelerate_s_half_precision():
    a,b = accelerated(), accelerated(mixed_precision='bf16')
    assert a[1] == pytest.approx(b[1], rel=.05) and a[1] != b[1]
