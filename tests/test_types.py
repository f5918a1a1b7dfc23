"What a user's script looks like to a type checker: nothing that works is called wrong"
import os, subprocess, sys
import pytest
from common import ROOT

SCRIPT = '''
from pathlib import Path
import torch
from miniai.accel import EMACB
from miniai.augment import capture_preds
from miniai.core import load, log_record, save
from miniai.datasets import DataLoaders, TensorLoader
from miniai.fid import ImageEval, Stats, frechet
from miniai.guidance import guided
from miniai.learner import Learner, MetricsCB, TrainCB, TrainLearner
from miniai.recipes import diffusion_learner, load_denoiser, reference_eval, score
from miniai.resnet import summary
from miniai.solvers import sample

den = load_denoiser('fashion', torch.device('cpu'))
x = sample(guided(den, 2.), 4, 'heun', steps=2, y=torch.arange(4), size=(1, 28, 28))
dls = DataLoaders(TensorLoader(x, torch.arange(4), 2, shuffle=True), TensorLoader(x, torch.arange(4), 2))
ema = EMACB(0.9)
learn: Learner = diffusion_learner(dls, 'edm', lr=1e-3, cbs=[ema])
learn.lr_find(max_epochs=1)
learn.fit(1, lr=None, cbs=MetricsCB())
learn.summary()
print(learn.metrics.history[-1]['loss'], learn.loss, learn.preds)
with ema.applied(learn.model): preds, targs = learn.capture_preds()
p, t = learn.tta()
TrainLearner(learn.model, dls, None, opt_func=None)
save(learn.model, 'net', drop=None)
save(learn.model, Path('net'))
sd, card = load('net', device=torch.device('cpu'))
s = Stats(x.flatten(1)).add(x.flatten(1))
s.save('stats')
frechet(s, Stats.load(Path('stats'))).hex()
ie: ImageEval = reference_eval()
log_record('eval.jsonl', **ie.report(x, seed=0), fid=score(den, ie, n=16)['fid'])
'''

CONFIG = '''[mypy]
check_untyped_defs = True
follow_imports = silent
[mypy-torch.*,numpy.*,matplotlib.*,fastcore.*]
follow_imports = skip
'''

def checked(folder, script):
    "What mypy says of a script that is given the package as it lies here"
    (folder/'user.py').write_text(script); (folder/'mypy.ini').write_text(CONFIG)
    return subprocess.run([sys.executable, '-m', 'mypy', '--config-file', 'mypy.ini', '--cache-dir', 'cache', 'user.py'], cwd=folder,
                          env=os.environ | dict(MYPYPATH=str(ROOT)), capture_output=True, text=True, timeout=300)

def test_no_false_complaint(tmp_path):
    "And true ones are made, so the package is seen: a name that is not there, an argument that is not there, a number where there is a path"
    pytest.importorskip('mypy', reason='mypy is missing, so a script is not checked: `make test` installs it')
    p = checked(tmp_path, SCRIPT); assert p.returncode == 0, p.stdout
    p = checked(tmp_path, 'from miniai.core import nothing, load\nfrom miniai.learner import TrainLearner\nTrainLearner(None).fit(epoch=1)\nload(3)\n')
    for words in ('has no attribute "nothing"', 'Unexpected keyword argument "epoch"', 'incompatible type "int"'): assert words in p.stdout, p.stdout
