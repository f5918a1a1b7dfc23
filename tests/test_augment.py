"Augmentation, dropout and predictions: what moves, what stays, and that ours is torch's"
import pytest
import torch
import torch.nn.functional as F
import fastcore.all as fc
from torch import nn
from miniai.augment import *
from miniai.core import set_seed
from miniai.datasets import DataLoaders
from miniai.learner import Callback, DeviceCB, SingleBatchCB, TrainLearner
from miniai.resnet import summary as the_summary

def ramp(n, side): return torch.arange(float(side*side)).view(1,1,side,side).repeat(n,1,1,1)

# --- images

def test_rand_crop_moves_each_image_by_its_own():
    c = rand_crop(ramp(300, 4)+1, 1)
    assert {int(o[0,1,1])-6 for o in c} == {-5,-4,-3,-1,0,1,3,4,5}            # all nine moves by up to a pixel
    left = next(o for o in c if o[0,1,1] == 7)
    assert torch.equal(left[0,:,:3], (ramp(1, 4)+1)[0,0,:,1:]) and (left[0,:,3] == -1).all()

def test_rand_flip():
    x = ramp(300, 4); f = rand_flip(x); same = (f == x).flatten(1).all(1)
    assert torch.equal(f[~same], x[~same].flip(-1)) and 0.3 < same.float().mean() < 0.7
    assert torch.equal(rand_flip(x, 0.), x) and torch.equal(rand_flip(x, 1.), hflip(x))

def test_shift_images():
    x = torch.arange(9.).view(1,1,3,3)
    assert shift_images(x, right=1)[0,0].tolist() == [[-1,0,1],[-1,3,4],[-1,6,7]]
    assert (shift_images(x, down=-1)[0,0,-1] == -1).all() and torch.equal(shift_images(x), x)

@pytest.mark.parametrize('f', [rand_erase, rand_copy])
def test_boxes(f):
    x = torch.randn(2000, 2, 10, 10); y = f(x, pct=0.3, max_num=1); hit = (y != x).any(1).flatten(1).float().mean(1)
    assert abs((hit > 0).float().mean()-0.5) < 0.05 and hit.max() <= 3*3/100 + 1e-6     # none or one box, equally likely
    assert torch.equal(f(x, max_num=0), x)
    many = f(x, max_num=8, pct=0.5)
    assert abs(many.mean()-x.mean()) < 0.01 and abs(many.std()-x.std()) < 0.01          # the statistics stay
    assert many.min() >= x.min() and many.max() <= x.max()

@pytest.mark.parametrize('M,f', [(RandErase, rand_erase), (RandCopy, rand_copy)])
def test_as_modules(M, f):
    x = torch.randn(20, 1, 10, 10); set_seed(3); a = M(0.5, 2)(x); set_seed(3)
    assert torch.equal(a, f(x, 0.5, 2))

def test_a_copied_box_is_moved_as_a_whole():
    y = rand_copy(ramp(50, 10), 0.3, 1)
    for a,b in zip(y, ramp(50, 10)): assert len(set((a-b)[a != b].tolist())) <= 1      # one distance for all of it

@pytest.mark.parametrize('f', [pixel_noise, rand_copy, rand_erase])
def test_the_channels_of_a_pixel_stay_together(f):
    two = torch.cat([ramp(9, 10), ramp(9, 10)+1000], 1); y = f(two)
    assert torch.equal(y[:,1]-y[:,0], torch.full((9,10,10), 1000.))

def test_corners_lie_inside():
    c = rand_corners(torch.zeros(500, 1, 7, 9), (3, 9))
    assert set(c[:,0].tolist()) == set(range(5)) and set(c[:,1].tolist()) == {0}

def test_box_masks_are_boxes():
    for corner,where in rand_boxes(torch.zeros(50, 1, 10, 10), 0.3, 3):
        for (r,c),w in zip(corner.tolist(), where[:,0]): assert not w.any() or (w.sum() == 9 and w[r:r+3, c:c+3].all())

# --- dropout

@pytest.mark.parametrize('ours,theirs', [(Dropout, nn.Dropout), (Dropout2d, nn.Dropout2d)])
@pytest.mark.parametrize('p', [0., 0.1, 0.5, 1.])
def test_the_same_coins_as_torch(ours, theirs, p):
    a = torch.randn(16, 8, 5, 5, requires_grad=True); b = a.detach().clone().requires_grad_()
    set_seed(5); ya = ours(p)(a); set_seed(5); yb = theirs(p)(b)
    (ya**2).sum().backward(); (yb**2).sum().backward()
    assert torch.allclose(ya, yb, atol=1e-6) and torch.allclose(a.grad, b.grad, atol=1e-5)
    assert torch.equal(ours(p).eval()(b), b)

def test_dropout_keeps_the_mean():
    y = Dropout(0.3)(torch.ones(2000, 50, 2, 2))
    assert abs(y.mean()-1) < 0.01 and abs((y == 0).float().mean()-0.3) < 0.01

def test_dropout2d_drops_whole_channels():
    share = (Dropout2d(0.5)(torch.ones(20, 20, 3, 3)) == 0).flatten(2).float().mean(2)
    assert sorted(share.unique().tolist()) == [0., 1.]

def test_bad_dropout():
    with pytest.raises(ValueError, match='share to drop is 1.5'): Dropout(1.5)
    with pytest.raises(ValueError, match=r'shape \(2, 3\); use Dropout'): Dropout2d()(torch.ones(2, 3))

# --- predictions

def predicting(model, batches, **kw): return TrainLearner(model, DataLoaders([], batches), F.cross_entropy, cbs=DeviceCB(), opt_func=None, **kw)

def test_capture_preds():
    x = torch.randn(6, 1, 4, 4); learn = predicting(nn.Flatten(), [(x[:4], torch.arange(4)), (x[4:], torch.arange(4, 6))])
    i,p,t = learn.capture_preds(inps=True)
    assert torch.equal(i, x) and torch.equal(p, x.flatten(1)) and t.tolist() == list(range(6))
    p,t = learn.capture_preds(); assert torch.equal(p, x.flatten(1))
    assert len(learn.cbs) == 1
    p,t = learn.capture_preds(cbs=SingleBatchCB()); assert torch.equal(p, x[:4].flatten(1))      # of a cancelled fit, what there is

def test_one_number_as_target():
    learn = TrainLearner(nn.Flatten(), DataLoaders([], [(torch.randn(6,1,4,4), torch.tensor([0]))]), fc.noop, cbs=DeviceCB(), opt_func=None)
    assert learn.capture_preds()[1].tolist() == [0]

def test_cat_batches_of_anything():
    (a,b),(c,) = cat_batches([((torch.ones(2,3), torch.zeros(2)), [torch.tensor(1.)])]*2)
    assert a.shape == (4,3) and b.shape == (4,) and c.tolist() == [1., 1.]

def test_tta_is_the_mean_of_probabilities():
    x,y = torch.randn(6, 1, 4, 4), torch.arange(6); net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)); learn = predicting(net, [(x, y)])
    net.cpu(); p,q = (net(o).softmax(1).detach() for o in (x, hflip(x)))
    assert torch.allclose(learn.tta()[0], (p+q)/2, atol=1e-6) and torch.allclose(learn.tta([fc.noop])[0], p, atol=1e-6)

def test_dropout_stays_on_when_asked():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 10)); learn = predicting(net, [(torch.randn(64, 1, 4, 4), torch.arange(64)%10)])
    was = net[2].running_mean.clone(); probs,_ = learn.dropout_preds(3)
    assert probs.shape == (3, 64, 10) and not torch.equal(probs[0], probs[1])
    assert torch.equal(net[2].running_mean.cpu(), was) and not any(m.training for m in net.modules())
    assert torch.equal(learn.capture_preds()[0], learn.capture_preds()[0])                  # and is off again

def test_no_dropout_to_leave_on():
    with pytest.raises(ValueError, match='no dropout layer'): predicting(nn.Flatten(), [(torch.randn(2,1,4,4), torch.arange(2))]).dropout_preds(1)

def test_show_image_batch_shows_what_the_callbacks_made():
    class TwiceCB(Callback):
        def before_batch(self, learn): learn.batch = ((learn.batch[0]*0, learn.batch[1]), learn.batch[0])     # as a diffusion batch is
    learn = TrainLearner(nn.Flatten(), DataLoaders([(torch.ones(3,1,4,4), torch.arange(3))], []), F.cross_entropy, cbs=DeviceCB(), opt_func=None)
    fig = learn.show_image_batch(max_n=2, cbs=TwiceCB(), return_fig=True)
    assert len([ax for ax in fig.axes if ax.images]) == 2 and learn.batch[0][0].abs().max() == 0 and len(learn.cbs) == 1

def test_confidence_plot():
    probs = torch.randn(4, 50, 3).softmax(-1); targs = torch.arange(50) % 3
    guess,std = plot_confidence(probs, targs, probs[0])
    assert torch.equal(guess, probs.mean(0).argmax(1)) and std.shape == (50,) and (std >= 0).all()

def test_summary_is_found_here_too():
    import miniai.augment as a
    assert a.summary is the_summary and 'summary' in a.__all__
