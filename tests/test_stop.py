"Commands that are stopped, started twice, or started with a scale that is none: one sentence, and the exit status that shells know"
import os, signal, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from common import ROOT
from miniai.core import locked
from miniai.recipes import BadInput

START = '''
import signal, sys, time
import torch
from miniai import cli, recipes
from miniai.learner import Callback
from miniai.unet import UNet
def going(*a, **k): print('@going', flush=True); time.sleep(60)
class Slow(Callback):
    def after_batch(self, learn):
        if learn.training and learn.iter == 2: print('@going', flush=True); [time.sleep(.1) for _ in range(50)]
make = cli.diffusion_learner
tiny = UNet(1, (16,32), n_blocks=1, attn=0, patch=2)
cli.diffusion_learner = lambda dls, form, cbs, **kw: make(dls, form, tiny, cbs=[*cbs, Slow()])
for o in ('sample', '_reference', '_draw'): setattr(cli, o, going)
lines = sys.argv[1:]
while lines:
    name,*sys.argv[1:] = lines.pop(0).split()
    try: getattr(cli, name)()
    except SystemExit as e:
        if not lines: raise
        print('status', e.code, flush=True)
'''

TRAIN = 'train --epochs 2 --bs 8 --n-train 64 --n-valid 8 --out '

def start(folder, *lines):
    "A process that runs these commands, one after another, each of them stuck in the middle of its work"
    (folder/'start.py').write_text(START)
    return subprocess.Popen([sys.executable, 'start.py', *lines], cwd=folder, env=os.environ | dict(PYTHONPATH=str(ROOT), MINIAI_SCALE='smoke'), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

def until(p, word):
    "What the process says up to a line with this word"
    said = ''
    while word not in said:
        line = p.stdout.readline(); said += line
        assert line, said
    return said

def test_stopped(tmp_path):
    "One sentence; that of a training names the checkpoint"
    np.savez(tmp_path/'x.npz', images=np.zeros((4,28,28,1), np.uint8))
    nums = dict.fromkeys([TRAIN+'a', 'sample_images --n 2 --out y.npz', 'quickstart'], signal.SIGINT) | dict.fromkeys([TRAIN+'b', 'evaluate x.npz --record e.jsonl'], signal.SIGTERM)
    p = start(tmp_path, *nums)
    for i,(line,num) in enumerate(nums.items()):
        until(p, '@going'); p.send_signal(num)
        said = until(p, 'status') if i+1 < len(nums) else p.stdout.read(); status = said.split()[-1] if i+1 < len(nums) else p.wait(100)
        assert int(status) == 128+num and 'Traceback' not in said
        m = line[-1]; where = f'{m}-checkpoint.safetensors is after batch 3 of epoch 0, and the same command goes on from there'
        assert said.count('interrupted') == 1 and (where if line.startswith('train') else 'interrupted, and not finished: give the same command again') in said, said
        if line.startswith('train'): assert (tmp_path/f'{m}-checkpoint.safetensors').exists()
    assert {o.name for o in tmp_path.iterdir()} <= {'start.py', 'x.npz', 'samples.png', 'strip.png', 'a-checkpoint.safetensors', 'b-checkpoint.safetensors'}      # no lock, no half a file

def test_two_at_the_same_time(tmp_path, monkeypatch):
    "The second is refused before it does anything, and the first is not disturbed"
    from miniai import cli
    monkeypatch.chdir(tmp_path)
    p = start(tmp_path, 'sample_images --n 2 --out x.npz')
    try:
        until(p, '@going')
        for f,kw in ((cli.sample_images, dict(weights='no such')), (cli.train, dict(data='no such'))):
            with pytest.raises(BadInput, match=f'another run .process {p.pid}. is writing x.npz: let it end, or give another path'): f(out='x.npz', **kw)
    finally: p.kill(); p.communicate()
    with pytest.raises(BadInput, match='no weights .no such.'): cli.sample_images(out='x.npz', weights='no such')      # its lock went with it

def test_of_several_processes_the_first_holds_the_lock(tmp_path, monkeypatch):
    from miniai.recipes import alone
    @alone
    def f(out): return 'ran'
    with locked(tmp_path/'m'):
        with pytest.raises(ValueError, match='is writing'): f(tmp_path/'m')
        monkeypatch.setenv('RANK', '1'); assert f(out=tmp_path/'m') == 'ran'

@pytest.mark.parametrize('name', ['m', 'm.safetensors', 'm.json'])
def test_weights_have_one_lock_whatever_they_are_called(name, tmp_path, monkeypatch):
    from miniai import cli
    monkeypatch.chdir(tmp_path)
    with locked('m'), pytest.raises(BadInput, match='is writing'): cli.train(data='no such', out=name)
    with pytest.raises(BadInput, match='does not exist'): cli.train(data='no such', out=name)

def test_a_scale_that_is_none(tmp_path):
    "As a command; and in each of them before anything else is looked at"
    p = subprocess.run([Path(sys.executable).parent/'miniai_sample', '--weights', 'no such'], cwd=tmp_path, env=os.environ | dict(MINIAI_SCALE='bad'), capture_output=True, text=True, timeout=200)
    assert p.returncode == 1 and p.stderr.strip() == "MINIAI_SCALE is 'bad'; it must be one of smoke, cpu, gpu, or unset to let the machine decide" and not list(tmp_path.iterdir())

@pytest.mark.parametrize('name,kw', [('train', dict(form='none')), ('sample_images', dict(weights='no such')), ('evaluate', dict(images='no such')), ('quickstart', dict(steps=-1))], ids=str)
def test_a_scale_that_is_none_comes_first(name, kw, monkeypatch):
    from miniai import cli
    monkeypatch.setenv('MINIAI_SCALE', 'bad')
    with pytest.raises(BadInput, match="MINIAI_SCALE is 'bad'"): getattr(cli, name)(**kw)
