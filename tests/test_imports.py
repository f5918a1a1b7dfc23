"`from miniai.imports import *` is quick, and leaves heavy packages alone until they are used"
import json
from common import run_python

CODE = '''
import sys, time, json
t0 = time.process_time(); import torch; t1 = time.process_time()     # processor seconds: a busy machine counts little
from miniai.imports import *
t2 = time.process_time()
print(json.dumps([t2-t1, sorted({m.split('.')[0] for m in sys.modules} & {'wandb', 'trackio', 'diffusers', 'datasets', 'torcheval', 'torchmetrics', 'accelerate', 'tensorboard', 'apprise'})]))
'''

def test_prelude_is_quick_and_light():
    runs = []
    for _ in range(3):
        p = run_python(CODE); assert p.returncode == 0, p.stderr
        secs,heavy = json.loads(p.stdout.splitlines()[-1]); runs.append(secs)
        assert heavy == []
        if secs < 3: break
    assert min(runs) < 3, runs

def test_prelude_brings_what_a_notebook_types():
    p = run_python('from miniai.imports import *\nprint([torch, nn, F, optim, plt, np, fc, partial, Path, math, tensor, lr_scheduler] and [Learner, conv, show_images, ResBlock, DDPMCB])')
    assert p.returncode == 0, p.stderr

def test_importing_needs_no_network_and_no_gpu():
    "A socket that nobody may open, and no CUDA device"
    p = run_python('''
import socket
def no(*a, **k): raise AssertionError('a socket was opened on import')
socket.socket.connect = no; socket.create_connection = no
from miniai.imports import *''', CUDA_VISIBLE_DEVICES='')
    assert p.returncode == 0, p.stderr

def test_help_tells_what_comments_say():
    p = run_python('''
import inspect, time
import miniai.imports as im, miniai.solvers, miniai.learner
t = time.process_time(); [im._comments(f) for f in im._functions()]; assert time.process_time()-t < .5
help(miniai.solvers.sample); help(miniai.learner.Learner.fit); help(im.Learner.tta); help(im.Learner)
assert im.set_seed.__doc__.startswith(im.set_seed.__doc__.split("\\n")[0] + "\\n\\nseed: any integer"), im.set_seed.__doc__
assert inspect.getdoc(im.conv).count("stride") == 1''')
    assert p.returncode == 0, p.stderr
    for words in ('steps: noise levels', '**kw: for the step', 'n_epochs: times through the data', 'tfms: each makes another version', 'model: what is trained'): assert words in p.stdout, p.stdout
