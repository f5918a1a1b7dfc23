"The loop: what it accepts, in which order it calls, what it gives back, and what it says when something is wrong"
import math, warnings
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from miniai.accel import AccumulateCB, ClipGradCB, EMACB, MixedPrecision
from miniai.core import set_seed
from miniai.datasets import DataLoaders
from miniai.learner import (VERBS, Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException, DeviceCB, FiniteLossCB, Learner,
                            LRFinderCB, Mean, MetricsCB, MomentumLearner, ProgressCB, SingleBatchCB, TrainCB, TrainLearner, as_tuple, n_items, run_cbs)
from miniai.sgd import BatchSchedCB, RecorderCB

def batches(n=256, bs=32):
    x = torch.linspace(-1, 1, n)[:,None]; x = x[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    return list(zip(x.split(bs), (3*x-1).split(bs)))

def dls(): b = batches(); return DataLoaders(b, b[:2])
def line(*cbs, L=TrainLearner, data=None, loss=F.mse_loss, **kw):
    set_seed(1); return L(nn.Linear(1,1), data or dls(), loss, cbs=list(cbs), **kw)
def found(learn): return pytest.approx([3, -1], abs=1e-3) == [learn.model.weight.item(), learn.model.bias.item()]
def bits(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

# --- it learns, from whatever it is given

@pytest.mark.parametrize('L,cbs', [(Learner, [TrainCB()]), (TrainLearner, []), (MomentumLearner, []), (Learner, [MixedPrecision(device='cpu')])], ids=lambda o: getattr(o, '__name__', ''))
def test_a_problem_whose_answer_we_know(L, cbs):
    learn = line(*cbs, L=L, lr=0.2); learn.fit(20)
    assert found(learn) or cbs and isinstance(cbs[0], MixedPrecision) and bits(learn).tolist() == pytest.approx([3, -1], abs=2e-2)

def pair(): b = batches(); return b, b[:2]
def bare(): return DataLoader(TensorDataset(*(torch.cat(o) for o in zip(*batches()))), 32)
def no_valid(): return DataLoaders(batches(), None)
def dicts(): b = [dict(x=x, y=y) for x,y in batches()]; return b, b[:1]
@pytest.mark.parametrize('data', [pair, bare, no_valid, dicts], ids=lambda f: f.__name__)
def test_any_data(data):
    m = MetricsCB(); learn = line(m, data=data(), lr=0.2); learn.fit(20)
    assert found(learn) and len(m.history) == (20 if data in (bare, no_valid) else 40) and all(math.isfinite(h['loss']) for h in m.history)

def test_the_items_of_a_batch():
    x = torch.ones(2); assert [as_tuple(b) for b in (x, [x], (x,), {'a': x})] == [(x,)]*4
    assert n_items(((torch.zeros(5,1,2,2), torch.tensor(3)), torch.zeros(5))) == 5 and n_items({'a': [torch.zeros(7,2)]}) == 7

def test_callbacks_round_dict_batches_see_the_dict():
    seen = []
    class See(Callback):
        def before_batch(self, learn): seen.append(type(learn.batch))
    line(See(), data=dicts()).fit(1); assert set(seen) == {dict}

# --- the order of things

class Tell(Callback):
    order = 999
    def __init__(self): self.said = []
    def __getattr__(self, nm):
        if nm.split('_')[0] not in ('before', 'after', 'cleanup'): raise AttributeError(nm)
        return lambda learn: self.said.append(nm)

BATCH = 'before_batch after_predict after_loss after_backward after_step after_batch cleanup_batch'.split()

def test_events_in_their_order():
    t = Tell(); b = batches()[:1]; line(t, data=(b, b)).fit(1)
    round_ = lambda nm, inner: [f'before_{nm}', *inner, f'after_{nm}', f'cleanup_{nm}']
    valid = [o for o in BATCH if o not in ('after_backward', 'after_step')]
    assert t.said == round_('fit', round_('epoch', BATCH) + round_('epoch', valid))

@pytest.mark.parametrize('what,at,left_out', [
    (CancelBatchException, 'after_loss', ['after_backward', 'after_step', 'after_batch']),
    (CancelStepException, 'after_backward', ['after_step']),
    (CancelEpochException, 'after_batch', ['after_epoch']),
    (CancelFitException, 'after_batch', ['after_epoch', 'after_fit'])], ids=lambda o: getattr(o, '__name__', ''))
def test_what_a_cancel_leaves_out(what, at, left_out):
    class Cancel(Callback):
        order = 1000
    def cancel(learn): raise what()
    c = Cancel(); setattr(c, at, cancel); t = Tell(); b = batches()[:1]
    line(t, c, data=(b, None)).fit(1)
    whole = ['before_fit', 'before_epoch', *BATCH, 'after_epoch', 'cleanup_epoch', 'after_fit', 'cleanup_fit']
    assert t.said == [o for o in whole if o not in left_out]

def test_an_error_in_a_cleanup_hides_nothing():
    class Bad(Callback):
        def cleanup_fit(self, learn): raise OSError('the cleanup')
    class First(Callback):
        def after_batch(self, learn): raise KeyError('the first')
    t = Tell()
    with pytest.warns(UserWarning, match='Bad.cleanup_fit failed too: OSError: the cleanup'), pytest.raises(KeyError, match='the first'): line(Bad(), First(), t).fit(1)
    assert t.said[-1] == 'cleanup_fit'
    with pytest.raises(OSError, match='the cleanup'): line(Bad(), t).fit(1)

class BadEnd(Callback):
    "Fails in one of its cleanups"
    def __init__(self, nm, error): setattr(self, f'cleanup_{nm}', self.fail); self.error = error
    def fail(self, learn): raise self.error

@pytest.mark.parametrize('nm', ['batch', 'epoch', 'fit'])
@pytest.mark.parametrize('error', [OSError('the cleanup'), KeyboardInterrupt('the cleanup')], ids=lambda e: type(e).__name__)
def test_an_error_in_a_cleanup_is_raised_after_all_cleaned_up(nm, error):
    "Also while a cancel passes through, which is no error, and in a fit that began while an older error was handled"
    t = Tell(); fit = line(BadEnd(nm, error), SingleBatchCB(), t).fit
    try: raise ValueError('an older one')
    except ValueError:
        with pytest.raises(type(error), match='the cleanup'): fit(1)
    assert [o for o in t.said if 'cleanup' in o] == ['cleanup_batch', 'cleanup_epoch', 'cleanup_fit']

def test_ctrl_c_in_a_cleanup_skips_none_and_hides_no_error():
    class First(Callback):
        def after_batch(self, learn): raise KeyError('the first')
    t = Tell()
    with pytest.warns(UserWarning, match='BadEnd.cleanup_fit failed too: KeyboardInterrupt'), pytest.raises(KeyError, match='the first'):
        line(BadEnd('fit', KeyboardInterrupt()), First(), t).fit(1)
    assert t.said[-1] == 'cleanup_fit'

def test_a_cleanup_tells_no_password():
    class First(Callback):
        def after_batch(self, learn): raise KeyError('the first')
    with pytest.warns(UserWarning, match='failed too: OSError: https://…@example.org/x is gone'), pytest.raises(KeyError):
        line(BadEnd('fit', OSError('https://me:hunter2@example.org/x is gone')), First()).fit(1)

def test_an_interrupted_fit_leaves_a_learner_that_works():
    class Interrupt(Callback):
        def after_backward(self, learn):
            if learn.iter == 2: raise KeyboardInterrupt()
    learn = line(TrainCB(), L=Learner, lr=0.2)
    with pytest.raises(KeyboardInterrupt): learn.fit(3, cbs=Interrupt())
    assert [type(c) for c in learn.cbs] == [TrainCB] and not any(v in vars(learn) for v in VERBS)
    w = bits(learn); again = line(TrainCB(), L=Learner, lr=0.2); again.model.load_state_dict(learn.model.state_dict())
    learn.fit(1); again.fit(1); assert torch.equal(bits(learn), bits(again)) and not torch.equal(w, bits(learn))     # no gradient is left over

def test_a_single_batch():
    learn = line(DeviceCB('cpu')); learn.fit(1, train=False, cbs=[SingleBatchCB()])
    assert learn.batch[0].shape == learn.preds.shape == (32,1) and learn.iter == 0

# --- what goes wrong, in words

def bad_y(): return DataLoaders([(torch.ones(4,1), torch.ones(4))], [])
def half_of_it_nan():
    d = dls(); d.train = [*d.train[:4], (d.train[4][0], d.train[4][1]*math.nan), *d.train[5:]]; return d

@pytest.mark.parametrize('words,kw,cbs', [
    ('TrainCB and TrainCB both provide `predict`', dict(L=Learner), [TrainCB(), TrainCB()]),
    ('TrainLearner and TrainCB both provide `predict`', {}, [TrainCB()]),
    ('nobody provides `predict`', dict(L=Learner), []),
    ('no loss function', dict(loss=None), []),
    ('`dls.train` is empty: nothing to train on', dict(data=DataLoaders([], [])), []),
    ('`dls.valid` is empty: nothing to validate on', dict(data=(batches(), DataLoader([]))), []),
    (r'gave \(4, 1\) for targets \(4,\)', dict(data=bad_y()), []),
    ('the batch holds no target', dict(data=[torch.ones(4,1)]), [])], ids=lambda o: o[:20] if isinstance(o, str) else '')
def test_bad_input(words, kw, cbs):
    with pytest.raises(ValueError, match=words): line(*cbs, **kw).fit(1)

@pytest.mark.parametrize('every', [1, 3, 20])
def test_a_loss_that_is_not_finite(every):
    "Also where it is looked at seldom, the right batch is named"
    cb = FiniteLossCB(every); fake = type('L', (), dict(training=True, opt=None, lr=1., epoch=0, model=nn.Linear(1,1)))
    cb.before_epoch(fake)
    with pytest.raises(FloatingPointError, match=r'batch 2 of epoch 0 is not finite \(learning rate 1; last finite loss 2\)'):
        for fake.iter,v in enumerate([1., 2., math.inf, 4., math.nan, 6.]): fake.loss = torch.tensor(v); cb.after_loss(fake)
        cb.after_epoch(fake)

def test_the_fit_stops_at_a_nan():
    with pytest.raises(FloatingPointError, match='loss of batch 4 of epoch 0'): line(data=half_of_it_nan()).fit(1)
    with pytest.raises(FloatingPointError, match='is not finite'): line(lr=1e4).fit(9)

def test_weights_that_the_last_step_spoiled():
    class Spoil(Callback):
        def after_step(self, learn):
            if learn.iter == 7: learn.model.weight.data.fill_(math.inf)
    with pytest.raises(FloatingPointError, match='weights are no longer finite after epoch 0'): line(Spoil()).fit(1, valid=False)

@pytest.mark.parametrize('what,at', [(CancelFitException, 'after_batch'), (CancelFitException, 'before_batch'), (CancelEpochException, 'after_batch')], ids=lambda o: getattr(o, '__name__', o))
def test_weights_that_were_spoiled_before_a_cancel(what, at):
    "A fit that is cancelled ends no epoch, and is looked at all the same; not so one that fails, or a search for the rate"
    class Spoil(Callback):
        def after_step(self, learn):
            if learn.iter == 6: learn.model.weight.data.fill_(math.nan)
    c = Callback(); setattr(c, at, lambda learn: stop(learn)); error = [what]
    def stop(learn):
        if learn.iter == (7 if at == 'before_batch' else 6): raise error[0]()
    with pytest.raises(FloatingPointError, match='weights are no longer finite after epoch 0'): line(Spoil(), c).fit(1, valid=False)
    error[0] = KeyError
    with pytest.raises(KeyError): line(Spoil(), c).fit(1)
    error[0] = what
    try: raise ValueError('an older one')
    except ValueError:
        with pytest.raises(FloatingPointError, match='weights'): line(Spoil(), c).fit(1, valid=False)

# --- metrics

def test_metrics_are_means_over_items():
    m = MetricsCB(); b = [(torch.ones(4,1), torch.zeros(4,1)), (torch.ones(1,1)*3, torch.zeros(1,1))]; learn = line(m, data=(b, b), lr=0.); learn.fit(1)
    a,c = learn.model.weight.item(), learn.model.bias.item()
    assert m.history[-1]['loss'] == pytest.approx((4*(a+c)**2 + (3*a+c)**2)/5, rel=1e-6)

def test_a_collection_and_a_metric_of_several_numbers():
    import torchmetrics as tm
    ms = tm.MetricCollection([tm.Accuracy('multiclass', num_classes=3), tm.F1Score('multiclass', num_classes=3)]); each = tm.Accuracy('multiclass', num_classes=3, average='none')
    x,y = torch.randn(8,2), torch.arange(8) % 3; set_seed(0)
    m = MetricsCB(all=ms, each=each); TrainLearner(nn.Linear(2,3), ([(x,y)], [(x,y)]), F.cross_entropy, cbs=m).fit(1)
    assert {'MulticlassAccuracy', 'MulticlassF1Score', 'each_0', 'each_1', 'each_2', 'loss'} <= set(m.history[0]) and all(isinstance(v, (float, int, str)) for v in m.history[0].values())

def test_mean():
    m = Mean(); assert math.isnan(m.compute())
    m.update(1., 3); m.update(torch.tensor([4., 6.])); assert m.compute() == 2.

def test_metrics_without_targets():
    seen = []
    class Count:
        def reset(self): pass
        def update(self, preds, targs): seen.append(targs)
        def compute(self): return 0.
    class L(TrainLearner):
        def get_loss(self): self.loss = self.preds.mean()
    line(MetricsCB(n=Count()), L=L, data=([torch.ones(4,1)], None)).fit(1); assert seen == [None]

# --- a step of several batches

def test_accumulated_steps_are_those_of_a_large_batch():
    whole = line(data=(batches(bs=64), None), lr=0.1, opt_func=optim.Adam); whole.fit(2)
    parts = line(AccumulateCB(2), data=(batches(bs=32), None), lr=0.1, opt_func=optim.Adam); parts.fit(2)
    assert bits(parts).tolist() == pytest.approx(bits(whole).tolist(), abs=1e-6)

def test_averages_and_schedules_count_steps():
    ema, rec, clip = EMACB(0.9), RecorderCB(lr=lambda cb: cb.pg['lr']), ClipGradCB(1.); n = 3                     # eight batches: steps of 3, 3 and 2
    learn = line(AccumulateCB(3), ema, rec, clip, MetricsCB(), BatchSchedCB(lambda o: lr_scheduler.LinearLR(o, 0.1, 1., total_iters=n)), data=(batches(), None)); learn.fit(1)
    assert ema.n == len(clip.norms) == len(rec.recs['lr']) == n and learn.opt.param_groups[0]['lr'] == pytest.approx(0.1) and learn.metrics.loss.weight == 256
    with pytest.raises(ValueError, match='at least one batch, got 0'): AccumulateCB(0)

def test_a_schedule_steps_once_a_batch_and_after_the_record():
    rec = RecorderCB(lr=lambda cb: cb.pg['lr']); line(BatchSchedCB(lambda o: lr_scheduler.ExponentialLR(o, 0.5)), rec, data=(batches(), None)).fit(1)
    assert rec.recs['lr'] == pytest.approx([0.1*0.5**i for i in range(8)])

def test_two_averages():
    a,b = EMACB(0.9), EMACB(0.); both = line(a, b); both.fit(2); alone = line(one := EMACB(0.9)); alone.fit(2); plain = line(); plain.fit(2)
    assert torch.equal(bits(both), bits(plain)) and torch.equal(a.ema['weight'], one.ema['weight']) and torch.equal(b.ema['weight'], both.model.weight)

# --- the learning rate

def test_a_search_for_the_rate_changes_nothing():
    rec = BatchSchedCB(lambda o: 1/0); learn = line(rec, lr=0.1); before = bits(learn); learn.lr_find()
    assert torch.equal(bits(learn), before) and not hasattr(learn, 'epoch')
    cb = LRFinderCB(plot=False); learn.fit(50, valid=False, cbs=cb, lr=1e-3)
    assert cb.lrs[1]/cb.lrs[0] == pytest.approx(1.3) and min(cb.losses) < cb.losses[0] and torch.equal(bits(learn), before)

def test_star_imports_of_lessons():
    ns = {}; exec('from miniai.learner import *', ns); assert {'to_cpu', 'to_device', 'def_device', 'TrainCB'} <= set(ns)
