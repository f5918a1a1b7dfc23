"The call shapes of SPEC §5, as somebody types them who comes with code from the lessons, on a little data"
import pytest
from miniai.imports import *
import torchmetrics, torchvision.transforms.functional as TF
from torcheval.metrics import MulticlassAccuracy

@pytest.fixture(scope='module')
def dsd():
    dd = fashion_mnist('embedded', say=fc.noop)
    return type(dd)({k: v.select(range(n)) for (k,v),n in zip(dd.items(), (96, 40))})

@pytest.fixture(scope='module')
def dls(dsd):
    @inplace
    def transformi(b): b['image'] = [TF.to_tensor(o) for o in b['image']]
    tds = dsd.with_transform(transformi)
    return DataLoaders.from_dd(tds, 32, num_workers=0)

act_gr = partial(GeneralRelu, leak=0.1, sub=0.4); iw = partial(init_weights, leaky=0.1)
def classifier(): return get_model(act_gr, norm=nn.BatchNorm2d).apply(iw)

def test_loaders(dsd, dls):
    xb,yb = next(iter(dls.train)); assert xb.shape == (32,1,28,28) and yb.shape == (32,)
    assert len(DataLoaders.from_dd(dsd.with_format('torch'), 16, num_workers=2).train) == 6
    l = DataLoaders([(xb,yb)], [(xb,yb)]); assert l.train[0][0] is xb and l.valid[0][1] is yb

def test_conv_and_resblock():
    x = torch.randn(2,1,8,8)
    assert conv(1, 4)(x).shape == (2,4,4,4)
    assert conv(1, 4, ks=5, stride=1, act=act_gr, norm=nn.BatchNorm2d, bias=False)(x).shape == (2,4,8,8)
    assert ResBlock(1, 4, stride=2, ks=3, act=act_gr, norm=nn.BatchNorm2d)(x).shape == (2,4,4,4)
    assert ResBlock(1, 4)(x).shape == (2,4,8,8)

def test_the_usual_training(dls, capsys):
    lr,epochs = 1e-2,2
    metrics = MetricsCB(accuracy=MulticlassAccuracy())
    astats = ActivationStats(fc.risinstance(GeneralRelu))
    sched = partial(lr_scheduler.OneCycleLR, max_lr=lr, total_steps=epochs*len(dls.train))
    tfm = lambda b: (b[0]*2-1, b[1])
    cbs = [DeviceCB(), metrics, ProgressCB(plot=True), BatchSchedCB(sched), BatchTransformCB(tfm, on_val=False), astats]
    learn = TrainLearner(classifier(), dls, F.cross_entropy, lr=lr, cbs=cbs, opt_func=optim.AdamW)
    learn.fit(epochs)
    out = capsys.readouterr().out; assert out.count('train') == 3 and 'accuracy' in out        # a head and a row for each
    astats.color_dim(); astats.dead_chart(); astats.plot_stats()
    learn.summary()
    assert 0 <= metrics.history[-1]['accuracy'] <= 1

def test_lr_find(dls):
    learn = TrainLearner(classifier(), dls, F.cross_entropy, lr=0.1, cbs=[DeviceCB(), MetricsCB(), ProgressCB()])
    learn.lr_find(start_lr=1e-4, gamma=1.3)

@pytest.mark.parametrize('metric', [MulticlassAccuracy, lambda: torchmetrics.Accuracy('multiclass', num_classes=10), lambda: torchmetrics.classification.MulticlassAccuracy(num_classes=10)])
def test_anybodys_metrics(dls, metric):
    m = MetricsCB(accuracy=metric())
    TrainLearner(classifier(), dls, F.cross_entropy, cbs=[DeviceCB(), m]).fit(1)
    assert 0 <= m.history[-1]['accuracy'] <= 1

def test_metrics_without_names(dls):
    m = MetricsCB(MulticlassAccuracy()); TrainLearner(classifier(), dls, F.cross_entropy, cbs=[DeviceCB(), m]).fit(1)
    assert 'MulticlassAccuracy' in m.history[0]

def test_looking_inside(dls):
    learn = TrainLearner(classifier(), dls, F.cross_entropy, cbs=[DeviceCB()], opt_func=optim.SGD)
    learn.show_image_batch(max_n=9, cbs=[SingleBatchCB()])
    preds,targs = learn.capture_preds(); assert preds.shape == (40,10) and targs.shape == (40,)
    inps,p2,t2 = learn.capture_preds(inps=True); assert inps.shape == (40,1,28,28) and torch.equal(p2, preds)
    learn.fit(1, train=False, cbs=[SingleBatchCB()]); assert learn.batch[0].shape == (32,1,28,28)    # the batch is still there

def test_hooks(dls):
    def f(hook, mod, inp, outp): hook.shape = tuple(outp.shape)
    hc = HooksCallback(f, mod_filter=fc.risinstance(GeneralRelu), on_train=True, on_valid=False, mods=None)
    model = classifier(); learn = TrainLearner(model, dls, F.cross_entropy, cbs=[DeviceCB(), hc]); learn.fit(1)
    assert hc.hooks[0].shape == (32,8,14,14)
    with Hooks(model, f) as hooks: model(torch.zeros(3,1,28,28, device=def_device))
    assert hooks[0].shape == (3,8,14,14)
    picked = HooksCallback(f, mods=[model[0]]); TrainLearner(model, dls, F.cross_entropy, cbs=[DeviceCB(), picked]).fit(1)
    assert len(picked.hooks) == 1

def test_recorder(dls):
    rec = RecorderCB(lr=lambda cb: cb.pg['lr']); sched = partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=3)
    TrainLearner(classifier(), dls, F.cross_entropy, lr=0.1, cbs=[DeviceCB(), BatchSchedCB(sched), rec]).fit(1)
    rec.plot()

def noisy(b):
    "A diffusion batch by hand: ((x_t, t), ε)"
    x,ε = b[0],torch.randn_like(b[0]); t = torch.randint(0, 1000, (len(x),), device=x.device)
    a = (1-t/1000)[:,None,None,None]
    return (a.sqrt()*x + (1-a).sqrt()*ε, t), ε

class Out:
    def __init__(self, sample): self.sample = sample

class TinyUNet(nn.Module):
    "Answers as diffusers' models do"
    def __init__(self):
        super().__init__(); self.net = nn.Conv2d(2, 1, 3, padding=1)
    def forward(self, x, t): return Out(self.net(torch.cat([x, (t/1000)[:,None,None,None].expand_as(x)], 1)))

def test_a_callback_that_replaces_predict_and_the_batch(dls):
    class MyDDPMCB(TrainCB):
        order = DeviceCB.order+1
        def before_batch(self, learn): learn.batch = noisy(learn.batch)
        def predict(self, learn): learn.preds = learn.model(*learn.batch[0]).sample
    m = MetricsCB()
    learn = Learner(TinyUNet(), dls, nn.MSELoss(), lr=1e-3, cbs=[MyDDPMCB(), DeviceCB(), ProgressCB(plot=True), m], opt_func=optim.Adam)
    learn.fit(1)
    assert m.all_metrics['loss'].weight == 40       # counted by its true number of items

def test_ours_does_the_same(dls):
    learn = Learner(TinyUNet(), dls, nn.MSELoss(), lr=1e-3, cbs=[DDPMCB(vrange=None), DeviceCB(), ProgressCB(plot=True), MetricsCB()], opt_func=optim.Adam)
    learn.fit(1)

def test_features_of_samples():
    samples = torch.randn(6,1,28,28)
    feats,_ = TrainLearner(classifier(), DataLoaders([], [(samples, tensor([0]))]), loss_func=fc.noop, cbs=[DeviceCB()], opt_func=None).capture_preds()
    assert feats.shape == (6,10)

def test_a_tracker_of_ones_own(dls):
    seen = []
    class MyTracker(MetricsCB):
        def _log(self, d):
            seen.append(d); super()._log(d)
    TrainLearner(classifier(), dls, F.cross_entropy, cbs=[DeviceCB(), MyTracker(), ProgressCB()]).fit(1)
    assert [d['train'] for d in seen] == ['train', 'eval'] and all(isinstance(d['loss'], float) for d in seen)

def test_pictures():
    ims = torch.rand(5,1,8,8)
    show_images(ims, nrows=None, ncols=None, titles=None, imsize=1.5); show_images(ims, titles=list('abcde'))
    show_image(ims[0], ax=None, title=None, noframe=True)
    fig,axs = get_grid(5); assert len(axs.flat) >= 5
    fig,axs = subplots(2, 2)

def test_momentum_and_printing_metrics(dls, capsys):
    MomentumLearner(classifier(), dls, F.cross_entropy, lr=0.05, cbs=[DeviceCB(), MetricsCB()], mom=0.9).fit(1)
    assert "'loss'" in capsys.readouterr().out

def test_metrics_see_the_target_after_two_inputs():
    from miniai.learner import Callback, Learner, MetricsCB, TrainCB
    class Seen:
        def reset(self): self.targs = []
        def update(self, preds, targs): self.targs.append(targs)
        def compute(self): return float(torch.cat(self.targs).mean())
    class Add(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(2, 1)
        def forward(self, a, b): return self.l(a+b)
    batch = torch.zeros(4,2), torch.ones(4,2), torch.full((4,1), 7.)
    learn = Learner(Add(), DataLoaders([batch], [batch]), F.mse_loss, lr=0.1, cbs=[TrainCB(n_inp=2), m := MetricsCB(seen=Seen())]); learn.fit(1)
    assert [h['seen'] for h in m.history] == [7., 7.]

def test_a_dataset_of_one_column_still_gives_tuples():
    from datasets import Dataset
    from miniai.datasets import collate_dict
    ds = Dataset.from_dict({'x': [1., 2.]}); b = collate_dict(ds)([ds[0], ds[1]])
    assert isinstance(b, tuple) and b[0].tolist() == [1., 2.]

def test_two_callbacks_of_one_class_are_both_in_a_checkpoint(tmp_path):
    from miniai.checkpoint import CheckpointCB
    from miniai.learner import MetricsCB, TrainLearner
    b = [(torch.ones(4,1), torch.ones(4,1))]*2; ms = [MetricsCB(), MetricsCB()]
    fit = lambda ms, n: TrainLearner(nn.Linear(1,1), DataLoaders(b, b[:1]), F.mse_loss, lr=0.01, cbs=ms).fit(n, cbs=CheckpointCB(tmp_path/'c_0.5'))
    fit(ms, 1); assert (tmp_path/'c_0.5.safetensors').exists()
    again = [MetricsCB(), MetricsCB()]; fit(again, 1)
    assert again[0].history == ms[0].history and again[1].history == ms[1].history and ms[1].history
