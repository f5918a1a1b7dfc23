"""What the records in results/ say: three files, one dataclass each. A field means one thing wherever it stands; what only one experiment
has (listed in its script) may stand beside these. `python experiments/records.py` checks every line; tests/test_records.py does, too."""
from dataclasses import MISSING, dataclass, fields
from typing import Optional, get_args, get_type_hints

from miniai.core import read_records, results_path

@dataclass
class Record:
    time:str                        # when it was written
    experiment:str                  # which experiment: karras, audit, classifier, …
    what:str                        # which part of it
    command:str                     # makes it again
    scale:str                       # smoke, cpu or gpu
    device:str                      # and how many threads
    versions:dict                   # of Python, torch and NumPy
    seed:Optional[int] = None       # of everything drawn at random
    cpu_seconds:Optional[float] = None  # of what the record is about: training, or sampling (not scoring)
    seconds:Optional[float] = None      # the same by the clock on the wall, where CPU seconds were not kept: not comparable

@dataclass
class Train(Record):
    n_train:Optional[int] = None    # images trained on
    n_valid:Optional[int] = None    # images that loss or accuracy are of
    epochs:Optional[int] = None     # passes over them
    train_steps:Optional[int] = None  # optimiser steps
    bs:Optional[int] = None         # images in a step
    lr:Optional[float] = None       # the highest learning rate
    loss:Optional[float] = None     # at the end, on held-out images
    accuracy:Optional[float] = None # at the end, on the test images
    parameters:Optional[int] = None # of the network
    history:object = None           # epoch by epoch

@dataclass
class Eval(Record):
    n:Optional[int] = None          # images scored
    model:Optional[str] = None      # name of the weights
    solver:Optional[str] = None     # how they were drawn
    steps:Optional[int] = None      # noise levels
    nfe:Optional[int] = None        # calls of the network for each image
    eta:Optional[float] = None      # η of DDIM
    rho:Optional[float] = None      # ρ of Karras's grid
    fid:Optional[float] = None      # against `n_ref` images of `split`
    floor:Optional[float] = None    # the same of n real training images
    kid:Optional[float] = None
    kid_std:Optional[float] = None
    inception_score:Optional[float] = None
    inception_score_std:Optional[float] = None
    precision:Optional[float] = None
    recall:Optional[float] = None
    density:Optional[float] = None
    coverage:Optional[float] = None
    n_ref:Optional[int] = None      # images of the reference
    split:Optional[str] = None      # of them: valid is the test set
    extractor:Optional[str] = None  # whose features
    extractor_hash:Optional[str] = None
    data_hash:Optional[str] = None  # of the reference's images
    eval_seconds:Optional[float] = None  # the scoring, by the clock

@dataclass
class Bench(Record):
    clock:Optional[str] = None      # process_time (CPU) or perf_counter
    half:Optional[str] = None       # float32 or bfloat16
    n_rounds:Optional[int] = None   # repetitions; the median counts
    ratio:object = None             # theirs to ours, or as `what` says

KINDS = dict(train=Train, eval=Eval, bench=Bench)
ELSEWHERE = dict(weights='model', network='model', sampler='solver', params='parameters', max_lr='lr')

def wrong(kind, rec):
    "What is wrong with a record of that kind, a list of sentences"
    cls = KINDS[kind]; hints = get_type_hints(cls); out = [f'{f.name} is missing' for f in fields(cls) if f.default is MISSING and rec.get(f.name) is None]
    for k,v in rec.items():
        types = get_args(hints[k]) or (hints[k],) if k in hints else ()
        if float in types: types = (*types, int)
        if k in hints and object not in types and not (v is None or isinstance(v, types)): out.append(f'{k} is {v!r}, not {" or ".join(t.__name__ for t in types if t is not type(None))}')
        if k in ELSEWHERE and not isinstance(v, (list, dict)): out.append(f'{k} is called {ELSEWHERE[k]}')
    return out

if __name__ == '__main__':
    bad = [f'{kind}.jsonl, line {i}: {"; ".join(w)}' for kind in KINDS for i,r in enumerate(read_records(results_path(kind)), 1) if (w := wrong(kind, r))]
    print('\n'.join(bad) or 'every record is as it should be')
    raise SystemExit(bool(bad))
